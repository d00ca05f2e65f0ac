"""Routing, selection and modulation of the fused layer by torch operations, forward and backward.

Where a layer is narrow or its tokens are few, time goes into the number of operations, not into what they move. So the
hard set is taken of the logits (`selection.of_logits`), whose weights after selection are a softmax: they are kept, and
their gradient is that of a softmax. Experts stand before tokens, so that every operation runs over tokens that lie next
to each other in memory.

Shapes: N tokens, O outputs, R rank, E experts, F modulators (E, or E + 1 where the shared one stands alone).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lime.method import routing, selection
from lime.method.fused import routing as backwards
from lime.method.fused.parts import Gradients, Kept, Plan, Routed, Tokens, Weights


def add_update(
    z_NO: Tensor, u_RN: Tensor, source_EN: Tensor, basis_RO: Tensor, weights: Weights, tokens: Tokens, plan: Plan
) -> Routed:
    """Route, select and modulate, and add the update to the frozen output in place: `z += (w (x) u) @ (P' (.) basis)`.

    Args:
        u_RN: the input in the update's rank space.
        source_EN: routing features of the frozen output, or the logits of a learned router.
        basis_RO: the basis, in the dtype of `u`.
    """
    how = plan.routing
    _, _, own_EN = _logits(u_RN, source_EN, basis_RO, weights, tokens, plan)
    logits_EN = _of_windows(own_EN, tokens)
    shared_EN = logits_EN.softmax(0) if plan.records or how.soft else None
    if how.soft:
        assert shared_EN is not None
        weights_EN = selection.selected(shared_EN, how, 0).weights_BTE
    else:
        weights_EN = selection.of_logits(logits_EN, how)
    active_FN = _active(weights_EN, weights, tokens, plan)
    left = (active_FN.unsqueeze(1) * u_RN).flatten(0, 1)
    right = (_modulators(weights, plan, basis_RO.dtype).unsqueeze(1) * basis_RO).flatten(0, 1)
    if z_NO.dtype != left.dtype:
        left, right = left.to(z_NO.dtype), right.to(z_NO.dtype)
    z_NO.addmm_(left.t(), right)
    own_EN = own_EN.softmax(0) if plan.shows else None  # type: ignore[assignment]
    return Routed(None, own_EN, shared_EN, active_FN[: len(weights_EN)])


def backward(
    grad_NO: Tensor, grad_sum_E: Tensor | None, kept: Kept, weights: Weights, tokens: Tokens, plan: Plan
) -> Gradients:
    """Through the product, selection and routing.

    The other arguments are as in `add_update`.

    Args:
        grad_NO: of the layer's output.
        grad_sum_E: of the sum of the probabilities over real tokens.
        kept: what the forward pass left.
    """
    u_RN, source_EN, basis_RO, weights_EN, chosen_EN = kept
    how, dtype, wide = plan.routing, grad_NO.dtype, u_RN.dtype
    (N, width), (R, E) = grad_NO.shape, (len(u_RN), len(source_EN))
    # Routing costs a few numbers a token: computed again it is cheaper than kept from the forward pass.
    probabilities_EN = soft = None
    known = weights_EN is not None and grad_sum_E is None
    values_2EN, divisor, own_EN = _logits(u_RN, source_EN, basis_RO, weights, tokens, plan, only_values=known)
    if not known:
        logits_EN = _of_windows(own_EN, tokens)
        if how.soft or grad_sum_E is not None:
            probabilities_EN = logits_EN.softmax(0)
        if how.soft:
            assert probabilities_EN is not None
            soft = selection.selected(probabilities_EN, how, 0)
            weights_EN = soft.weights_BTE
        elif weights_EN is None:  # the kernels kept the set
            weights_EN = selection.of_logits(logits_EN, how, chosen_EN)
    assert weights_EN is not None
    active_FN = weights_EN if kept.weights_EN is not None else _active(weights_EN, weights, tokens, plan)
    modulators_FO = _modulators(weights, plan, wide)
    left = (active_FN.unsqueeze(1) * u_RN).flatten(0, 1)
    right = (modulators_FO.unsqueeze(1) * basis_RO).flatten(0, 1)
    if dtype != wide:
        left, right = left.to(dtype), right.to(dtype)

    # The only two operations over the whole incoming gradient.
    grad_left_FRN = torch.mm(right, grad_NO.t()).to(wide).view(-1, R, N)
    grad_right_FRO = torch.mm(left, grad_NO).to(wide).view(-1, R, width)
    grad_active_FN = (grad_left_FRN * u_RN).sum(1)
    # Both gradients that go on to the input lie one under the other: one product takes them there.
    grad_projected = u_RN.new_empty(R + E, N)
    torch.sum(grad_left_FRN.mul_(active_FN.unsqueeze(1)), 0, out=grad_projected[:R])
    grad_modulators_FO = (grad_right_FRO * basis_RO).sum(1)
    grad_basis_RO = grad_right_FRO.mul_(modulators_FO.unsqueeze(1)).sum(0)

    # At padding `active` is zero, and so is what comes of it here.
    if soft is None:
        grad_EN = torch._softmax_backward_data(grad_active_FN, active_FN, 0, wide)
    else:
        grad_EN = grad_active_FN[:E] if tokens.kept_N is None else grad_active_FN[:E] * tokens.kept_N
        assert probabilities_EN is not None
        grad_EN = backwards.select_backward(grad_EN, probabilities_EN, soft, how)
        grad_EN = torch._softmax_backward_data(grad_EN, probabilities_EN, 0, wide)
    if grad_sum_E is not None:
        assert probabilities_EN is not None
        grad_EN = grad_EN.add_(backwards.sum_backward(grad_sum_E, probabilities_EN, tokens.kept_N))
    grad_EN = backwards.share_backward(grad_EN, tokens.anchor_N)
    if tokens.noise_EN is not None:
        grad_EN.mul_(tokens.noise_EN)
    if how.learned:
        torch.div(grad_EN, how.temperature, out=grad_projected[R:])
    else:
        assert values_2EN is not None
        assert divisor is not None
        grad_2EN = backwards.normalise_backward(grad_EN, values_2EN, divisor, how, tokens.considered_N)
        frozen, update = backwards.shares(how)
        torch.mul(grad_2EN[0], frozen, out=grad_projected[R:])
        grad_projected[:R].addmm_(weights.pick(basis_RO, plan), grad_2EN[1], alpha=update)
        if weights.features is None:
            grad_basis_RO.narrow(1, plan.first, E).addmm_(u_RN, grad_2EN[1].t(), alpha=update)
        else:
            grad_basis_RO.index_add_(1, weights.features, torch.mm(u_RN, grad_2EN[1].t()), alpha=update)

    grad_shared = grad_gamma = None
    if weights.shared is not None:
        assert weights.gamma is not None
        total_O = grad_modulators_FO[E] if _apart(weights, plan) else grad_modulators_FO.sum(0)
        grad_shared = total_O * weights.gamma
        grad_gamma = torch.dot(total_O, weights.shared.to(wide)).view(1)
    return Gradients(grad_projected, grad_basis_RO, grad_modulators_FO[:E], grad_shared, grad_gamma)


def _logits(
    u_RN: Tensor,
    source_EN: Tensor,
    basis_RO: Tensor,
    weights: Weights,
    tokens: Tokens,
    plan: Plan,
    *,
    only_values: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Normalised signals (2, E, N) and their divisor, where the router is not learned; and the logits over the
    temperature, (E, N), before windows. With `only_values` the logits are left out, and anything stands for them."""
    how, values_2EN, divisor = plan.routing, None, None
    if how.learned:
        logits_EN = source_EN / how.temperature
    else:
        # The update's routing features come from its rank space: `zhat[S] = basis[:, S]^T u`.
        values_2EN = source_EN.new_empty(2, *source_EN.shape)
        values_2EN[0] = source_EN
        torch.mm(weights.pick(basis_RO, plan).t(), u_RN, out=values_2EN[1])
        divisor = routing.divisor(values_2EN, how.norm, None, tokens.considered_N, stacked=True)
        values_2EN.div_(divisor)
        if only_values:
            return values_2EN, divisor, source_EN
        frozen, update = backwards.shares(how)
        logits_EN = torch.mul(values_2EN[0], frozen).add_(values_2EN[1], alpha=update)
    if tokens.noise_EN is not None:
        logits_EN.mul_(tokens.noise_EN)
    return values_2EN, divisor, logits_EN


def _of_windows(own_EN: Tensor, tokens: Tokens) -> Tensor:
    return own_EN if tokens.anchor_N is None else own_EN.index_select(1, tokens.anchor_N)


def _apart(weights: Weights, plan: Plan) -> bool:
    """Whether the shared modulator is one more expert: soft weights do not sum to one exactly."""
    return weights.shared is not None and plan.routing.soft


def _active(weights_EN: Tensor, weights: Weights, tokens: Tokens, plan: Plan) -> Tensor:
    """Weight of each modulator, (F, N); zero at padding."""
    if _apart(weights, plan):
        weights_EN = torch.cat([weights_EN, torch.ones_like(weights_EN[:1])])
    return weights_EN if tokens.kept_N is None else weights_EN * tokens.kept_N


def _modulators(weights: Weights, plan: Plan, dtype: torch.dtype) -> Tensor:
    """`p_i + gamma p_s`, (E, O), or `p_i` and `gamma p_s`, (E + 1, O)."""
    experts_EO, shared_O, gamma = weights.experts.to(dtype), weights.shared, weights.gamma
    if shared_O is None:
        return experts_EO
    assert gamma is not None
    if _apart(weights, plan):
        return torch.cat([experts_EO, (gamma.to(dtype) * shared_O.to(dtype)).unsqueeze(0)])
    return torch.addcmul(experts_EO, gamma.to(dtype), shared_O.to(dtype))
