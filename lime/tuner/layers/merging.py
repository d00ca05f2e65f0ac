"""Merging types without LiME into the frozen weight: their update is a fixed matrix, `W = mag (W0 + Delta)`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lime.method.deltas.base import LowRankDelta
from lime.tuner.layers.base import LimeLayer
from lime.tuner.layers.frozen_linear import frozen_weight
from lime.tuner.layers.parts import Adapter


@torch.no_grad()
def change_of_weight(adapter: Adapter) -> Tensor:
    """What an adapter adds to the frozen weight, (d_out, d_in), in the adapter's dtype."""
    delta = adapter.delta
    assert isinstance(delta, LowRankDelta)
    change_OI = delta.basis().t() @ delta.projection()
    if not delta.reads_weight:
        return change_OI
    weight_OI = frozen_weight(adapter.base).to(change_OI.dtype)
    return delta.gain(weight_OI).unsqueeze(-1) * (weight_OI + change_OI) - weight_OI


@torch.no_grad()
def merge(layer: LimeLayer, adapters: dict[str, Adapter], safe_merge: bool) -> None:
    """Add the adapters' updates to the frozen weight, and remember them, so that they can be taken off again.

    Raises:
        ValueError: a frozen weight that is not a plain one, or, with `safe_merge`, a sum that is not finite.
    """
    base = layer.get_base_layer()
    for name, adapter in adapters.items():
        weight = _plain_weight(layer.key, base)
        change_OI = change_of_weight(adapter)
        before = weight.detach().clone()
        change = change_OI.t() if isinstance(base, Conv1D) else change_OI
        merged = (weight.to(change.dtype) + change).to(weight.dtype)
        if safe_merge and not merged.isfinite().all():
            raise ValueError(
                f"{layer.key}: the weight merged with adapter {name!r} is not finite; it is left as it was"
            )
        weight.copy_(merged)
        layer.merged_adapters.append(name)
        layer.unmerged_weights.append(before)


@torch.no_grad()
def unmerge(layer: LimeLayer) -> None:
    """The frozen weight as it was, bit for bit."""
    if layer.merged_adapters:
        _plain_weight(layer.key, layer.get_base_layer()).copy_(layer.unmerged_weights[0])
    layer.merged_adapters.clear()
    layer.unmerged_weights.clear()


def _plain_weight(key: str, base: nn.Module) -> Tensor:
    if not isinstance(base, Conv1D) and (type(base) is not nn.Linear or type(base.weight) is not nn.Parameter):
        raise ValueError(
            f"{key}: its frozen weight is kept by {type(base).__name__}, into which no update can be merged; load the "
            "base model unquantised to merge"
        )
    weight: Tensor = base.weight
    return weight
