"""The launches of the fused layer's Triton kernels; their torch counterparts are `lime.method.fused.operations`.

Shapes: N tokens, O outputs, R rank, E experts.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lime.method.fused.parts import Gradients, Kept, Plan, Routed, Tokens, Weights
from lime.method.triton import backward_kernels, forward_kernels

TOKENS, OUTPUTS = 32, 128
"""Of one program: the block of the frozen output that it changes."""
WARPS = 8
"""Of the forward kernel: with four, a thread would need twice the registers."""
SMALLEST = 16
"""Least width of a block that is multiplied: experts and ranks are padded to it."""
MOST = 64
"""Experts, or ranks, of one program."""


def add_update(
    z_NO: Tensor, u_RN: Tensor, source_EN: Tensor, basis_RO: Tensor, weights: Weights, tokens: Tokens, plan: Plan
) -> Routed:
    """Route, select and modulate, and add the update to the frozen output in place: one launch.

    Args:
        z_NO: frozen output, contiguous.
        u_RN, source_EN: as in `lime.method.fused.operations.add_update`, contiguous, in float32.
        basis_RO: in any layout.
    """
    how = plan.routing
    (N, width), (E, R) = z_NO.shape, (len(source_EN), len(u_RN))
    hard = how.selection != "dense" and not how.soft
    chosen_EN = torch.empty_like(source_EN, dtype=torch.bool) if hard else None
    shared_EN = torch.empty_like(source_EN) if plan.records else None
    weights_EN = torch.empty_like(source_EN) if plan.records else None
    own_EN = torch.empty_like(source_EN) if plan.shows else None
    grid = (-(-N // TOKENS), -(-width // OUTPUTS))
    with _on(z_NO):
        forward_kernels.add_update[grid](
            z_NO,
            u_RN,
            source_EN,
            basis_RO,
            weights.experts.contiguous(),
            weights.shared,
            weights.gamma,
            weights.features,
            tokens.noise_EN,
            tokens.kept_N,
            tokens.anchor_N,
            None if chosen_EN is None else chosen_EN.view(torch.uint8),
            own_EN,
            shared_EN,
            weights_EN,
            N,
            width,
            E,
            R,
            basis_RO.stride(0),
            basis_RO.stride(1),
            plan.first,
            **routing_constants(plan),
            **selection_constants(plan),
            **blocks(E, R),
            TOKENS=TOKENS,
            OUTPUTS=OUTPUTS,
            PRECISION=precision(z_NO.dtype == torch.float32),
            num_warps=WARPS,
        )
    return Routed(chosen_EN, own_EN, shared_EN, weights_EN)


def backward(
    grad_NO: Tensor, grad_sum_E: Tensor | None, kept: Kept, weights: Weights, tokens: Tokens, plan: Plan
) -> Gradients:
    """Three launches around the two products with the incoming gradient, and one small product."""
    u_RN, source_EN, basis_RO, _, chosen_EN = kept
    (N, width), (E, R) = grad_NO.shape, (len(source_EN), len(u_RN))
    experts_EO = weights.experts.contiguous()
    chosen = None if chosen_EN is None else chosen_EN.view(torch.uint8)
    place = (E, R, basis_RO.stride(0), basis_RO.stride(1), plan.first)
    options = {**routing_constants(plan), **blocks(E, R), "TOKENS": TOKENS}
    left_KN, right_KO = grad_NO.new_empty(E * R, N), grad_NO.new_empty(E * R, width)
    grad_projected = grad_NO.new_empty(R + E, N)
    grad_update_EN = None if plan.routing.learned else torch.empty_like(source_EN)
    grad_basis_RO, grad_experts_EO = u_RN.new_empty(R, width), torch.empty_like(experts_EO)
    grad_shared_O = total_O = grad_picked_RE = grad_gamma = None
    if weights.shared is not None:
        grad_shared_O, total_O = torch.empty_like(weights.shared), u_RN.new_empty(width)
    with _on(grad_NO):
        backward_kernels.write_factors[max(-(-N // TOKENS), -(-width // TOKENS)), 2](
            left_KN,
            right_KO,
            u_RN,
            source_EN,
            basis_RO,
            experts_EO,
            weights.shared,
            weights.gamma,
            weights.features,
            tokens.noise_EN,
            tokens.kept_N,
            chosen,
            N,
            width,
            *place,
            **options,
        )
        grad_left_KN, grad_right_KO = torch.mm(right_KO, grad_NO.t()), torch.mm(left_KN, grad_NO)
        backward_kernels.route_backward[-(-N // TOKENS),](
            grad_projected,
            grad_update_EN,
            grad_left_KN,
            grad_sum_E,
            u_RN,
            source_EN,
            basis_RO,
            weights.features,
            tokens.noise_EN,
            tokens.kept_N,
            chosen,
            N,
            *place,
            **options,
        )
        if grad_update_EN is not None:
            grad_picked_RE = torch.mm(u_RN, grad_update_EN.t())
        backward_kernels.modulate_backward[-(-width // OUTPUTS),](
            grad_basis_RO,
            grad_experts_EO,
            grad_shared_O,
            total_O,
            grad_right_KO,
            grad_picked_RE,
            basis_RO,
            experts_EO,
            weights.shared,
            weights.gamma,
            weights.features,
            width,
            *place,
            EXPERTS=options["EXPERTS"],
            OUTPUTS=OUTPUTS,
        )
    if weights.shared is not None:
        assert total_O is not None
        assert weights.gamma is not None
        grad_gamma = torch.dot(total_O, weights.shared.to(total_O.dtype)).reshape(weights.gamma.shape)
    return Gradients(grad_projected, grad_basis_RO, grad_experts_EO, grad_shared_O, grad_gamma)


def routing_constants(plan: Plan) -> dict[str, Any]:
    """Of a plan's routing, as all kernels take them."""
    how = plan.routing
    return {
        "LEARNED": how.learned,
        "FROZEN_FACTOR": (1 if how.learned else 1 - how.gamma_routing) / how.temperature,
        "UPDATE_FACTOR": how.gamma_routing / how.temperature,
        "SELECTION": how.selection,
    }


def selection_constants(plan: Plan) -> dict[str, Any]:
    """Of a plan's selection, as the forward kernel takes them beside those of its routing."""
    how = plan.routing
    return {
        "SOFT": how.soft and how.selection != "dense",
        "THRESHOLD": how.threshold,
        "TOP_K": min(how.top_k, MOST) if how.selection == "topk" else (how.max_experts or 0),
        "SOFT_TEMPERATURE": how.soft_temperature,
    }


def blocks(experts: int, rank: int) -> dict[str, int]:
    """The widths that hold all experts and ranks."""
    return {"EXPERTS": _padded(experts), "RANK": _padded(rank)}


def precision(full: bool) -> str:
    """Of products on tensor cores: that of float32, or ten bits, more than the eight of bfloat16."""
    return "tf32x3" if full else "tf32"


def _padded(count: int) -> int:
    return max(SMALLEST, 1 << (count - 1).bit_length())


def _on(tensor: Tensor) -> AbstractContextManager[Any]:
    """Launches go to the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
