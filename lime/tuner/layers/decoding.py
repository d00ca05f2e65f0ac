"""Decoding with a key-value cache: an adapted layer with few operations, since a few tokens cost what their calls cost.

While tokens are generated the adapter stands still, so what depends on it alone is computed once a generation:

    [u, z_S, zhat_S] = G x + [0, b_S, 0],   G = [A; W_S; basis_S^T A]
    out = z + (basis^T u) * ((P + gamma p_s)^T w)

with S the routing features. Each signal has one feature more, the floor of its norm, to which the blend gives no
weight: so the norm needs no clamping. A set chosen by `auto` is `{i : l_i >= max l + log theta}` of the logits `l`,
and its renormalised weights are the softmax over it.

Shapes: B batch, T tokens, N = B T, I inputs, O outputs, R rank, E experts, D = E + 1, Q = 2 D, G = R + Q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lime.method.fused import path
from lime.method.routing import DIVISOR_FLOOR, routing_dtype
from lime.method.selection import select
from lime.tuner.layers.fused import fusible
from lime.tuner.routing.router import Router
from lime.tuner.settings import LimeSettings

if TYPE_CHECKING:
    from lime.tuner.layers.linear import LimeLinear
    from lime.tuner.routing.call import ScopeCall

MOST_TOKENS = 256
"""Most tokens of one call. With more, the fused function is as fast."""


@dataclass(frozen=True)
class Constants:
    """What a layer computes once a generation.

    Attributes:
        name, active: the adapter, and the layer's choice of adapters at that time.
        tensors, version: the trainable tensors that they come from, and how often these had been written to.
        weight, bias: the frozen layer's.
        dtype: in which the update is computed.
        split, signals: R and Q, and the shape of both signals, (-1, 2, D).
        signals_IG, bias_G: columns of `u`, `z_S` and `zhat_S`.
        blend_QE: from both normalised signals to logits: `[(1 - g) / tau, 0, g / tau, 0]`.
        limit: logits below the largest plus this are left out, with `selection: auto`.
        basis_RO: the basis.
        experts_EO: `P + gamma p_s`.
    """

    name: str
    active: Any
    tensors: tuple[Tensor, ...]
    version: list[int]
    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    split: tuple[int, int]
    signals: tuple[int, int, int]
    signals_IG: Tensor
    bias_G: Tensor
    blend_QE: Tensor
    limit: float | None
    basis_RO: Tensor
    experts_EO: Tensor


def decoded(layer: LimeLinear, x: Tensor, call: ScopeCall) -> Tensor | None:
    """Output of a layer in the middle of a generation, (B, T, O); nothing where it is not in one, or not this way.

    It is where nothing is trained or recorded, a cache was passed in, and one adapter that could be fused routes each
    token by itself and by its own norm. A call with an empty cache forgets the constants of the generation before.
    """
    if torch.is_grad_enabled() or layer.training:
        return None
    if not call.past:
        layer.decoding = None
        if not call.cached or x.numel() > MOST_TOKENS * x.shape[-1]:
            return None
    known = layer.decoding
    if known is None or known.active != layer._active_adapter or known.version != _version(known.tensors):
        known = layer.decoding = _constants(layer, x)
    unfit = call.recorder is not None or x.numel() > MOST_TOKENS * x.shape[-1] or path() != "auto"
    if known is None or unfit or torch.is_autocast_enabled(x.device.type):
        return None
    return _decode(layer, x, call, known)


def _decode(layer: LimeLinear, x: Tensor, call: ScopeCall, known: Constants) -> Tensor:
    """Two-dimensional operations, in place where that is possible: with few tokens each costs about a microsecond,
    whatever it computes."""
    kept = call.kept_where_padded(known.dtype)
    x_NI = x.reshape(-1, x.shape[-1])
    z_NO = F.linear(x_NI, known.weight, known.bias)
    taps_NG = torch.addmm(known.bias_G, x_NI.to(known.dtype), known.signals_IG)
    u_NR, signals_NQ = taps_NG.split_with_sizes(known.split, 1)
    signals_N2D = signals_NQ.view(known.signals)
    signals_N2D = signals_N2D / torch.linalg.vector_norm(signals_N2D, math.inf, -1, True)
    logits_NE = torch.mm(signals_N2D.view(signals_NQ.shape), known.blend_QE)
    if known.limit is not None:
        below_NE = logits_NE.sub_(logits_NE.amax(1, True))
        w_NE = torch.threshold(below_NE, known.limit, -math.inf).softmax(1)
    else:
        w_NE = _selected(logits_NE.softmax(1), layer.lime_settings[known.name])
    update_NO = torch.mm(u_NR, known.basis_RO).mul_(torch.mm(w_NE, known.experts_EO))
    if kept is not None:
        update_NO.mul_(kept.view(-1, 1))
    return z_NO.add_(update_NO).view(*x.shape[:-1], z_NO.shape[1])


def _selected(probabilities_NE: Tensor, settings: LimeSettings) -> Tensor:
    return select(
        probabilities_NE,
        settings.selection,
        threshold=settings.auto_topk_threshold,
        top_k=settings.top_k,
        max_experts=settings.max_experts,
    )


def _version(tensors: tuple[Tensor, ...]) -> list[int]:
    """How often these were written to."""
    return [tensor._version for tensor in tensors]


def _constants(layer: LimeLinear, x: Tensor) -> Constants | None:
    name = fusible(layer, x)
    if name is None or getattr(layer, "_is_replica", False):  # replicas live for one pass
        return None
    settings, base = layer.lime_settings[name], layer.base_layer
    delta: Any = layer.lime_delta[name]
    if settings.router != "zero" or settings.routing_norm != "slice" or settings.n_gram > 1 or settings.soft:
        return None
    router: Router = layer.lime_router[name]  # type: ignore[assignment]
    dtype = routing_dtype(delta.compute_dtype)
    A_RI, basis_RO = delta.projection().to(dtype), delta.basis().to(dtype)
    modulators = tuple(one.to(dtype) for one in layer._modulators(name))
    experts = modulators[0] if len(modulators) == 1 else modulators[0] + modulators[2] * modulators[1]
    frozen_EI = router.pick(base.weight.t()).t().to(dtype)
    rank, E = len(A_RI), settings.num_experts
    zero_1I = A_RI.new_zeros(1, A_RI.shape[1])
    signals_GI = torch.cat([A_RI, frozen_EI, zero_1I, router.pick(basis_RO).t() @ A_RI, zero_1I])
    bias_G = signals_GI.new_zeros(len(signals_GI))
    bias_G[[rank + E, -1]] = DIVISOR_FLOOR
    if base.bias is not None:
        bias_G[rank : rank + E] = router.pick(base.bias)
    blend_DE = torch.eye(E + 1, E, dtype=dtype, device=A_RI.device)
    g, tau, theta = settings.gamma_routing, settings.temperature, settings.auto_topk_threshold
    limit = None
    if settings.selection == "auto" and settings.max_experts is None and theta > 0:
        exact = torch.tensor(math.log(theta), dtype=dtype)
        limit = min(float(torch.nextafter(exact, exact.new_tensor(-math.inf))), -1e-30)  # what equals it stays in
    tensors = (*delta.parameters(), *layer._modulators(name))
    counted = tuple(tensor for tensor in tensors if not tensor.is_inference())  # the others have no count
    return Constants(
        name,
        layer._active_adapter,
        counted,
        _version(counted),
        base.weight,
        base.bias,
        dtype,
        (rank, 2 * E + 2),
        (-1, 2, E + 1),
        signals_GI.t().contiguous(),
        bias_G,
        torch.cat([blend_DE * ((1 - g) / tau), blend_DE * (g / tau)]),
        limit,
        basis_RO.contiguous(),
        experts,
    )
