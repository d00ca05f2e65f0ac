"""What functions with a hand-written backward pass share: they can be differentiated no further, and say so; and they
choose their dtypes themselves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

REFUSED = (
    "LiME's fused layers have a backward pass written by hand, which cannot be differentiated again; run forward and "
    'backward pass inside lime.method.fused.use("torch")'
)


def differentiable_once(
    backward: Callable[..., tuple[Tensor | None, ...]],
) -> Callable[..., tuple[Tensor | None, ...]]:
    """Of an autograd function: its gradients raise RuntimeError when they are differentiated.

    `torch.autograd.function.once_differentiable` does so too, but only where the incoming gradient itself can be
    differentiated. Else it lets a second derivative come out without this layer's part.
    """

    @functools.wraps(backward)
    def once(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            found = backward(ctx, *gradients)
        if not torch.is_grad_enabled():  # as always, but for `create_graph`
            return found
        refuse: Any = torch._C._functions.DelayedError(REFUSED, len(found))
        refused: tuple[Tensor | None, ...] = refuse(
            *(None if one is None else one.detach().requires_grad_() for one in found)
        )
        return refused

    return once


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Autocast off while inside; nothing to enter where it is off, which saves tens of microseconds a layer."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
