"""When a layer under a MoE-PEFT baseline takes the fused way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from lime.method.fused import BY_FUNCTION, path
from lime.tuner.layers.fused import _wide_dtype, is_plain, is_transformed
from lime.tuner.layers.mixture import fused_mixture
from lime.tuner.routing.call import ScopeCall

if TYPE_CHECKING:
    from lime.tuner.layers.linear import LimeLinear


def through_mixture(layer: LimeLinear, x: Tensor, call: ScopeCall | None) -> Tensor | None:
    """Output of a layer by `fused_mixture`, where that applies; else nothing, and differentiable torch is left to act:

    - the frozen layer is more than its product: quantised, sharded, reparametrised, hooked or trained itself;
    - several adapters act at once, or one that is no mixture;
    - dropout acts;
    - the layer is compiled or traced, or transformed by `torch.func`.
    """
    if path() not in BY_FUNCTION or is_transformed():
        return None
    names = [name for name in layer.active_adapters if name in layer.lime_delta]
    if len(names) != 1 or not layer.lime_settings[names[0]].spec.is_mixture:
        return None
    if layer.lime_delta[names[0]].drops or not is_plain(layer.base_layer):
        return None
    dtype = _wide_dtype(x, layer.base_layer.weight)
    return None if dtype is None else fused_mixture(layer, names[0], x, dtype, call)
