"""Frozen linear layers, however they keep their weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lime.method.deltas.base import LowRankDelta
from lime.tuner.settings import LimeSettings

LINEAR = (nn.Linear, Conv1D)
"""Layers that LiME adapts: `nn.Linear` and kinds derived from it, and GPT-2's `Conv1D`, whose weight is (in, out)."""


class Shape(Protocol):
    """What a router needs to know of the layer it routes: widths, and a weight on its device."""

    @property
    def in_features(self) -> int: ...

    @property
    def out_features(self) -> int: ...

    @property
    def weight(self) -> Tensor: ...


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


def check_fit(layer: str, settings: LimeSettings, base: nn.Linear) -> None:
    """Raise `ValueError` where a layer does not suit the settings, naming the layer: fewer outputs than experts, fewer
    columns or rows than the slice of `slicefine`, or an update without a rank whose rank is to be modulated."""
    if settings.rank_modulation and not issubclass(settings.spec.delta_class(), LowRankDelta):
        raise ValueError(
            f"rank_modulation: the update of {settings.peft} has no rank to modulate in {layer}; leave it off, or take "
            "a type with a rank, as lora"
        )
    if settings.enabled and not settings.spec.is_mixture and settings.num_experts > base.out_features:
        raise ValueError(
            f"num_experts: {settings.num_experts} experts need as many routing features, but {layer} has only "
            f"{base.out_features} outputs; use at most {base.out_features} experts or leave that layer out of "
            "target_modules, or name it in exclude_modules"
        )
    if settings.peft == "slicefine":
        widths = {"columns": base.in_features, "rows": base.out_features}
        for what, width in widths.items():
            if settings.orientation in (what, "both") and settings.r > width:
                raise ValueError(
                    f"r: a slice of {settings.r} {what} does not fit {layer}, which has {width}; use r of at most "
                    f"{width} or leave that layer out of target_modules, or name it in exclude_modules"
                )
