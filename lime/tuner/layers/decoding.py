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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lime.method.routing import DIVISOR_FLOOR, routing_dtype
from lime.method.selection import log_threshold
from lime.tuner.layers.parts import Adapter
from lime.tuner.routing.call import TowerCall
from lime.tuner.routing.router import Router
from lime.tuner.settings import LimeSettings

MOST_TOKENS = 256
"""Most tokens of one call. With more, the fused function is as fast."""


@dataclass(frozen=True)
class Constants:
    """What a layer computes once a generation.

    Attributes:
        router, active: the adapter's router, and the layer's choice of adapters at that time.
        trained, version: the trainable tensors that they come from, and how often these had been written to (those
            made in inference mode have no count).
        weight, bias: the frozen layer's.
        dtype: in which the update is computed.
        split, signals: R and Q, and the shape of both signals, (-1, 2, D).
        signals_IG, bias_G: columns of `u`, `z_S` and `zhat_S`.
        blend_QE: from both normalised signals to logits: `[(1 - g) / tau, 0, g / tau, 0]`.
        limit: logits below the largest plus this are left out, with `selection: auto`.
        basis_RO: the basis.
        experts_EO: `P + gamma p_s`.
    """

    router: Router
    active: Any
    trained: tuple[Tensor, ...]
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

    def hold(self, active: Any) -> bool:
        """Whether the layer has the same choice of adapters and their tensors are unchanged."""
        return self.active == active and self.version == [one._version for one in self.trained]


def decode(constants: Constants, x: Tensor, call: TowerCall) -> Tensor:
    """Output of a layer within a generation, (B, T, O): two-dimensional operations, in place where that is possible.
    With few tokens each costs about a microsecond, whatever it computes."""
    real = call.real_where_padded(constants.dtype)
    x_NI = x.reshape(-1, x.shape[-1])
    z_NO = F.linear(x_NI, constants.weight, constants.bias)
    signals_NG = torch.addmm(constants.bias_G, x_NI.to(constants.dtype), constants.signals_IG)
    u_NR, signals_NQ = signals_NG.split_with_sizes(constants.split, 1)
    signals_N2D = signals_NQ.view(constants.signals)
    signals_N2D = signals_N2D / torch.linalg.vector_norm(signals_N2D, math.inf, -1, True)
    logits_NE = torch.mm(signals_N2D.view(signals_NQ.shape), constants.blend_QE)
    if constants.limit is not None:
        below_NE = logits_NE.sub_(logits_NE.amax(1, True))
        w_NE = torch.threshold(below_NE, constants.limit, -math.inf).softmax(1)
    else:
        w_NE = constants.router.select(logits_NE.softmax(1))
    update_NO = torch.mm(u_NR, constants.basis_RO).mul_(torch.mm(w_NE, constants.experts_EO))
    if real is not None:
        update_NO.mul_(real.view(-1, 1))
    return z_NO.add_(update_NO).view(*x.shape[:-1], z_NO.shape[1])


def is_decodable(settings: LimeSettings) -> bool:
    """Whether this way computes an adapter that the fused function computes: LiME that routes each token by itself, by
    the norm of its own features and with a hard choice."""
    zero = settings.router == "zero" and not settings.spec.is_mixture
    return zero and settings.routing_norm == "slice" and settings.n_gram == 1 and not settings.soft


def constants_of(part: Adapter, active: Any) -> Constants:
    """The constants of an adapter that `is_decodable`.

    Args:
        active: the layer's choice of adapters.
    """
    settings, base, delta, router = part.settings, part.base, part.delta, part.router
    dtype = routing_dtype(delta.compute_dtype)
    A_RI, basis_RO = delta.projection().to(dtype), delta.basis().to(dtype)
    experts_EO, *always = (one.to(dtype) for one in part.modulators)
    if always:
        experts_EO = experts_EO + always[1] * always[0]
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
    by_limit = settings.selection == "auto" and settings.max_experts is None and theta > 0
    limit = log_threshold(theta, dtype) if by_limit else None
    trained = tuple(one for one in (*delta.parameters(), *part.modulators) if not one.is_inference())
    return Constants(
        router,
        active,
        trained,
        [one._version for one in trained],
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
        experts_EO,
    )
