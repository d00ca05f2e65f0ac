"""A linear layer under a MoE-PEFT baseline, `out = z + zhat`: the experts as one product on the frozen output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lime.method.deltas.mixture import MixtureDelta
from lime.method.deltas.moe_dora import MoEDoRADelta
from lime.method.modulation import add
from lime.method.taps import FrozenWithTaps
from lime.tuner.routing.call import ScopeCall
from lime.tuner.routing.mixture import MixtureRouter

if TYPE_CHECKING:
    from lime.tuner.layers.linear import LimeLinear


def parts(layer: LimeLinear, name: str) -> tuple[MixtureDelta, MixtureRouter]:
    """The update and the router of the mixture `name`."""
    delta, router = layer.lime_delta[name], layer.lime_router[name]
    assert isinstance(delta, MixtureDelta)
    assert isinstance(router, MixtureRouter)
    return delta, router


def adapt_by_mixture(layer: LimeLinear, name: str, x: Tensor, z: Tensor, out: Tensor, call: ScopeCall | None) -> Tensor:
    """Add the update of the mixture `name` to `out`, (B, T, O); padding keeps exactly `out`.

    Args:
        x: the layer's input, (B, T, I).
        z: its frozen output, (B, T, O).
        call: of its tokens.
    """
    delta, router = parts(layer, name)
    x = x.to(delta.compute_dtype)
    u, logits = F.linear(delta.drop(x), delta.A), None
    if not router.by_sequence:
        logits = F.linear(x, router.weight)
    left, weights = _coefficients(layer, name, x, u, logits, call)
    out = out.to(torch.promote_types(out.dtype, u.dtype))
    if not isinstance(delta, MoEDoRADelta):
        return add(out, left, delta.basis())
    gain_EO = delta.gain(layer._frozen_weight())
    change = weights.to(gain_EO.dtype) @ (gain_EO - 1)
    return add(out + _product(layer, z.to(gain_EO.dtype)) * change, left, delta.gained_basis(gain_EO))


def fused_mixture(layer: LimeLinear, name: str, x: Tensor, dtype: torch.dtype, call: ScopeCall | None) -> Tensor:
    """Output of a plain frozen layer under the mixture `name` alone and without dropout, (B, T, O) in `dtype`: the same
    as `adapt_by_mixture`, with the wide products in `dtype` and the update added in place.
    """
    delta, router = parts(layer, name)
    base = layer.get_base_layer()
    own = len(delta.A)
    with torch.autocast(x.device.type, enabled=False):
        rows = delta.A if router.by_sequence else torch.cat([delta.A, router.weight])
        z_NO, taps_NP = FrozenWithTaps.apply(x, base.weight, base.bias, rows, dtype)
        u, logits = taps_NP.view(*x.shape[:-1], -1).split([own, len(rows) - own], -1)
        left, weights = _coefficients(layer, name, x, u, None if router.by_sequence else logits, call)
        basis = delta.basis()
        if isinstance(delta, MoEDoRADelta):
            gain_EO = delta.gain(layer._frozen_weight())
            change_NO = weights.flatten(0, -2).to(dtype) @ (gain_EO - 1).to(dtype)
            z_NO, basis = torch.addcmul(z_NO, _product(layer, z_NO), change_NO), delta.gained_basis(gain_EO)
        out_NO: Tensor = z_NO.addmm_(left.flatten(0, -2).to(dtype), basis.to(dtype))
        return out_NO.view(*x.shape[:-1], -1)


def _coefficients(
    layer: LimeLinear, name: str, x: Tensor, u: Tensor, logits: Tensor | None, call: ScopeCall | None
) -> tuple[Tensor, Tensor]:
    """Coefficients of the update's basis, (B, T, K), and expert weights, (B, T, E), from `A x` and the router's logits;
    zero at padding."""
    delta, router = parts(layer, name)
    weights = router.route(x, logits, f"{layer.key}:{name}", call).to(u.dtype)
    kept = None if call is None else call.kept(u.dtype)
    if kept is None:
        return delta.mix(u, weights), weights
    return delta.mix(u * kept, weights), weights * kept


def _product(layer: LimeLinear, z: Tensor) -> Tensor:
    """`W0 x` from `z = W0 x + b0`."""
    base: nn.Linear = layer.get_base_layer()  # type: ignore[assignment]
    return z if base.bias is None else z - base.bias.to(z.dtype)
