"""The fused layer: frozen product, routing, selection and modulation in one function with a hand-written backward pass.

With weights that sum to one and `u = A x`,

    out = z + zhat * (w P + gamma p_s) = z + (w (x) u) @ ((P + gamma p_s) (.) basis)

where `(x)` is the row-wise Kronecker product, (E R, N), and `(.)` the column-wise one, (E R, O). The update is added to
the frozen output in place by one product of inner size E R. Its gradients need two products of the same size with the
incoming gradient; everything between is routing, a few numbers for each token. The gradient of the input is `g W` plus
one product with `[A; W_S]`: the routing reads E rows of the frozen weight. Between the passes are kept the input, `u`,
the routing features, the jitter and the weights after selection: `R + 3 E` numbers for each token.

`operations` computes what lies between the wide products; on a GPU the Triton kernels of `lime.method.triton` do.

Shapes: N tokens, I inputs, O outputs, R rank, E experts, S the routing features. Dtypes: products over O or I run in
    the dtype of the input, routing in float32 (float64).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lime.method.fused import operations, path
from lime.method.fused.dropout import Dropout
from lime.method.fused.parts import Kept, Plan, Routed, Tokens, Weights
from lime.method.once import differentiable_once, without_autocast
from lime.method.routing import routing_dtype

__all__ = ["Fused", "Plan", "Tokens", "Weights"]

_unsafe_view = torch.ops.aten._unsafe_view.default


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
        way = _way(x.device)
        out, kept, routed, sums = forward(x_NI, cast, tokens, plan, dropout, way)
        needs = ctx.needs_input_grad
        if any(needs):
            reads_input = needs[3] or needs[8]  # projection, router
            saved = weights._replace(bias=None)
            ctx.save_for_backward(x if reads_input else None, *saved, *tokens, *kept)
            ctx.plan, ctx.dropout, ctx.shape, ctx.dtype, ctx.way = plan, dropout, x.shape, x.dtype, way
            ctx.set_materialize_grads(False)
        extra = (*sums, routed.own_EN if plan.shows else None)
        if plan.records or plan.shows:
            ctx.mark_non_differentiable(*(one for one in extra[1:] if one is not None))
        # No view, so that what follows may change it in place.
        return _unsafe_view(out, (*x.shape[:-1], out.shape[-1])), *extra

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor | None, grad_sum_E: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        weights, tokens, kept = Weights(*saved[:9]), Tokens(*saved[9:13]), Kept(*saved[13:])
        x_NI, weights = _cast(x, weights, ctx.plan)
        if grad is None:
            grad = weights.weight.new_zeros(*ctx.shape[:-1], weights.weight.shape[0])
        grad_NO = grad.reshape(-1, grad.shape[-1]).contiguous()
        with without_autocast(grad.device.type):
            grad_x, *others = backward(
                grad_NO, grad_sum_E, x_NI, kept, weights, tokens, ctx.plan, ctx.dropout, ctx.needs_input_grad, ctx.way
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


def forward(
    x_NI: Tensor, weights: Weights, tokens: Tokens, plan: Plan, dropout: Dropout | None, way: Any
) -> tuple[Tensor, Kept, Routed, tuple[Tensor | None, Tensor | None]]:
    """Output (N, O) by the `add_update` of `way`, what the backward pass needs, and the sums of the routing."""
    wide = routing_dtype(weights.weight.dtype)
    z_NO = F.linear(x_NI, weights.weight, weights.bias)
    basis_RO = weights.up.t().to(wide).contiguous()
    if plan.scale != 1:
        basis_RO = basis_RO * plan.scale
    u_RN, source_EN = _project(x_NI, weights, dropout)
    if source_EN is None:
        source_EN = weights.pick(z_NO, plan).t().to(wide, copy=True, memory_format=torch.contiguous_format)
    routed = way.add_update(z_NO, u_RN, source_EN, basis_RO, weights, tokens, plan)
    weights_EN = routed.weights_EN if way is operations and not plan.routing.soft else None
    kept = Kept(u_RN, source_EN, basis_RO, weights_EN, routed.chosen_EN)
    sums: tuple[Tensor | None, Tensor | None] = (None, None)
    if plan.records:
        assert routed.shared_EN is not None
        assert routed.weights_EN is not None
        sums = _sums(routed.shared_EN, routed.weights_EN, tokens)
    return z_NO, kept, routed, sums


def _way(device: torch.device) -> Any:
    """Where `add_update` and `backward` come from."""
    named = path() == "triton"
    if not named and (path() != "auto" or device.type != "cuda"):
        return operations
    from lime.method import triton

    return triton if named or triton.installed() else operations


def _project(x_NI: Tensor, weights: Weights, dropout: Dropout | None) -> tuple[Tensor, Tensor | None]:
    """`u`, (R, N), and the logits of a learned router, (E, N), in the routing precision."""
    dtype, wide = x_NI.dtype, routing_dtype(x_NI.dtype)
    projection, router = weights.projection, weights.router
    if dropout is not None:
        u_RN = dropout.project(projection, x_NI).to(wide)
        return u_RN, None if router is None else torch.mm(router.to(dtype), x_NI.t()).to(wide)
    rows = projection if router is None else torch.cat([projection, router.to(projection.dtype)])
    projected = torch.mm(rows.to(dtype), x_NI.t()).to(wide)
    if router is None:
        return projected, None
    return projected[: len(projection)], projected[len(projection) :]


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
    kept: Kept,
    weights: Weights,
    tokens: Tokens,
    plan: Plan,
    dropout: Dropout | None,
    needs: tuple[bool, ...],
    way: Any,
) -> tuple[Tensor | None, ...]:
    """Gradients of `x`, (N, I), and of the tensors of `Weights` up to `router`, in that order."""
    found = way.backward(grad_NO, grad_sum_E, kept, weights, tokens, plan)
    grad_x, grad_projection, grad_router = _project_backward(
        grad_NO, found.projected, x_NI, weights, plan, dropout, needs
    )
    up = weights.up
    return (
        grad_x,
        None,
        None,
        grad_projection,
        torch.mul(found.basis_RO.t(), plan.scale, out=torch.empty_like(up)),
        found.experts_EO.to(weights.experts.dtype),
        None if found.shared_O is None or weights.shared is None else found.shared_O.to(weights.shared.dtype),
        None if found.gamma is None or weights.gamma is None else found.gamma.to(weights.gamma.dtype),
        grad_router,
    )


def _project_backward(
    grad_NO: Tensor,
    grad_projected: Tensor,
    x_NI: Tensor | None,
    weights: Weights,
    plan: Plan,
    dropout: Dropout | None,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the input, of the projection and of a learned router.

    Args:
        grad_projected: of `u` and of the routing's source, (R + E, N).
    """
    dtype, R = weights.weight.dtype, len(weights.projection)
    grad_projected = grad_projected.to(dtype)
    grad_x = grad_projection = grad_router = None
    source = weights.pick(weights.weight, plan, 0) if weights.router is None else weights.router.to(dtype)
    if needs[0]:
        grad_x = torch.mm(grad_NO, weights.weight)
    x_read = x_NI if needs[3] else None
    if dropout is not None:
        grad_projection = dropout.backward(grad_projected, weights.projection, source, x_read, grad_x)
    else:
        if grad_x is not None:
            grad_x.addmm_(grad_projected.t(), torch.cat([weights.projection.to(dtype), source]))
        if x_read is not None:
            grad_projection = torch.mm(grad_projected[:R], x_read).to(weights.projection.dtype)
    if needs[8]:
        assert weights.router is not None
        assert x_NI is not None
        grad_router = torch.mm(grad_projected[R:], x_NI).to(weights.router.dtype)
    return grad_x, grad_projection, grad_router
