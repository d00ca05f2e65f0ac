"""The fused layer: frozen product, routing, selection and modulation in one function with a hand-written backward pass.

With weights that sum to one and `u = A x`,

    out = z + zhat * (w P + gamma p_s) = z + (w (x) u) @ ((P + gamma p_s) (.) basis)

where `(x)` is the row-wise Kronecker product, (E R, N), and `(.)` the column-wise one, (E R, O). The update is added to
the frozen output in place by one product of inner size E R. Its gradients need two products of the same size with the
incoming gradient; everything between is routing, a few numbers for each token. The gradient of the input is `g W` plus
one product with `[A; W_S]`: the routing reads E rows of the frozen weight. Between the passes are kept the input, `u`,
the routing features, the jitter and the chosen set: `R + 2 E` wide numbers and E booleans for each token.

Shapes: N tokens, I inputs, O outputs, R rank, E experts, F modulators (E, or E + 1 where the shared one stands alone),
    S the routing features. Dtypes: products over O or I run in the dtype of the input, routing in float32 (float64).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lime.method.fused import kernels, routing
from lime.method.fused.dropout import Dropout
from lime.method.fused.kernels import Gradients
from lime.method.fused.routing import RoutingPlan
from lime.method.once import differentiable_once
from lime.method.routing import routing_dtype

_unsafe_view = torch.ops.aten._unsafe_view.default


@dataclass(frozen=True)
class Plan:
    """What a fused layer computes beside its tensors.

    Attributes:
        routing: how it routes.
        first: first routing feature, where they are consecutive.
        dropout: probability of dropping an input feature of the update.
        records: return sums of the routing.
        shows: return the probabilities before windows.
        dtype: dtype of the input and the frozen layer in the wide products, where it is not their own (autocast).
    """

    routing: RoutingPlan = field(default_factory=RoutingPlan)
    first: int = 0
    dropout: float = 0.0
    records: bool = False
    shows: bool = False
    dtype: torch.dtype | None = None


class Weights(NamedTuple):
    """Tensors of a fused layer. All but `weight`, `bias` and `features` may carry gradient.

    Attributes:
        weight: frozen W0, (O, I).
        bias: frozen b0, (O,).
        projection: A of `u = A x`, (R, I).
        basis: (R, O) of `zhat = u @ basis`, scale included.
        experts: `p_i`, (E, O).
        shared: `p_s`, (O,), and with it `gamma`, (1,).
        router: learned router, (E, I).
        features: indices of the routing features, (E,), where they are not consecutive.
    """

    weight: Tensor
    bias: Tensor | None
    projection: Tensor
    basis: Tensor
    experts: Tensor
    shared: Tensor | None = None
    gamma: Tensor | None = None
    router: Tensor | None = None
    features: Tensor | None = None


class Tokens(NamedTuple):
    """What is known of the tokens of a call; every field may be absent.

    Attributes:
        noise_EN: factors of the logits.
        kept_N: 1 at real tokens and 0 at padding, in the routing precision.
        anchor_N: the token that decides for each token, as an index into all N.
        considered_N: tokens that count in the maximum of the `tensor` norm, in the routing precision.
    """

    noise_EN: Tensor | None = None
    kept_N: Tensor | None = None
    anchor_N: Tensor | None = None
    considered_N: Tensor | None = None


class Fused(torch.autograd.Function):
    """`apply(x, *weights, *tokens, plan)`, shape of `x` (..., I).

    Returns:
        `out`, (..., O); with `plan.records` the sum of the probabilities over real tokens, (E,), with gradient, and
        sums without (`statistics`); with `plan.shows` the probabilities before windows, (E, N), without gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *arguments: Any) -> tuple[Tensor | None, ...]:
        weights, tokens, plan = Weights(*arguments[:9]), Tokens(*arguments[9:13]), arguments[13]
        x_NI, cast = _cast(x, weights, plan)
        assert x_NI is not None
        dropout = Dropout.draw(x_NI, plan.dropout) if plan.dropout else None
        by_kernels = kernels.apply(x_NI, cast, plan)
        out, state = forward(x_NI, cast, tokens, plan, dropout, by_kernels=by_kernels)
        needs = ctx.needs_input_grad
        reads_input = needs[3] or needs[8]  # projection, router
        kept = (state.u_RN, state.source_EN, state.chosen_EN)
        ctx.save_for_backward(x if reads_input else None, *weights, *tokens, *kept)
        ctx.plan, ctx.dropout, ctx.shape, ctx.dtype = plan, dropout, x.shape, x.dtype
        ctx.by_kernels = by_kernels and kernels.apply_backward(tokens, plan)
        ctx.set_materialize_grads(False)
        extra = (state.sum_E, state.statistics, state.own_EN if plan.shows else None)
        ctx.mark_non_differentiable(*(one for one in extra[1:] if one is not None))
        # No view, so that what follows may change it in place.
        return _unsafe_view(out, (*x.shape[:-1], out.shape[-1])), *extra

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor | None, grad_sum_E: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        weights, tokens, kept = Weights(*saved[:9]), Tokens(*saved[9:13]), saved[13:]
        x_NI, weights = _cast(x, weights, ctx.plan)
        if grad is None:
            grad = weights.weight.new_zeros(*ctx.shape[:-1], weights.weight.shape[0])
        grad_NO = grad.reshape(-1, grad.shape[-1]).contiguous()
        with torch.autocast(grad.device.type, enabled=False):
            grad_x, *others = backward(
                grad_NO,
                grad_sum_E,
                x_NI,
                weights,
                tokens,
                ctx.plan,
                ctx.dropout,
                *kept,
                needs=ctx.needs_input_grad,
                by_kernels=ctx.by_kernels,
            )
        if grad_x is not None:
            grad_x = grad_x.view(ctx.shape).to(ctx.dtype)
        return grad_x, *others, None, None, None, None, None, None


def _cast(x: Tensor | None, weights: Weights, plan: Plan) -> tuple[Tensor | None, Weights]:
    """The input as (N, I) and the frozen layer, in the dtype of the wide products."""
    if x is not None:
        x = x.reshape(-1, x.shape[-1])
    if plan.dtype is None:
        return x, weights
    bias = None if weights.bias is None else weights.bias.to(plan.dtype)
    return None if x is None else x.to(plan.dtype), weights._replace(weight=weights.weight.to(plan.dtype), bias=bias)


class State(NamedTuple):
    """What the forward pass of a layer made beside its output; `source_EN` are the routing features of the frozen
    output, or the logits of a learned router. The kernels make `own_EN` only with `plan.shows`."""

    u_RN: Tensor
    source_EN: Tensor
    chosen_EN: Tensor | None
    own_EN: Tensor | None
    sum_E: Tensor | None
    statistics: Tensor | None


def forward(
    x_NI: Tensor, weights: Weights, tokens: Tokens, plan: Plan, dropout: Dropout | None, *, by_kernels: bool
) -> tuple[Tensor, State]:
    """Output (N, O) and what the backward pass needs."""
    dtype, wide = weights.weight.dtype, routing_dtype(weights.weight.dtype)
    z_NO = F.linear(x_NI, weights.weight, weights.bias)
    basis_RO = weights.basis.to(wide)
    u_RN, source_EN = _taps(x_NI, weights, dropout)
    if source_EN is None:
        source_EN = _pick(z_NO, weights, plan).t().to(wide, copy=True, memory_format=torch.contiguous_format)
    if by_kernels:
        routed = kernels.add_update(z_NO, u_RN, source_EN, basis_RO, weights, tokens, plan)
        sums: tuple[Tensor | None, Tensor | None] = (None, None)
        if routed.weights_EN is not None:
            assert routed.shared_EN is not None
            sums = _sums(routed.shared_EN, routed.weights_EN, tokens)
        return z_NO, State(u_RN, source_EN, routed.chosen_EN, routed.own_EN, *sums)
    route = _route(u_RN, source_EN, basis_RO, weights, tokens, plan, None)
    left, right = _factors(u_RN, route.selected.weights_EN, basis_RO, weights, tokens, plan)
    out_NO = z_NO.addmm_(left.to(dtype).t(), right.to(dtype))
    sum_E = statistics = None
    if plan.records:
        sum_E, statistics = _sums(route.shared_EN, route.selected.weights_EN, tokens)
    return out_NO, State(u_RN, source_EN, route.selected.chosen_EN, route.own_EN, sum_E, statistics)


def _taps(x_NI: Tensor, weights: Weights, dropout: Dropout | None) -> tuple[Tensor, Tensor | None]:
    """`u`, (R, N), and the logits of a learned router, (E, N), in the routing precision."""
    dtype, wide = x_NI.dtype, routing_dtype(x_NI.dtype)
    projection, router = weights.projection, weights.router
    if dropout is not None:
        u_RN = dropout.project(projection, x_NI).to(wide)
        return u_RN, None if router is None else torch.mm(router.to(dtype), x_NI.t()).to(wide)
    rows = projection if router is None else torch.cat([projection, router.to(projection.dtype)])
    taps = torch.mm(rows.to(dtype), x_NI.t()).to(wide)
    if router is None:
        return taps, None
    return taps[: len(projection)], taps[len(projection) :]


def _pick(values: Tensor, weights: Weights, plan: Plan) -> Tensor:
    """The routing features of the last dimension."""
    if weights.features is not None:
        return values.index_select(-1, weights.features)
    return values.narrow(-1, plan.first, weights.experts.shape[0])


class _Route(NamedTuple):
    signals: routing.Signals | None
    own_EN: Tensor
    shared_EN: Tensor
    selected: routing.Selected


def _route(
    u_RN: Tensor,
    source_EN: Tensor,
    basis_RO: Tensor,
    weights: Weights,
    tokens: Tokens,
    plan: Plan,
    chosen_EN: Tensor | None,
) -> _Route:
    """From signals to weights; run in both passes."""
    how, signals = plan.routing, None
    if how.learned:
        logits_EN = source_EN / how.temperature
    else:
        signals_2EN = source_EN.new_empty(2, *source_EN.shape)
        signals_2EN[0] = source_EN
        torch.mm(_pick(basis_RO, weights, plan).t(), u_RN, out=signals_2EN[1])
        signals = routing.normalise(signals_2EN, how, tokens.considered_N)
        logits_EN = routing.blend(signals, how)
    if tokens.noise_EN is not None:
        logits_EN.mul_(tokens.noise_EN)
    own_EN = torch.softmax(logits_EN, 0)
    shared_EN = routing.share(own_EN, tokens.anchor_N)
    return _Route(signals, own_EN, shared_EN, routing.select(shared_EN, how, chosen_EN))


def _factors(
    u_RN: Tensor, weights_EN: Tensor, basis_RO: Tensor, weights: Weights, tokens: Tokens, plan: Plan
) -> tuple[Tensor, Tensor]:
    """`w (x) u`, (F R, N), zero at padding, and `P' (.) basis`, (F R, O)."""
    left = _active(weights_EN, weights, tokens, plan).unsqueeze(1) * u_RN
    right = _modulators(basis_RO, weights, plan).unsqueeze(1) * basis_RO
    return left.flatten(0, 1), right.flatten(0, 1)


def _apart(weights: Weights, plan: Plan) -> bool:
    """Whether the shared modulator is one more expert: soft weights do not sum to one exactly."""
    return weights.shared is not None and plan.routing.soft


def _active(weights_EN: Tensor, weights: Weights, tokens: Tokens, plan: Plan) -> Tensor:
    """Weight of each modulator, (F, N)."""
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


def _sums(p_EN: Tensor, w_EN: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Sums over real tokens: of the probabilities, (E,); and, (2 E + 1,), of the tokens in which each expert carries
    weight, of the weights, and of the entropy in nats."""
    entropy_1N = torch.special.entr(p_EN).sum(0, keepdim=True)
    rows = torch.cat([p_EN, (w_EN > 0).to(p_EN.dtype), w_EN, entropy_1N])
    sums = rows.sum(1) if tokens.kept_N is None else rows @ tokens.kept_N
    # Copies: outputs of one function must not be views of one another.
    return sums[: len(p_EN)].clone(), sums[len(p_EN) :].clone()


def backward(
    grad_NO: Tensor,
    grad_sum_E: Tensor | None,
    x_NI: Tensor | None,
    weights: Weights,
    tokens: Tokens,
    plan: Plan,
    dropout: Dropout | None,
    u_RN: Tensor,
    source_EN: Tensor,
    chosen_EN: Tensor | None,
    *,
    needs: tuple[bool, ...],
    by_kernels: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of `x`, (N, I), and of the tensors of `Weights` up to `router`, in that order."""
    basis_RO = weights.basis.to(u_RN.dtype)
    kept = (u_RN, source_EN, chosen_EN, basis_RO)
    find = kernels.backward if by_kernels else _backward
    found = find(grad_NO, grad_sum_E, *kept, weights, tokens, plan)
    grad_x, grad_projection, grad_router = _taps_backward(grad_NO, found.taps, x_NI, weights, plan, dropout, needs)
    return (
        grad_x,
        None,
        None,
        grad_projection,
        found.basis_RO.to(weights.basis.dtype),
        found.experts_EO.to(weights.experts.dtype),
        None if found.shared_O is None or weights.shared is None else found.shared_O.to(weights.shared.dtype),
        None if found.gamma is None or weights.gamma is None else found.gamma.to(weights.gamma.dtype),
        grad_router,
    )


def _backward(
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
    """Through the product, selection and routing."""
    how, dtype, wide = plan.routing, weights.weight.dtype, u_RN.dtype
    E, R = len(source_EN), len(u_RN)
    route = _route(u_RN, source_EN, basis_RO, weights, tokens, plan, chosen_EN)
    active_FN = _active(route.selected.weights_EN, weights, tokens, plan)
    modulators_FO = _modulators(basis_RO, weights, plan)
    left = (active_FN.unsqueeze(1) * u_RN).flatten(0, 1).to(dtype)
    right = (modulators_FO.unsqueeze(1) * basis_RO).flatten(0, 1).to(dtype)

    # the product
    grad_left_FRN = torch.mm(right, grad_NO.t()).to(wide).view(-1, R, grad_NO.shape[0])
    grad_right_FRO = torch.mm(left, grad_NO).to(wide).view(-1, R, grad_NO.shape[1])
    grad_active_FN = (grad_left_FRN * u_RN).sum(1)
    grad_taps = u_RN.new_empty(R + E, u_RN.shape[1])
    grad_u_RN, grad_source_EN = grad_taps[:R], grad_taps[R:]
    torch.sum(grad_left_FRN.mul_(active_FN.unsqueeze(1)), 0, out=grad_u_RN)
    grad_modulators_FO = (grad_right_FRO * basis_RO).sum(1)
    grad_basis_RO = grad_right_FRO.mul_(modulators_FO.unsqueeze(1)).sum(0)

    # selection and routing
    grad_EN = grad_active_FN[:E]
    if tokens.kept_N is not None:
        grad_EN = grad_EN.mul_(tokens.kept_N)
    grad_EN = routing.select_backward(grad_EN, route.shared_EN, route.selected, how)
    if grad_sum_E is not None:
        counted = grad_sum_E.unsqueeze(1)
        grad_EN = grad_EN + (counted if tokens.kept_N is None else counted * tokens.kept_N)
    grad_EN = routing.share_backward(grad_EN, tokens.anchor_N)
    grad_EN = routing.softmax_backward(grad_EN, route.own_EN)
    if tokens.noise_EN is not None:
        grad_EN.mul_(tokens.noise_EN)
    if how.learned:
        torch.div(grad_EN, how.temperature, out=grad_source_EN)
    else:
        assert route.signals is not None
        grad_2EN = routing.blend_backward(grad_EN, how)
        grad_2EN = routing.normalise_backward(grad_2EN, route.signals, how, tokens.considered_N)
        grad_source_EN.copy_(grad_2EN[0])
        picked_RE = _pick(basis_RO, weights, plan)
        grad_u_RN.addmm_(picked_RE, grad_2EN[1])
        grad_picked_RE = torch.mm(u_RN, grad_2EN[1].t())
        if weights.features is None:
            grad_basis_RO.narrow(1, plan.first, E).add_(grad_picked_RE)
        else:
            grad_basis_RO.index_add_(1, weights.features, grad_picked_RE)

    grad_shared = grad_gamma = None
    if weights.shared is not None:
        assert weights.gamma is not None
        total_O = grad_modulators_FO[E] if _apart(weights, plan) else grad_modulators_FO.sum(0)
        grad_shared = total_O * weights.gamma.to(wide)
        grad_gamma = torch.dot(total_O, weights.shared.to(wide)).reshape(weights.gamma.shape)
    return Gradients(grad_taps, grad_basis_RO, grad_modulators_FO[:E], grad_shared, grad_gamma)


def _taps_backward(
    grad_NO: Tensor,
    grad_taps: Tensor,
    x_NI: Tensor | None,
    weights: Weights,
    plan: Plan,
    dropout: Dropout | None,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the input, of the projection and of a learned router.

    Args:
        grad_taps: of `u` and of the routing's source, (R + E, N).
    """
    dtype, R = weights.weight.dtype, len(weights.projection)
    grad_taps = grad_taps.to(dtype)
    grad_x = grad_projection = grad_router = None
    source = _rows(weights, plan) if weights.router is None else weights.router.to(dtype)
    if needs[0]:
        grad_x = torch.mm(grad_NO, weights.weight)
    x_read = x_NI if needs[3] else None
    if dropout is not None:
        grad_projection = dropout.backward(grad_taps, weights.projection, source, x_read, grad_x)
    else:
        if grad_x is not None:
            grad_x.addmm_(grad_taps.t(), torch.cat([weights.projection.to(dtype), source]))
        if x_read is not None:
            grad_projection = torch.mm(grad_taps[:R], x_read).to(weights.projection.dtype)
    if needs[8]:
        assert weights.router is not None
        assert x_NI is not None
        grad_router = torch.mm(grad_taps[R:], x_NI).to(weights.router.dtype)
    return grad_x, grad_projection, grad_router


def _rows(weights: Weights, plan: Plan) -> Tensor:
    """The rows of the frozen weight that make the routing features, (E, I)."""
    if weights.features is not None:
        return weights.weight.index_select(0, weights.features)
    return weights.weight.narrow(0, plan.first, weights.experts.shape[0])
