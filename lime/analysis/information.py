"""Mutual information between experts and tasks, from the mean routing of each row.

    I(expert; task) = H(mean over rows) - mean over rows of H(mean of the row's task)      (nats)

Rows are the samples, not their tokens, and rows of one source (a picture, a clip) count as one sample. A finite number
of them makes the plain estimate too large, as the entropy of a noisy mean is too small. By the jackknife over the G_k
sources of task k (Quenouille 1956; Zahl 1977 for entropies), with s_k the share of its rows, the plain estimate exceeds
the truth by

    sum_k s_k (G_k - 1) (H_k - mean over sources of H_k without the source)  -  1/2 sum_e Var(p_e) / p_e

where p_e is the mean routing of all rows to expert e. This is taken off. The standard error is that of the linear part,
less what the noise of the task means themselves adds to its plain estimate, plus that of the quadratic part.

Shapes: R rows, E experts, K tasks, G sources (of one task), C sources of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from lime.evaluation.statistics import t_quantile

LEAST = 1e-12
"""Probabilities below this count as this in a logarithm or divisor."""


@dataclass(frozen=True)
class Routing:
    """The mean routing of rows in one layer, as a term of a sum over layers or runs.

    Attributes:
        usage_RE: mean routing probabilities of each row over E experts; rows sum to 1.
        rows_R: which of all rows these are (an index), where a layer does not see them all.
        weight: factor of this layer's information in the sum: 1 / layers for a mean, negative for a difference.
    """

    usage_RE: np.ndarray
    rows_R: np.ndarray
    weight: float = 1.0


@dataclass(frozen=True)
class Information:
    """In nats. value: bias-corrected, with its 95% interval (none where a task has a single source); plain: before;
    bias: what was taken off."""

    value: float
    low: float | None
    high: float | None
    plain: float
    bias: float


def information(routings: Sequence[Routing], tasks: Sequence[str], sources: Sequence[str]) -> Information:
    """Mutual information between expert and task: the weighted sum over layers.

    Args:
        routings: one for each layer (or for the layers of several runs on the same rows).
        tasks: the task of each of all rows.
        sources: the name of each row's source; rows of one source are one sample.

    Raises:
        ValueError: shapes that do not fit, or rows that are not distributions.
    """
    _, task_R = np.unique(np.asarray(tasks), return_inverse=True)
    _, source_R = np.unique(np.asarray(sources), return_inverse=True)
    terms = [_term(routing, task_R, source_R) for routing in routings]
    plain, bias = sum(term.plain for term in terms), sum(term.bias for term in terms)
    linear_C, curvature, lone = np.zeros(source_R.max() + 1), 0.0, False
    for task in range(task_R.max() + 1):
        present = [term for term in terms if task in term.noise]
        if not present:
            continue
        members = np.unique(np.concatenate([term.noise[task][0] for term in present]))
        groups = len(members)
        if groups < 2:
            lone = True
            continue
        scale = groups / (groups - 1)
        gram_GG = np.zeros((groups, groups))
        for term in present:
            index, noise_GE, drift_G = term.noise[task]
            at = np.searchsorted(members, index)
            gram_GG[np.ix_(at, at)] += np.sign(term.weight) * noise_GE @ noise_GE.T
            np.add.at(linear_C, index, np.sqrt(scale) * drift_G)
        squares = _squared_covariance(scale * gram_GG, groups - 1)
        curvature += (1 - scale / 2) * squares / 2  # half of it: with few sources the other half is a guess
    variance = max(float(linear_C @ linear_C) - curvature, 0.0)
    value = plain - bias
    if lone:
        return Information(value, None, None, plain, bias)
    shares = linear_C**2
    degrees = shares.sum() ** 2 / (shares @ shares) if shares.any() else 1.0
    half = t_quantile(max(degrees, 1.0)) * float(np.sqrt(variance))
    return Information(value, value - half, value + half, plain, bias)


def chance_of_information(
    routing: Routing, tasks: Sequence[str], sources: Sequence[str], permutations: int = 200, seed: int = 0
) -> float:
    """p: how often rows assigned to tasks at random tell as much, for routing that has nothing to do with the task.

    Sources stay whole: the tasks of a source's rows are exchanged for those of another source with as many rows, and
    in random order within it.
    """
    _, task_R = np.unique(np.asarray(tasks)[routing.rows_R], return_inverse=True)
    _, source_R = np.unique(np.asarray(sources)[routing.rows_R], return_inverse=True)
    order_R = np.argsort(source_R, kind="stable")
    sizes_C = np.bincount(source_R)
    starts_C = np.concatenate([[0], np.cumsum(sizes_C)[:-1]])
    rng = np.random.default_rng(seed)
    found = _plain(routing.usage_RE, task_R)
    as_much = 0
    for _ in range(permutations):
        taken_R = np.empty(len(task_R), dtype=np.int64)
        for size in np.unique(sizes_C):
            blocks = order_R[starts_C[sizes_C == size][:, None] + np.arange(size)]
            taken_R[blocks] = rng.permuted(task_R[blocks[rng.permutation(len(blocks))]], axis=1)
        as_much += _plain(routing.usage_RE, taken_R) >= found - 1e-12
    return (1 + as_much) / (1 + permutations)


def most_possible(experts: int, tasks: Sequence[str]) -> float:
    """The least of log E and the entropy of the tasks, nats."""
    counts = np.unique(np.asarray(tasks), return_counts=True)[1]
    return min(float(np.log(experts)), float(special.entr(counts / counts.sum()).sum()))


@dataclass(frozen=True)
class _Term:
    """A layer's part. noise: by task the sources, their summed deviations in the metric of the entropy (G, E), and what
    each adds to the linear part (G,)."""

    plain: float
    bias: float
    weight: float
    noise: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]


def _term(routing: Routing, task_R: np.ndarray, source_R: np.ndarray) -> _Term:
    usage_RE = np.asarray(routing.usage_RE, dtype=np.float64)
    rows_R = np.asarray(routing.rows_R)
    if usage_RE.ndim != 2 or len(usage_RE) != len(rows_R) or not len(rows_R) or rows_R.max() >= len(task_R):
        raise ValueError(
            f"expected routing of shape (rows, experts) for some of {len(task_R)} rows, got {usage_RE.shape}"
        )
    if not np.isfinite(usage_RE).all():
        raise ValueError("routing probabilities hold a value that is not finite (NaN or infinite)")
    if usage_RE.min() < 0 or not np.allclose(usage_RE.sum(axis=1), 1.0, atol=1e-4):
        raise ValueError("expected routing probabilities that sum to 1 in every row")
    task_R, source_R = task_R[rows_R], source_R[rows_R]
    total, mean_E = len(usage_RE), usage_RE.mean(axis=0)
    noise, bias, pooled = {}, 0.0, np.zeros((source_R.max() + 1, usage_RE.shape[1]))
    for task in np.unique(task_R):
        of_R = task_R == task
        mine_E = usage_RE[of_R].mean(axis=0)
        members, index_R = np.unique(source_R[of_R], return_inverse=True)
        summed_GE = np.zeros((len(members), usage_RE.shape[1]))
        np.add.at(summed_GE, index_R, usage_RE[of_R] - mine_E)
        scale = len(members) / max(len(members) - 1, 1)
        np.add.at(pooled, members, np.sqrt(scale) * summed_GE / total)
        count = int(of_R.sum())
        share = count / total
        rest_G = np.maximum(count - np.bincount(index_R), 1)[:, None]
        without_GE = np.clip(mine_E - summed_GE / rest_G, 0.0, None)
        bias += share * (len(members) - 1) * float(special.entr(mine_E).sum() - special.entr(without_GE).sum(1).mean())
        metric_E = np.sqrt(abs(routing.weight) * share / np.maximum(mine_E, LEAST))
        metric_E[mine_E <= LEAST] = 0.0  # an expert that the task never uses has no noise either
        slope_E = np.log(np.maximum(mine_E, LEAST)) - np.log(np.maximum(mean_E, LEAST))
        noise[int(task)] = (members, summed_GE / count * metric_E, routing.weight * (summed_GE @ slope_E) / total)
    bias -= float(((pooled**2).sum(axis=0) / np.maximum(mean_E, LEAST)).sum()) / 2
    return _Term(routing.weight * _plain(usage_RE, task_R), routing.weight * bias, routing.weight, noise)


def _squared_covariance(gram_GG: np.ndarray, degrees: int) -> float:
    """The trace of the squared covariance of a task's mean, without the bias of its estimate (of normal noise)."""
    squares, trace = float((gram_GG**2).sum()), float(np.trace(gram_GG))
    if degrees < 2:
        return squares / 3
    unbiased = degrees**2 / ((degrees - 1) * (degrees + 2)) * (squares - trace**2 / degrees)
    return float(np.clip(unbiased, 0.0, squares))


def _plain(usage_RE: np.ndarray, index_R: np.ndarray) -> float:
    counts = np.bincount(index_R)
    sums_KE = np.stack([np.bincount(index_R, weights=column_R) for column_R in usage_RE.T], axis=1)
    means_KE = sums_KE / np.maximum(counts, 1)[:, None]
    within = (counts / counts.sum()) @ special.entr(means_KE).sum(axis=1)
    return float(special.entr(usage_RE.mean(axis=0)).sum() - within)
