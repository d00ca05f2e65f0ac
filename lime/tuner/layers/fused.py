"""What an adapted layer hands to the fused function (`lime.method.fused`), and what it takes back."""

from __future__ import annotations

import torch
from torch import Tensor

from lime.method.fused.function import Fused, Plan, Tokens, Weights
from lime.method.once import without_autocast
from lime.method.routing import jitter_factors, routing_dtype
from lime.tuner.layers.parts import Adapter
from lime.tuner.routing.call import TowerCall


def fused_forward(part: Adapter, x: Tensor, dtype: torch.dtype, call: TowerCall | None) -> Tensor:
    """Output of a layer with one adapter, (B, T, O) in `dtype`, where `LimeLinear.choose` says so.

    Args:
        dtype: of the wide products.
    """
    settings, base, router = part.settings, part.base, part.router
    experts_EO, *always = part.modulators
    shared_O, gamma = always or (None, None)
    wide = routing_dtype(dtype)
    count = x.shape[:-1].numel()

    real = None if call is None else call.real(wide)
    anchor = considered = noise = None
    if settings.n_gram > 1:
        windows = call or TowerCall(part.key)
        anchor, is_anchor = windows.anchor_index(part.key, x, settings.n_gram, settings.window_anchor)
        if settings.routing_norm == "tensor" and call is not None:
            considered = is_anchor.to(wide)
    if part.training and settings.jitter_noise:
        noise = jitter_factors((settings.num_experts, count), settings.jitter_noise, wide, x.device)

    records = call is not None and call.recorder is not None
    caches = call is not None and call.wants_decisions(settings.n_gram, settings.window_anchor)
    up, scale = part.delta.up_and_scale()
    plan = Plan(
        router.plan,
        router.start,
        part.delta.dropout if part.delta.drops else 0.0,
        records,
        caches,
        scale,
        None if x.dtype == base.weight.dtype == dtype else dtype,
    )
    weights = Weights(
        base.weight,
        base.bias,
        part.delta.projection(),
        up,
        experts_EO,
        shared_O,
        gamma,
        router.weight if settings.router == "learned" else None,
        router.features,
    )
    tokens = Tokens(noise, None if real is None else real.view(-1), anchor, considered)
    with without_autocast(x.device.type):
        out, sum_E, statistics, own_EN = Fused.apply(x, *weights, *tokens, plan)
    if records:
        call.record_sums(part.key, sum_E, statistics, count)  # type: ignore[union-attr]
    if caches:
        call.to_cache[part.key] = own_EN.t().reshape(*x.shape[:-1], settings.num_experts)  # type: ignore[union-attr]
    return out
