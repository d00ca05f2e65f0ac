"""Zero-parameter routing (Eq. 3) and its learned ablation: from signals to probabilities.

Shapes: B batch, T tokens, I input width, O output width, E experts. Leading dimensions may be any; `BT`
    stands for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

DIVISOR_FLOOR = 1e-6
"""Every norm clamps its divisor from below at this value."""
LEAST_SHARE = 0.03
"""In the gradient, the update's divisor is at least this share of the frozen signal's."""


@dataclass(frozen=True)
class RoutingPlan:
    """How a layer routes; the options of the same name in `lime.tuner.LimeSettings`.

    Attributes:
        learned: logits come from a learned router, not from the two signals.
        norm: `slice`, `token` or `tensor` (`divisor`).
    """

    learned: bool = False
    gamma_routing: float = 0.7
    temperature: float = 0.5
    norm: str = "slice"
    selection: str = "auto"
    threshold: float = 0.7
    top_k: int = 2
    max_experts: int | None = None
    soft: bool = False
    soft_temperature: float = 0.5


def routing_dtype(dtype: torch.dtype) -> torch.dtype:
    """Routing is computed in float32, or in float64 where the signal is."""
    return torch.promote_types(dtype, torch.float32)


def feature_start(feature_slice: str, num_experts: int, width: int) -> int:
    """First of the `num_experts` consecutive features of a `leading`, `trailing` or `central` slice of
    `width` features."""
    starts = {"leading": 0, "trailing": width - num_experts, "central": (width - num_experts) // 2}
    if feature_slice not in starts:
        raise ValueError(f"feature_slice: expected one of {', '.join(starts)}, got {feature_slice!r}")
    return starts[feature_slice]


def random_features(num_experts: int, width: int, seed: int) -> Tensor:
    """Indices of `num_experts` distinct features out of `width`, drawn once from `seed`; int64, shape
    (E,)."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randperm(width, generator=generator)[:num_experts]


def pick(signal_BTO: Tensor, features: int | Tensor, num_experts: int) -> Tensor:
    """The E routing features of a signal, in the routing precision; shape (B, T, E).

    Args:
        features: first feature of a consecutive slice, or the indices of random features, shape (E,).
    """
    if isinstance(features, int):
        picked_BTE = signal_BTO.narrow(-1, features, num_experts)
    else:
        picked_BTE = signal_BTO.index_select(-1, features)
    return picked_BTE.to(routing_dtype(signal_BTO.dtype))


def divisor(
    picked_BTE: Tensor,
    norm: str,
    signal_BTO: Tensor | None = None,
    considered_BT1: Tensor | None = None,
    *,
    stacked: bool = False,
) -> Tensor:
    """What the picked features of a signal are divided by, at least `DIVISOR_FLOOR`; shape (B, T, 1), or () for
    `tensor`.

    Args:
        norm: `slice`, largest absolute value among the picked features of each token; `token`, of the whole
            vector of each token; `tensor`, of the picked features of the whole tensor.
        signal_BTO: the whole vectors; needed by `token`.
        considered_BT1: tokens that count in the maximum of `tensor`; all when absent.
        stacked: `picked` holds both signals, experts before tokens, (2, E, N), and `considered` is (N,); the result is
            (2, 1, N), or (2, 1, 1) for `tensor`. The fused function's layout: along tokens that lie next to each
            other in memory a maximum over a few experts is a vector operation.

    Source: Eq. 3; `tensor` is the authors' code.
    """
    if norm == "slice":
        largest = picked_BTE.abs().amax(1 if stacked else -1, keepdim=True)
    elif norm == "token":
        assert signal_BTO is not None
        largest = signal_BTO.abs().amax(-1, keepdim=True).to(picked_BTE.dtype)
    elif norm == "tensor":
        magnitude_BTE = picked_BTE.abs()
        if considered_BT1 is not None:
            magnitude_BTE = magnitude_BTE.masked_fill(~considered_BT1.bool(), 0.0)
        largest = magnitude_BTE.amax((1, 2), keepdim=True) if stacked else magnitude_BTE.amax()
    else:
        raise ValueError(f"routing_norm: expected one of slice, token, tensor, got {norm!r}")
    return largest.clamp_min(DIVISOR_FLOOR)


def normalise(
    picked_BTE: Tensor,
    norm: str,
    signal_BTO: Tensor | None = None,
    considered_BT1: Tensor | None = None,
    least: Tensor | None = None,
) -> Tensor:
    """Divide the picked features by their norm; shape (B, T, E). The gradient is bounded, see `gradient_divisor`.

    The other arguments are as in `divisor`.

    Args:
        least: divisor of the frozen signal, where `picked` is the update's.
    """
    by = divisor(picked_BTE, norm, signal_BTO, considered_BT1)
    values_BTE = picked_BTE / by
    if not values_BTE.requires_grad:
        return values_BTE
    share = (by / gradient_divisor(by, least)).detach()
    return torch.lerp(values_BTE.detach(), values_BTE, share)  # the values as they are, their gradient times the share


def gradient_divisor(divisor: Tensor, least: Tensor | None = None) -> Tensor:
    """What the gradient through a norm is divided by in place of the divisor; shape of `divisor`.

    The direction of a signal has a gradient of 1 / its size. An update starts at zero and grows by learning rates that
    start near zero, so that the balance losses would take over the first steps: divided by `DIVISOR_FLOOR`, their
    gradient is thousands of times the task's. Here the divisor of the update is at least `LEAST_SHARE` of the frozen
    signal's, `least`; and a signal at the floor has no direction, and carries no gradient.
    """
    bounded = divisor if least is None else torch.maximum(divisor, LEAST_SHARE * least)
    return bounded.masked_fill(divisor <= DIVISOR_FLOOR, float("inf"))


def blend(frozen_BTE: Tensor, update_BTE: Tensor, gamma_routing: float) -> Tensor:
    """Routing logits `(1 - g) norm(z)[S] + g norm(zhat)[S]` (Eq. 3) of normalised signals; shape (B, T,
    E)."""
    return torch.lerp(frozen_BTE, update_BTE, gamma_routing)


def jitter_factors(
    shape: tuple[int, ...], amount: float, dtype: torch.dtype, device: torch.device | None = None
) -> Tensor:
    """Noise `U(1 - amount, 1 + amount)`."""
    return torch.empty(shape, dtype=dtype, device=device).uniform_(1 - amount, 1 + amount)


def jitter(logits_BTE: Tensor, amount: float) -> Tensor:
    """Multiply by noise `U(1 - amount, 1 + amount)`, drawn expert by expert; for training only."""
    *lead, E = logits_BTE.shape
    return logits_BTE * jitter_factors((E, *lead), amount, logits_BTE.dtype, logits_BTE.device).movedim(0, -1)


def learned_logits(x_BTI: Tensor, router_EI: Tensor) -> Tensor:
    """Logits of the learned router `R x` (ablation, paper Figure 4b); shape (B, T, E)."""
    return F.linear(x_BTI, router_EI).to(routing_dtype(x_BTI.dtype))


def probabilities(logits_BTE: Tensor, temperature: float) -> Tensor:
    """`softmax(logits / tau)`; rows sum to one."""
    return (logits_BTE / temperature).softmax(-1)
