"""Decoding with a key-value cache: an adapted layer with few operations, since a few tokens cost what their calls cost.

While tokens are generated the adapter stands still, so what depends on it alone is computed once a generation:

    [u, z_S, zhat_S] = G x + [0, b_S, 0],   G = [A; W_S; basis_S^T A]
    out = z + (basis^T u) * ((P + gamma p_s)^T w)

with S the routing features. A set chosen by `auto` is `{i : l_i >= max l + log theta}` of the logits `l`, and its
renormalised weights are the softmax over it.

Shapes: B batch, T tokens, I inputs, O outputs, R rank, E experts, G = R + 2 E.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lime.method.fused import path
from lime.method.routing import DIVISOR_FLOOR
from lime.method.selection import select
from lime.tuner.fusing import fusible
from lime.tuner.router import Router
from lime.tuner.settings import LimeSettings

if TYPE_CHECKING:
    from lime.tuner.context import ScopeCall
    from lime.tuner.layer import LimeLinear

MOST_TOKENS = 256
"""Of one call. With more, the work outweighs the calls, and the fused function is as fast."""


@dataclass(frozen=True)
class Constants:
    """What a layer computes once a generation.

    Attributes:
        name, active: the adapter, and the layer's choice of adapters at that time.
        tensors, version: the trainable tensors that they come from, and how often these had been written to.
        weight, bias: the frozen layer's.
        dtype: in which the update is computed.
        split: R and 2 E.
        signals_GI, bias_G: rows of `u`, `z_S` and `zhat_S`.
        blend_EQ: from both normalised signals, (2 E), to logits: `[(1 - g) / tau, g / tau]`.
        limit: logits below the largest plus this are left out, with `selection: auto`.
        basis_OR: transposed basis.
        experts_OE: transposed `P + gamma p_s`.
    """

    name: str
    active: Any
    tensors: tuple[Tensor, ...]
    version: int
    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    split: tuple[int, int]
    signals_GI: Tensor
    bias_G: Tensor
    blend_EQ: Tensor
    limit: float | None
    basis_OR: Tensor
    experts_OE: Tensor


def decoded(layer: LimeLinear, x: Tensor) -> Tensor | None:
    """Output of a layer in the middle of a generation, (B, T, O); nothing where it is not in one, or not this way.

    It is where nothing is trained or recorded, tokens are in the cache, and one adapter that could be fused routes each
    token by itself and by its own norm. The call that fills an empty cache forgets the constants of the generation
    before.
    """
    if torch.is_grad_enabled() or layer.training:
        return None
    call = layer.routing_state.call(layer.scope)
    if call is None or not call.past:
        layer.decoding = None
        return None
    known = layer.decoding
    if known is None or known.active != layer._active_adapter or known.version != _version(known.tensors):
        known = layer.decoding = _constants(layer, x)
    unfit = call.recorder is not None or x.numel() > MOST_TOKENS * x.shape[-1] or path() != "auto"
    if known is None or unfit or torch.is_autocast_enabled(x.device.type):
        return None
    return _decode(layer, x, call, known)


def _decode(layer: LimeLinear, x: Tensor, call: ScopeCall, known: Constants) -> Tensor:
    kept = call.kept(x, layer.key, known.dtype)
    z_BTO = F.linear(x, known.weight, known.bias)
    tap_BTG = F.linear(x.to(known.dtype), known.signals_GI, known.bias_G)
    u_BTR, signals = tap_BTG.split_with_sizes(known.split, -1)
    signals = signals.unflatten(-1, (2, -1))
    divisor = signals.abs().amax(-1, keepdim=True).clamp_min_(DIVISOR_FLOOR)
    logits_BTE = F.linear((signals / divisor).flatten(-2), known.blend_EQ)
    if known.limit is not None:
        below = logits_BTE.sub_(logits_BTE.amax(-1, keepdim=True))
        w_BTE = torch.threshold(below, known.limit, -math.inf).softmax(-1)
    else:
        w_BTE = _selected(logits_BTE.softmax(-1), layer.lime_settings[known.name])
    update_BTO = F.linear(u_BTR, known.basis_OR).mul_(F.linear(w_BTE, known.experts_OE))
    return z_BTO.add_(update_BTO if kept is None else update_BTO.mul_(kept))


def _selected(probabilities_BTE: Tensor, settings: LimeSettings) -> Tensor:
    return select(
        probabilities_BTE,
        settings.selection,
        threshold=settings.auto_topk_threshold,
        top_k=settings.top_k,
        max_experts=settings.max_experts,
    )


def _version(tensors: tuple[Tensor, ...]) -> int:
    """How often these were written to; loaded under inference mode they do not count it."""
    return sum(0 if tensor.is_inference() else tensor._version for tensor in tensors)


def _constants(layer: LimeLinear, x: Tensor) -> Constants | None:
    name = fusible(layer, x)
    if name is None:
        return None
    settings, base = layer.lime_settings[name], layer.base_layer
    delta: Any = layer.lime_delta[name]
    if settings.router != "zero" or settings.routing_norm != "slice" or settings.n_gram > 1 or settings.soft:
        return None
    router: Router = layer.lime_router[name]  # type: ignore[assignment]
    dtype = delta.compute_dtype
    A_RI, basis_RO = delta.projection(), delta.basis()
    modulators = layer._modulators(name)
    experts = modulators[0] if len(modulators) == 1 else modulators[0] + modulators[2] * modulators[1]
    frozen_EI = router.pick(base.weight.t()).t().to(dtype)
    signals_GI = torch.cat([A_RI, frozen_EI, router.pick(basis_RO).t() @ A_RI])
    bias_G = signals_GI.new_zeros(len(signals_GI))
    if base.bias is not None:
        rank, E = len(A_RI), settings.num_experts
        bias_G[rank : rank + E] = router.pick(base.bias)
    eye_EE = torch.eye(settings.num_experts, dtype=dtype, device=A_RI.device)
    g, tau, theta = settings.gamma_routing, settings.temperature, settings.auto_topk_threshold
    limit = None
    if settings.selection == "auto" and settings.max_experts is None and theta > 0:
        exact = torch.tensor(math.log(theta), dtype=dtype)
        limit = min(float(torch.nextafter(exact, exact.new_tensor(-math.inf))), -1e-30)  # what equals it stays in
    tensors = (*delta.parameters(), *modulators)
    return Constants(
        name,
        layer._active_adapter,
        tensors,
        _version(tensors),
        base.weight,
        base.bias,
        dtype,
        (len(A_RI), 2 * settings.num_experts),
        signals_GI,
        bias_G,
        torch.cat([eye_EE * ((1 - g) / tau), eye_EE * (g / tau)], -1),
        limit,
        basis_RO.t().to(dtype).contiguous(),
        experts.t().to(dtype).contiguous(),
    )
