"""What frozen outputs are like on training rows, for routing that reads it: one pass before training, without gradient.

Shapes: N tokens, O outputs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lime.tuner.layers.base import LimeLayer
from lime.tuner.routing.router import Router

log = logging.getLogger(__name__)


class _Moments:
    """Mean and sum of squared deviations of each output of a layer over real tokens, gathered call by call."""

    def __init__(self) -> None:
        self.count = 0
        self.mean_O = self.squares_O = torch.zeros(())

    def add(self, z_NO: Tensor) -> None:
        if not (count := len(z_NO)):
            return
        z_NO = z_NO.to(torch.promote_types(z_NO.dtype, torch.float32))
        mean_O = z_NO.mean(0)
        squares_O = (z_NO - mean_O).square().sum(0)
        mean_O, squares_O = mean_O.cpu().double(), squares_O.cpu().double()
        step_O, share = mean_O - self.mean_O, count / (self.count + count)
        self.squares_O = self.squares_O + squares_O + step_O.square() * self.count * share
        self.mean_O = self.mean_O + step_O * share
        self.count += count


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> None:
    """Show training rows to the frozen layers of a model, for adapters whose `routing_norm` is `scaled` or `standard`
    or whose `feature_slice` is `variance`: they keep mean and scale of their routing features, and which features these
    are, as tensors of the adapter.

    Adapters that have seen rows, or read none, stay as they are; where there is no other, no batch is drawn.

    Args:
        batches: arguments of the model; about a hundred rows in all will do. Padding is left out by their masks.
    """
    waiting = [(layer, routers) for layer in model.modules() if (routers := _waiting(layer))]
    if not waiting:
        return
    moments = [_Moments() for _ in waiting]
    device = next(model.parameters()).device
    with _frozen(model):
        handles = [
            layer.get_base_layer().register_forward_hook(partial(_see, layer, seen))  # type: ignore[operator]
            for (layer, _), seen in zip(waiting, moments, strict=True)
        ]
        try:
            for batch in batches:
                model(**{key: one.to(device) if isinstance(one, Tensor) else one for key, one in batch.items()})
        finally:
            for handle in handles:
                handle.remove()
    for (layer, routers), seen in zip(waiting, moments, strict=True):
        if not seen.count:
            raise ValueError(
                f"{layer.key}: no token of the calibration rows reaches it; give rows that do, or leave it out"
            )
        for router in routers:
            router.calibrate(seen.mean_O, seen.squares_O / seen.count)
    tokens = max(seen.count for seen in moments)
    log.info("routing features of %d layers calibrated on up to %s tokens", len(waiting), f"{tokens:,}")


def _waiting(layer: nn.Module) -> list[Router]:
    routers: Any = layer.lime_router.values() if isinstance(layer, LimeLayer) else ()
    return [router for router in routers if not router.calibrated]


def _see(layer: Any, seen: _Moments, _: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
    call, tokens = layer.open_call().seen(layer.key, args[0])
    real, z_NO = call.real(torch.float32), z.reshape(-1, z.shape[-1])
    seen.add(z_NO if real is None else z_NO[real.expand(*tokens.shape[:-1], 1).flatten() > 0])


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Without adapters and in evaluation mode; afterwards each module is as it was."""
    modules = list(model.modules())
    training = [module.training for module in modules]
    tuned = [module for module in modules if isinstance(module, BaseTunerLayer)]
    disabled = [layer._disable_adapters for layer in tuned]
    try:
        model.eval()
        for layer in tuned:
            layer._disable_adapters = True
        yield
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.training = mode
        for layer, off in zip(tuned, disabled, strict=True):
            layer._disable_adapters = off
