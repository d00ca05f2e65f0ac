"""What an adapted layer adds to its frozen output."""

from __future__ import annotations

import torch
from torch import Tensor

from lime.tuner.layers.linear import LimeLinear


def update_of(layer: LimeLinear, name: str, x: Tensor) -> Tensor:
    """The modulated update `zhat * (P + gamma p_s)` of the adapter `name`, or the weighted sum of a mixture's experts,
    (..., T, O) in float32 or wider. To be called while the tower's call is open.

    Computed by itself, since the difference of two outputs in bf16 would lose a third of it.

    Args:
        x: the layer's whole input, (..., T, I): windows are counted over all its tokens.
    """
    call, tokens = layer._seen(x)
    z = layer.base_layer(tokens)
    zero = torch.zeros_like(z, dtype=torch.promote_types(z.dtype, torch.float32))
    return layer._adapt(name, tokens, z, zero, call).view(*x.shape[:-1], -1)
