"""Expert selection (Eq. 4): from routing probabilities to modulation weights.

Shapes: B batch, T tokens, E experts. Leading dimensions may be any; `BT` stands for them. With `dim=0` experts come
    first: every E of a name then stands before the tokens, as in the fused function.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lime.method.routing import RoutingPlan

SOFT_FLOOR = 1e-9
"""Added to the divisor of soft weights, as in the authors' code."""


class Selected(NamedTuple):
    """Weights after selection, rows summing to one, and what a backward pass needs.

    Attributes:
        chosen_BTE: the hard set; absent where all experts take part.
        total_BT1: the divisor of the weights; absent for `dense`.
        limit_BT1: of a soft mask, the expert that sets its limit.
        mask_BTE: the soft mask.
    """

    weights_BTE: Tensor
    chosen_BTE: Tensor | None = None
    total_BT1: Tensor | None = None
    limit_BT1: Tensor | None = None
    mask_BTE: Tensor | None = None


def select(
    probabilities_BTE: Tensor,
    selection: str = "auto",
    *,
    threshold: float = 0.7,
    top_k: int = 2,
    max_experts: int | None = None,
    soft: bool = False,
    soft_temperature: float = 0.5,
) -> Tensor:
    """Weights `w~` of the experts that take part in a token's modulation; rows sum to one.

    - `auto`: `S = {i : w_i >= threshold * max_j w_j}`, renormalised over `S` (Auto Top-K, Eq. 4);
      `max_experts` caps `S` at its largest members.
    - `topk`: the `top_k` largest, renormalised.
    - `dense`: the probabilities themselves.
    - `soft`: instead of the hard set `m_i = sigmoid((w_i - t) / soft_temperature)` with `t = threshold * max
      w` (auto) or the k-th largest `w` (topk); weights `w m / (sum w m + 1e-9)`. Every expert then carries
      weight.

    Args:
        probabilities_BTE: routing probabilities, rows summing to one.

    Raises:
        ValueError: unknown selection.
    """
    how = RoutingPlan(
        selection=selection,
        threshold=threshold,
        top_k=top_k,
        max_experts=max_experts,
        soft=soft,
        soft_temperature=soft_temperature,
    )
    return selected(probabilities_BTE, how).weights_BTE


def selected(probabilities_BTE: Tensor, how: RoutingPlan, dim: int = -1) -> Selected:
    """As `select`, with what a backward pass needs.

    Args:
        dim: of the experts.
    """
    if how.selection == "dense":
        return Selected(probabilities_BTE)
    if how.selection not in ("auto", "topk"):
        raise ValueError(f"selection: expected one of auto, topk, dense, got {how.selection!r}")
    if how.soft:
        return _softly(probabilities_BTE, how, dim)
    chosen_BTE = _hard_set(probabilities_BTE, how, dim)
    kept_BTE = probabilities_BTE * chosen_BTE
    total_BT1 = kept_BTE.sum(dim, keepdim=True)
    return Selected(kept_BTE / total_BT1, chosen_BTE, total_BT1)


def of_logits(logits_EN: Tensor, how: RoutingPlan, chosen_EN: Tensor | None = None) -> Tensor:
    """Weights by a hard choice, (E, N), experts first: those of `select` on the softmax of the logits, up to rounding.
    With `auto` the set is `{i : l_i >= max l + log threshold}`, and weights renormalised over it are its softmax.

    Args:
        chosen_EN: the hard set, where it is known.
    """
    if chosen_EN is not None:
        logits_EN = logits_EN.masked_fill(~chosen_EN, -math.inf)
    elif how.selection == "topk":
        logits_EN = logits_EN.masked_fill(~_largest(logits_EN, how.top_k, 0), -math.inf)
    elif how.selection == "auto":
        below_EN = logits_EN - logits_EN.amax(0, keepdim=True)
        if how.max_experts is not None and how.max_experts < len(logits_EN):
            below_EN.masked_fill_(~_largest(logits_EN, how.max_experts, 0), -math.inf)
        logits_EN = torch.threshold(below_EN, log_threshold(how.threshold, logits_EN.dtype), -math.inf)
    return logits_EN.softmax(0)


def log_threshold(threshold: float, dtype: torch.dtype) -> float:
    """Logits above the largest plus this are chosen by `auto`: what equals the threshold stays in."""
    return math.log(threshold) * (1 + torch.finfo(dtype).eps) - 1e-30 if threshold > 0 else -math.inf


def _hard_set(probabilities_BTE: Tensor, how: RoutingPlan, dim: int) -> Tensor:
    if how.selection == "topk":
        return _largest(probabilities_BTE, how.top_k, dim)
    chosen_BTE = probabilities_BTE >= how.threshold * probabilities_BTE.amax(dim, keepdim=True)
    if how.max_experts is not None and how.max_experts < probabilities_BTE.shape[dim]:
        chosen_BTE = chosen_BTE & _largest(probabilities_BTE, how.max_experts, dim)
    return chosen_BTE


def _softly(probabilities_BTE: Tensor, how: RoutingPlan, dim: int) -> Selected:
    if how.selection == "auto":
        limit_BT1, index_BT1 = probabilities_BTE.max(dim, keepdim=True)
        limit_BT1 = how.threshold * limit_BT1
    else:
        largest = probabilities_BTE.topk(min(how.top_k, probabilities_BTE.shape[dim]), dim)
        limit_BT1, index_BT1 = (one.narrow(dim, -1, 1) for one in largest)
    mask_BTE = ((probabilities_BTE - limit_BT1) / how.soft_temperature).sigmoid()
    kept_BTE = probabilities_BTE * mask_BTE
    total_BT1 = kept_BTE.sum(dim, keepdim=True) + SOFT_FLOOR
    return Selected(kept_BTE / total_BT1, None, total_BT1, index_BT1, mask_BTE)


def _largest(probabilities_BTE: Tensor, count: int, dim: int) -> Tensor:
    """Mask of exactly the `count` largest entries of each row (ties go to the earlier one that `topk`
    returns)."""
    index_BTK = probabilities_BTE.topk(min(count, probabilities_BTE.shape[dim]), dim).indices
    return torch.zeros_like(probabilities_BTE, dtype=torch.bool).scatter_(dim, index_BTK, 1)
