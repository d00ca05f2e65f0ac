"""Frozen linear layers, however they keep their weight."""

from __future__ import annotations

from dataclasses import dataclass

from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

LINEAR = (nn.Linear, Conv1D)
"""Layers that LiME adapts: `nn.Linear` and kinds derived from it, and GPT-2's `Conv1D`, whose weight is (in, out)."""


@dataclass(frozen=True)
class LinearShape:
    """Widths of a layer, and its weight, of which device and dtype are read."""

    in_features: int
    out_features: int
    weight: Tensor


def shape_of(base: nn.Module) -> nn.Linear:
    """What update and router read of a layer: the layer itself, or a stand-in under the same names."""
    if isinstance(base, Conv1D):
        d_in, d_out = base.weight.shape
        return LinearShape(d_in, d_out, base.weight)  # type: ignore[return-value]
    return base  # type: ignore[return-value]


def frozen_weight(base: nn.Module) -> Tensor:
    """The frozen weight (d_out, d_in) in floating point, where the layer is quantised too."""
    if isinstance(base, Conv1D):
        return base.weight.t().contiguous()  # so that its norms round as those of the sum with an update do
    if type(base) is nn.Linear and type(base.weight) is nn.Parameter:
        return base.weight
    weight: Tensor = dequantize_module_weight(base)
    return weight
