"""A linear layer under a MoE-PEFT baseline, `out = z + zhat`: the experts as one product on the frozen output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lime.method.deltas.mixture import MixtureDelta
from lime.method.deltas.moe_dora import MoEDoRADelta
from lime.method.modulation import add
from lime.tuner.mixture_router import MixtureRouter

if TYPE_CHECKING:
    from lime.tuner.layer import LimeLinear


def adapt_by_mixture(layer: LimeLinear, name: str, x: Tensor, z: Tensor, out: Tensor) -> Tensor:
    """Add the update of the mixture `name` to `out`, (B, T, O); padding keeps exactly `out`.

    Args:
        x: the layer's input, (B, T, I).
        z: its frozen output, (B, T, O).
    """
    delta, router = layer.lime_delta[name], layer.lime_router[name]
    assert isinstance(delta, MixtureDelta)
    assert isinstance(router, MixtureRouter)
    call = layer._call()
    x = x.to(delta.compute_dtype)
    u, logits = _products(delta, router, x)
    weights = router.route(x, logits, f"{layer.key}:{name}", call)
    kept = None if call is None else call.kept(x, layer.key, u.dtype)
    if kept is not None:
        u = u * kept
    left = delta.mix(u, weights.to(u.dtype))
    out = out.to(torch.promote_types(out.dtype, u.dtype))
    if not isinstance(delta, MoEDoRADelta):
        return add(out, left, delta.basis())
    base: nn.Linear = layer.get_base_layer()  # type: ignore[assignment]
    gain_EO = delta.gain(layer._frozen_weight())
    # W0 x, from z = W0 x + b0
    product = z.to(gain_EO.dtype) if base.bias is None else z.to(gain_EO.dtype) - base.bias
    weights = weights.to(gain_EO.dtype)
    change = (weights if kept is None else weights * kept) @ (gain_EO - 1)
    return add(out + product * change, left, delta.gained_basis(gain_EO))


def _products(delta: MixtureDelta, router: MixtureRouter, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """`A x`, and by the same product the router's logits, where both read the same input and both train."""
    together = not router.kind.per_sequence and not delta.drops
    if not together or (torch.is_grad_enabled() and not delta.A.requires_grad):
        return F.linear(delta.drop(x), delta.A), None
    u, logits = F.linear(x, torch.cat([delta.A, router.weight])).split([delta.A.shape[0], router.weight.shape[0]], -1)
    return u, logits
