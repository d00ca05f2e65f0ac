"""The fused layer's own kernels on a GPU (Triton), and when they apply. Their torch counterparts, which compute the same,
are in `lime.method.fused.function`.

Shapes: N tokens, O outputs, R rank, E experts.
"""

from __future__ import annotations

import functools
import importlib.util
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lime.method.fused import path

if TYPE_CHECKING:
    from lime.method.fused.function import Plan, Tokens, Weights

TOKENS, OUTPUTS = 32, 128
"""Of one program: the block of the frozen output that it changes."""
SMALLEST = 16
"""Least width of a block that is multiplied: experts and ranks are padded to it."""
MOST = 64
"""Experts, or ranks, of one program."""


@functools.cache
def installed() -> bool:
    """Whether Triton is; a torch for CUDA brings it."""
    return importlib.util.find_spec("triton") is not None


def apply(z_NO: Tensor, rank: int, weights: Weights, plan: Plan) -> bool:
    """Whether the kernels take this layer.

    They leave to torch: float64, more than 64 experts or ranks, and `routing_norm: tensor`, whose divisor is one for all
    tokens. Under the path `auto` they run on CUDA alone.

    Raises:
        RuntimeError: the path is `triton`, which cannot run here.
    """
    if path() == "fused" or (path() != "triton" and not (z_NO.is_cuda and installed())):
        return False
    if not installed():
        raise RuntimeError("the path 'triton' needs the package triton: pip install triton")
    if not z_NO.is_cuda and not _interpreted():
        raise RuntimeError("the path 'triton' needs a GPU, or TRITON_INTERPRET=1 before triton is first imported")
    how = plan.routing
    fits = max(len(weights.experts), rank) <= MOST and len(z_NO) > 0
    return fits and z_NO.dtype != torch.float64 and (how.learned or how.norm == "slice")


def _interpreted() -> bool:
    from lime.method.fused import triton_kernels

    return not hasattr(triton_kernels.add_update, "device_caches")


class Routed(NamedTuple):
    """What the routing of a forward pass leaves, each (E, N).

    Attributes:
        chosen_EN: the hard set, boolean; absent where all experts take part.
        own_EN: probabilities before windows; where asked for.
        shared_EN, weights_EN: probabilities after windows, and weights after selection; where asked for.
    """

    chosen_EN: Tensor | None
    own_EN: Tensor | None
    shared_EN: Tensor | None
    weights_EN: Tensor | None


def add_update(
    z_NO: Tensor, u_RN: Tensor, source_EN: Tensor, basis_RO: Tensor, weights: Weights, tokens: Tokens, plan: Plan
) -> Routed:
    """Route, select and modulate, and add the update to the frozen output in place; one launch.

    Args:
        z_NO: frozen output, contiguous.
        u_RN, source_EN: as in `lime.method.fused.function.State`, contiguous, in float32.
        basis_RO: in any layout.
    """
    from lime.method.fused.triton_kernels import add_update as kernel

    how = plan.routing
    (N, O), (E, R) = z_NO.shape, (len(source_EN), len(u_RN))
    hard = how.selection != "dense" and not how.soft
    chosen_EN = torch.empty_like(source_EN, dtype=torch.bool) if hard else None
    shared_EN = torch.empty_like(source_EN) if plan.records else None
    weights_EN = torch.empty_like(source_EN) if plan.records else None
    own_EN = torch.empty_like(source_EN) if plan.shows else None
    grid = (-(-N // TOKENS), -(-O // OUTPUTS))
    with _on(z_NO):
        kernel[grid](
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
            O,
            E,
            R,
            basis_RO.stride(0),
            basis_RO.stride(1),
            plan.first,
            **routing_options(plan),
            **_blocks(E, R),
            TOKENS=TOKENS,
            OUTPUTS=OUTPUTS,
            PRECISION="tf32x3" if z_NO.dtype == torch.float32 else "tf32",
        )
    return Routed(chosen_EN, own_EN, shared_EN, weights_EN)


def routing_options(plan: Plan) -> dict[str, Any]:
    """The constants of a plan's routing, as the kernels take them."""
    how = plan.routing
    return {
        "LEARNED": how.learned,
        "FROZEN_FACTOR": (1 if how.learned else 1 - how.gamma_routing) / how.temperature,
        "UPDATE_FACTOR": how.gamma_routing / how.temperature,
        "SELECTION": how.selection,
        "SOFT": how.soft and how.selection != "dense",
        "THRESHOLD": how.threshold,
        "TOP_K": how.top_k if how.selection == "topk" else (how.max_experts or 0),
        "SOFT_TEMPERATURE": how.soft_temperature,
    }


def _blocks(experts: int, rank: int) -> dict[str, int]:
    return {"EXPERTS": _padded(experts), "RANK": _padded(rank)}


def _padded(count: int) -> int:
    return max(SMALLEST, 1 << (count - 1).bit_length())


def _on(tensor: Tensor) -> AbstractContextManager[Any]:
    """Launches go to the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
