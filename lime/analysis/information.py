"""Mutual information between experts and tasks, from the mean routing of each row.

    I(expert; task) = H(mean over rows) - mean over rows of H(mean of the row's task)      (nats)

Rows are the independent samples, not their tokens. A finite number of rows makes the plain estimate too large; what
random assignments of rows to tasks give on average is taken off it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special


@dataclass(frozen=True)
class Information:
    """In nats. value: bias-corrected; plain: before; bias: mean over permutations; bound: the least of log E and the
    entropy of the tasks; p: share of permutations that give at least the plain value."""

    value: float
    plain: float
    bias: float
    bound: float
    p: float


def expert_task_information(
    usage_RE: np.ndarray, tasks: Sequence[str], permutations: int = 200, seed: int = 0
) -> Information:
    """Mutual information between expert and task.

    Args:
        usage_RE: mean routing probabilities of R rows over E experts; rows sum to 1.
        tasks: the task of each row.

    Raises:
        ValueError: shapes that do not fit, or rows that are not distributions.
    """
    usage = np.asarray(usage_RE, dtype=np.float64)
    if usage.ndim != 2 or len(usage) != len(tasks) or not len(usage):
        raise ValueError(f"expected routing of shape (rows, experts) for {len(tasks)} rows, got {usage.shape}")
    if usage.min() < 0 or not np.allclose(usage.sum(axis=1), 1.0, atol=1e-4):
        raise ValueError("expected routing probabilities that sum to 1 in every row")
    _, index = np.unique(np.asarray(tasks), return_inverse=True)
    rng = np.random.default_rng(seed)
    plain = _plain(usage, index)
    null = np.array([_plain(usage, rng.permutation(index)) for _ in range(permutations)])
    shares = np.bincount(index) / len(index)
    bound = min(float(np.log(usage.shape[1])), float(special.entr(shares).sum()))
    p = float((1 + (null >= plain - 1e-12).sum()) / (1 + permutations))
    return Information(plain - float(null.mean()), plain, float(null.mean()), bound, p)


def information_replicates(
    usage_RE: np.ndarray, tasks: Sequence[str], groups_R: np.ndarray, count: int | None = None
) -> np.ndarray:
    """The plain estimate without the rows of each group, (G,), for `lime.analysis.resampling.jackknife_interval`.

    Args:
        usage_RE, tasks: as in `expert_task_information`.
        groups_R: group of each row, 0..G-1.
        count: G, where the last groups have none of these rows.
    """
    _, index = np.unique(np.asarray(tasks), return_inverse=True)
    usage = np.asarray(usage_RE, dtype=np.float64)
    groups = range(int(groups_R.max()) + 1 if count is None else count)
    return np.array([_plain(usage[groups_R != group], index[groups_R != group]) for group in groups])


def _plain(usage_RE: np.ndarray, index_R: np.ndarray) -> float:
    counts = np.bincount(index_R)
    sums_KE = np.stack([np.bincount(index_R, weights=column_R) for column_R in usage_RE.T], axis=1)
    means_KE = sums_KE / np.maximum(counts, 1)[:, None]
    within = (counts / counts.sum()) @ special.entr(means_KE).sum(axis=1)
    return float(special.entr(usage_RE.mean(axis=0)).sum() - within)
