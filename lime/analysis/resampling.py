"""Intervals and folds over rows that are not all independent: rows of one medium stay together.

Shapes: R rows, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lime.evaluation.statistics import Interval, t_quantile


def balanced_groups(tasks: Sequence[str], clusters: Sequence[str], groups: int, seed: int = 0) -> np.ndarray:
    """A group 0..G-1 for each row: clusters whole, each task spread over the groups as evenly as that allows, (R,).

    Args:
        tasks: the task of each row.
        clusters: the name of each row's source; rows of one source fall into one group.

    Raises:
        ValueError: fewer than 2 groups, or fewer clusters than groups.
    """
    names, index_R = np.unique(np.asarray(clusters), return_inverse=True)
    if groups < 2 or len(names) < groups:
        raise ValueError(f"expected 2 to {len(names)} groups (the number of independent sources of rows), got {groups}")
    _, task_R = np.unique(np.asarray(tasks), return_inverse=True)
    taken_GK = np.zeros((groups, task_R.max() + 1))
    found_R = np.empty(len(task_R), dtype=np.int64)
    for cluster in np.random.default_rng(seed).permutation(len(names)):
        members = np.flatnonzero(index_R == cluster)
        load_G = taken_GK[:, task_R[members]].sum(axis=1)
        group = int(np.lexsort((taken_GK.sum(axis=1), load_G))[0])
        np.add.at(taken_GK[group], task_R[members], 1)
        found_R[members] = group
    return found_R


def jackknife_interval(value: float, replicates_G: np.ndarray) -> Interval:
    """95% interval of a statistic by the delete-a-group jackknife (Shao and Tu 1995, section 2.3):

        value ± t_{G-1} sqrt((G - 1) / G sum_g (replicate_g - mean)^2)

    Args:
        value: the statistic over all rows.
        replicates_G: the statistic without the rows of each group.

    Raises:
        ValueError: fewer than 2 replicates.
    """
    count = len(replicates_G)
    if count < 2:
        raise ValueError(f"expected the replicates of at least 2 groups, got {count}")
    replicates_G = np.asarray(replicates_G, dtype=np.float64)
    error = float(np.sqrt((count - 1) / count * ((replicates_G - replicates_G.mean()) ** 2).sum()))
    half = t_quantile(count - 1) * error
    return value - half, value + half
