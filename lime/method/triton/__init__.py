"""The fused layer's own kernels for a GPU, in place of `lime.method.fused.operations`.

In every process the first call of each kind is computed both ways on random numbers of its shapes (`checking`); where
the kernels do not compile, fail or disagree, a warning says so and torch operations act. `LIME_PATH=fused` leaves them
out.

Shapes: N tokens, O outputs, R rank, E experts.
"""

from __future__ import annotations

import functools
import importlib.util
import logging

import torch
from torch import Tensor

from lime.method.fused import operations
from lime.method.fused.parts import Gradients, Kept, Plan, Routed, Tokens, Weights

log = logging.getLogger(__name__)


@functools.cache
def installed() -> bool:
    """Whether Triton is, and can be imported; a torch for CUDA brings it."""
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        importlib.import_module("triton.language")
    except (ImportError, OSError, RuntimeError) as error:
        log.warning("Triton cannot be imported (%s: %s); layers take torch operations", type(error).__name__, error)
        return False
    return True


def add_update(
    z_NO: Tensor, u_RN: Tensor, source_EN: Tensor, basis_RO: Tensor, weights: Weights, tokens: Tokens, plan: Plan
) -> Routed:
    """As `lime.method.fused.operations.add_update`, by one launch.

    Raises:
        RuntimeError: no GPU and no interpreter, or Triton is not installed.
    """
    given = (z_NO, u_RN, source_EN, basis_RO, weights, tokens, plan)
    if not _takes(z_NO, weights, plan):
        return operations.add_update(*given)
    from lime.method.triton import checking, launches

    return launches.add_update(*given) if checking.forward_agrees(*given) else operations.add_update(*given)


def backward(
    grad_NO: Tensor, grad_sum_E: Tensor | None, kept: Kept, weights: Weights, tokens: Tokens, plan: Plan
) -> Gradients:
    """As `lime.method.fused.operations.backward`: three launches around the two products with the incoming gradient.

    Windows and soft masks are left to torch, beside what `add_update` leaves.
    """
    given = (grad_NO, grad_sum_E, kept, weights, tokens, plan)
    by_torch = kept.chosen_EN is None and plan.routing.selection != "dense"  # the forward pass was
    if by_torch or tokens.anchor_N is not None or plan.routing.soft or not _takes(grad_NO, weights, plan):
        return operations.backward(*given)
    from lime.method.triton import checking, launches

    return launches.backward(*given) if checking.backward_agrees(*given) else operations.backward(*given)


def _takes(wide_NO: Tensor, weights: Weights, plan: Plan) -> bool:
    """Whether the kernels take a layer.

    They leave to torch: float64, more than 64 experts or ranks, and `routing_norm: tensor`, whose divisor is one for
    all tokens.
    """
    if not installed():
        raise RuntimeError("the path 'triton' needs the package triton: pip install triton")
    if not wide_NO.is_cuda and not _interpreted():
        raise RuntimeError("the path 'triton' needs a GPU, or TRITON_INTERPRET=1 before triton is first imported")
    from lime.method.triton.launches import MOST

    how = plan.routing
    fits = max(len(weights.experts), len(weights.projection)) <= MOST and len(wide_NO) > 0
    return fits and wide_NO.dtype != torch.float64 and (how.learned or how.norm == "slice")


def _interpreted() -> bool:
    from lime.method.triton.forward_kernels import add_update as kernel

    return not hasattr(kernel, "device_caches")
