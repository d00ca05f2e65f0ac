"""Expert selection (Eq. 4): from routing probabilities to modulation weights.

Shapes: B batch, T tokens, E experts. Leading dimensions may be any; `BT` stands for them.
"""

from __future__ import annotations

import torch
from torch import Tensor

SOFT_FLOOR = 1e-9
"""Added to the divisor of soft weights, as in the authors' code."""


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
    - `topk`: the `top_k` largest, renormalised. - `dense`: the probabilities themselves.
    - `soft`: instead of the hard set `m_i = sigmoid((w_i - t) / soft_temperature)` with `t = threshold * max
      w` (auto) or the k-th largest `w` (topk); weights `w m / (sum w m + 1e-9)`. Every expert then carries
      weight.

    Args:
        probabilities_BTE: routing probabilities, rows summing to one.

    Raises:
        ValueError: unknown selection.
    """
    if selection == "dense":
        return probabilities_BTE
    if selection == "auto":
        limit_BT1 = threshold * probabilities_BTE.amax(-1, keepdim=True)
    elif selection == "topk":
        limit_BT1 = probabilities_BTE.topk(min(top_k, probabilities_BTE.shape[-1]), -1).values[..., -1:]
    else:
        raise ValueError(f"selection: expected one of auto, topk, dense, got {selection!r}")

    if soft:
        mask_BTE = ((probabilities_BTE - limit_BT1) / soft_temperature).sigmoid()
        kept_BTE = probabilities_BTE * mask_BTE
        return kept_BTE / (kept_BTE.sum(-1, keepdim=True) + SOFT_FLOOR)

    if selection == "topk":
        chosen_BTE = _largest(probabilities_BTE, top_k)
    else:
        chosen_BTE = probabilities_BTE >= limit_BT1
        if max_experts is not None and max_experts < probabilities_BTE.shape[-1]:
            chosen_BTE = chosen_BTE & _largest(probabilities_BTE, max_experts)
    kept_BTE = probabilities_BTE.where(chosen_BTE, 0.0)
    return kept_BTE / kept_BTE.sum(-1, keepdim=True)


def _largest(probabilities_BTE: Tensor, count: int) -> Tensor:
    """Mask of exactly the `count` largest entries of each row (ties go to the earlier one that `topk`
    returns)."""
    index_BTK = probabilities_BTE.topk(min(count, probabilities_BTE.shape[-1]), -1).indices
    return torch.zeros_like(probabilities_BTE, dtype=torch.bool).scatter_(-1, index_BTK, 1)
