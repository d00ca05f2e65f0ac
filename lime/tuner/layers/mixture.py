"""A linear layer under a MoE-PEFT baseline, `out = z + zhat`: the experts as one product on the frozen output."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lime.method.deltas.moe_dora import MoEDoRADelta
from lime.method.modulation import add
from lime.method.once import without_autocast
from lime.method.projected import FrozenAndProjected
from lime.tuner.layers.frozen_linear import frozen_weight
from lime.tuner.layers.parts import Adapter
from lime.tuner.routing.call import TowerCall


def add_mixture(part: Adapter, x: Tensor, z: Tensor, out: Tensor, call: TowerCall | None) -> Tensor:
    """Add the update of a mixture to `out`, (B, T, O); padding keeps exactly `out`.

    Args:
        x: the layer's input, (B, T, I).
        z: its frozen output, (B, T, O).
        call: of its tokens.
    """
    delta = part.delta
    x = x.to(delta.compute_dtype)
    u = F.linear(delta.drop(x), delta.A)
    logits = None if part.router.by_sequence else F.linear(x, part.router.weight)
    left, basis, change = _factors(part, x, u, logits, delta.compute_dtype, call)
    out = out.to(torch.promote_types(out.dtype, u.dtype))
    if change is not None:
        out = out + _product(part.base, z.to(change.dtype)) * change
    return add(out, left, basis)


def fused_mixture(part: Adapter, x: Tensor, dtype: torch.dtype, call: TowerCall | None) -> Tensor:
    """Output of a plain frozen layer under one mixture without dropout, (B, T, O) in `dtype`: `add_mixture` with the
    wide products in `dtype`, and the update added in place to a frozen output that nobody else reads."""
    with without_autocast(x.device.type):
        A, by_token = part.delta.A, not part.router.by_sequence
        rows = torch.cat([A, part.router.weight]) if by_token else A
        z_NO, projected_NP = FrozenAndProjected.apply(x, part.base.weight, part.base.bias, rows, dtype)
        u, logits = projected_NP.view(*x.shape[:-1], -1).split([len(A), len(rows) - len(A)], -1)
        left, basis, change = _factors(part, x, u, logits if by_token else None, dtype, call)
        if change is not None:
            z_NO = torch.addcmul(z_NO, _product(part.base, z_NO), change.flatten(0, -2))
        out_NO: Tensor = z_NO.addmm_(left.flatten(0, -2).to(dtype), basis.to(dtype))
        return out_NO.view(*x.shape[:-1], -1)


def _factors(
    part: Adapter, x: Tensor, u: Tensor, logits: Tensor | None, dtype: torch.dtype, call: TowerCall | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """From `A x` and the router's logits: coefficients (B, T, K) of the basis (K, O), zero at padding; and, of experts
    with magnitudes, the factor of `W0 x` that is added to the frozen output, (B, T, O) in `dtype`."""
    delta: Any = part.delta
    weights = part.router.route(x, logits, part.key, call).to(u.dtype)
    real = None if call is None else call.real(u.dtype)
    left = delta.mix(u if real is None else u * real, weights)
    if not isinstance(delta, MoEDoRADelta):
        return left, delta.basis(), None
    gain_EO = delta.gain(frozen_weight(part.base))
    weights = weights if real is None else weights * real
    return left, delta.gained_basis(gain_EO), weights.to(dtype) @ (gain_EO - 1).to(dtype)


def _product(base: Any, z: Tensor) -> Tensor:
    """`W0 x` from `z = W0 x + b0`."""
    return z if base.bias is None else z - base.bias.to(z.dtype)
