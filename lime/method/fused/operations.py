"""Routing, selection and modulation of the fused layer by torch operations, forward and backward.

Experts stand before tokens, so that every operation runs over tokens that lie next to each other in memory.

Shapes: N tokens, O outputs, R rank, E experts, F modulators (E, or E + 1 where the shared one stands alone).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lime.method import routing, selection
from lime.method.fused import routing as backwards
from lime.method.fused.parts import Gradients, Plan, Routed, Tokens, Weights


def add_update(
    z_NO: Tensor, u_RN: Tensor, source_EN: Tensor, basis_RO: Tensor, weights: Weights, tokens: Tokens, plan: Plan
) -> Routed:
    """Route, select and modulate, and add the update to the frozen output in place: `z += (w (x) u) @ (P' (.) basis)`.

    Args:
        u_RN: the input in the update's rank space.
        source_EN: routing features of the frozen output, or the logits of a learned router.
        basis_RO: the basis, in the dtype of `u`.
    """
    route = _route(u_RN, source_EN, basis_RO, weights, tokens, plan)
    chosen = route.selected
    left_FRN = _active(chosen.weights_BTE, weights, tokens, plan).unsqueeze(1) * u_RN
    right_FRO = _modulators(basis_RO, weights, plan).unsqueeze(1) * basis_RO
    left, right = left_FRN.flatten(0, 1), right_FRO.flatten(0, 1)
    z_NO.addmm_(left.to(z_NO.dtype).t(), right.to(z_NO.dtype))
    return Routed(chosen.chosen_BTE, route.own_EN, route.shared_EN, chosen.weights_BTE)


def backward(
    grad_NO: Tensor,
    grad_sum_E: Tensor | None,
    u_RN: Tensor,
    source_EN: Tensor,
    chosen_EN: Tensor | None,
    basis_RO: Tensor,
    weights: Weights,
    tokens: Tokens,
    plan: Plan,
) -> Gradients:
    """Through the product, selection and routing.

    The other arguments are as in `add_update`.

    Args:
        grad_NO: of the layer's output.
        grad_sum_E: of the sum of the probabilities over real tokens.
    """
    dtype, wide = weights.weight.dtype, u_RN.dtype
    (N, width), (R, E) = grad_NO.shape, (len(u_RN), len(source_EN))
    # Routing costs a few numbers a token: computed again it is cheaper than kept from the forward pass.
    route = _route(u_RN, source_EN, basis_RO, weights, tokens, plan, chosen_EN)
    active_FN = _active(route.selected.weights_BTE, weights, tokens, plan)
    modulators_FO = _modulators(basis_RO, weights, plan)
    left = (active_FN.unsqueeze(1) * u_RN).flatten(0, 1).to(dtype)
    right = (modulators_FO.unsqueeze(1) * basis_RO).flatten(0, 1).to(dtype)

    # The only two operations over the whole incoming gradient.
    grad_left_FRN = torch.mm(right, grad_NO.t()).to(wide).view(-1, R, N)
    grad_right_FRO = torch.mm(left, grad_NO).to(wide).view(-1, R, width)
    grad_active_FN = (grad_left_FRN * u_RN).sum(1)
    # Both gradients that go on to the input lie one under the other: one product takes them there.
    grad_taps = u_RN.new_empty(R + E, N)
    torch.sum(grad_left_FRN.mul_(active_FN.unsqueeze(1)), 0, out=grad_taps[:R])
    grad_modulators_FO = (grad_right_FRO * basis_RO).sum(1)
    grad_basis_RO = grad_right_FRO.mul_(modulators_FO.unsqueeze(1)).sum(0)

    grad_EN = grad_active_FN[:E]
    if tokens.kept_N is not None:
        grad_EN = grad_EN.mul_(tokens.kept_N)
    _route_backward(grad_EN, grad_sum_E, route, grad_taps, grad_basis_RO, u_RN, basis_RO, weights, tokens, plan)

    grad_shared = grad_gamma = None
    if weights.shared is not None:
        assert weights.gamma is not None
        total_O = grad_modulators_FO[E] if _apart(weights, plan) else grad_modulators_FO.sum(0)
        grad_shared = total_O * weights.gamma.to(wide)
        grad_gamma = torch.dot(total_O, weights.shared.to(wide)).reshape(weights.gamma.shape)
    return Gradients(grad_taps, grad_basis_RO, grad_modulators_FO[:E], grad_shared, grad_gamma)


class _Route(NamedTuple):
    """Normalised signals (2, E, N) and their divisor, where the router is not learned; probabilities before and after
    windows; the selection."""

    values_2EN: Tensor | None
    divisor: Tensor | None
    own_EN: Tensor
    shared_EN: Tensor
    selected: selection.Selected


def _route(
    u_RN: Tensor,
    source_EN: Tensor,
    basis_RO: Tensor,
    weights: Weights,
    tokens: Tokens,
    plan: Plan,
    chosen_EN: Tensor | None = None,
) -> _Route:
    """From signals to weights; run in both passes."""
    how, values_2EN, divisor = plan.routing, None, None
    if how.learned:
        logits_EN = source_EN / how.temperature
    else:
        # The update's routing features come from its rank space: `zhat[S] = basis[:, S]^T u`.
        values_2EN = source_EN.new_empty(2, *source_EN.shape)
        values_2EN[0] = source_EN
        torch.mm(weights.pick(basis_RO, plan).t(), u_RN, out=values_2EN[1])
        divisor = routing.divisor(values_2EN, how.norm, None, tokens.considered_N, stacked=True)
        logits_EN = backwards.blend(values_2EN.div_(divisor), how)
    if tokens.noise_EN is not None:
        logits_EN.mul_(tokens.noise_EN)
    own_EN = torch.softmax(logits_EN, 0)
    shared_EN = own_EN if tokens.anchor_N is None else own_EN.index_select(1, tokens.anchor_N)
    return _Route(values_2EN, divisor, own_EN, shared_EN, selection.selected(shared_EN, how, 0, chosen_EN))


def _route_backward(
    grad_EN: Tensor,
    grad_sum_E: Tensor | None,
    route: _Route,
    grad_taps: Tensor,
    grad_basis_RO: Tensor,
    u_RN: Tensor,
    basis_RO: Tensor,
    weights: Weights,
    tokens: Tokens,
    plan: Plan,
) -> None:
    """From the gradient of the weights: adds its part to `grad_taps[:R]` and `grad_basis`, writes `grad_taps[R:]`."""
    how, R = plan.routing, len(u_RN)
    grad_EN = backwards.select_backward(grad_EN, route.shared_EN, route.selected, how)
    if grad_sum_E is not None:
        counted = grad_sum_E.unsqueeze(1)
        grad_EN = grad_EN + (counted if tokens.kept_N is None else counted * tokens.kept_N)
    grad_EN = backwards.share_backward(grad_EN, tokens.anchor_N)
    grad_EN = torch._softmax_backward_data(grad_EN, route.own_EN, 0, grad_EN.dtype)
    if tokens.noise_EN is not None:
        grad_EN.mul_(tokens.noise_EN)
    if how.learned:
        torch.div(grad_EN, how.temperature, out=grad_taps[R:])
        return
    assert route.values_2EN is not None
    assert route.divisor is not None
    grad_2EN = backwards.blend_backward(grad_EN, how)
    grad_2EN = backwards.normalise_backward(grad_2EN, route.values_2EN, route.divisor, how, tokens.considered_N)
    grad_taps[R:].copy_(grad_2EN[0])
    grad_taps[:R].addmm_(weights.pick(basis_RO, plan), grad_2EN[1])
    grad_picked_RE = torch.mm(u_RN, grad_2EN[1].t())
    if weights.features is None:
        grad_basis_RO.narrow(1, plan.first, len(grad_EN)).add_(grad_picked_RE)
    else:
        grad_basis_RO.index_add_(1, weights.features, grad_picked_RE)


def _apart(weights: Weights, plan: Plan) -> bool:
    """Whether the shared modulator is one more expert: soft weights do not sum to one exactly."""
    return weights.shared is not None and plan.routing.soft


def _active(weights_EN: Tensor, weights: Weights, tokens: Tokens, plan: Plan) -> Tensor:
    """Weight of each modulator, (F, N); zero at padding."""
    if _apart(weights, plan):
        weights_EN = torch.cat([weights_EN, torch.ones_like(weights_EN[:1])])
    return weights_EN if tokens.kept_N is None else weights_EN * tokens.kept_N


def _modulators(basis_RO: Tensor, weights: Weights, plan: Plan) -> Tensor:
    """`p_i + gamma p_s`, (E, O), or `p_i` and `gamma p_s`, (E + 1, O)."""
    experts_EO = weights.experts.to(basis_RO.dtype)
    if weights.shared is None:
        return experts_EO
    assert weights.gamma is not None
    always_O = weights.gamma.to(basis_RO.dtype) * weights.shared.to(basis_RO.dtype)
    if _apart(weights, plan):
        return torch.cat([experts_EO, always_O.unsqueeze(0)])
    return experts_EO + always_O
