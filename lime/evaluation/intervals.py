"""Every interval of a score: a delete-one-source jackknife over test rows, the same in tables, comparisons and reports.

Rows that were made from one picture or clip are not independent. The source, not the row, is left out: with theta_c
the statistic of a task without its source c, G the task's sources and f = sqrt((G - 1) / G),

    shift_c = f (theta - theta_c)          Var(theta) = sum_c shift_c^2          (Shao and Tu 1995, section 2.3)

For a mean this is the usual variance of clustered rows, with its correction for few sources. The mean of T tasks adds
their shifts by source before squaring, so that tasks which share clips are not taken for independent. Rows of a source
that disagree more than chance never make an interval narrower than independent rows would. Nothing is drawn at random:
an interval depends on the rows alone, not on a seed, nor on which other scores are worked out.

Intervals are at 95% and two-sided. A task whose rows come from one source has none: one source says nothing of others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from lime.evaluation.statistics import CONFIDENCE, correlation, t_quantile, wilson_interval

NO_INTERVAL = "no interval"


@dataclass(frozen=True)
class Sample:
    """A statistic of one task and what each source of its rows contributes.

    Attributes:
        value: the statistic: a share in [0, 1], a correlation in [-1, 1], or a difference of two such.
        rows: rows n of the task.
        sources_G: names of the G sources.
        shift_G: ``sqrt((G - 1) / G) (theta - theta without the source)``.
        independent: the variance if every row were its own source.
        sizes_G: rows of each source.
        most: the largest value, up or down, that the statistic can take.
    """

    value: float
    rows: int
    sources_G: np.ndarray
    shift_G: np.ndarray
    independent: float
    sizes_G: np.ndarray
    most: float = 1.0

    @property
    def variance(self) -> float:
        """Of the statistic; never below that of independent rows."""
        return max(float(self.shift_G @ self.shift_G), self.independent)

    @property
    def effective_sources(self) -> float:
        """Sources of equal size that would say as much, if the rows of a source always agreed: n^2 / sum size^2."""
        return self.rows**2 / float(self.sizes_G @ self.sizes_G)


@dataclass(frozen=True)
class Estimate:
    """A score or a difference with its 95% interval, in points; low and high are None where there is no interval."""

    value: float
    low: float | None
    high: float | None

    @property
    def clear(self) -> bool:
        """Whether there is an interval, and it excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def text(self, sign: str = "") -> str:
        """``64.2 (62.7 to 65.7)``; sign: ``+`` to show the sign."""
        return f"{self.value:{sign}.1f} ({interval_text(self.low, self.high, sign)})"


def interval_text(low: float | None, high: float | None, sign: str = "", to: str = " to ") -> str:
    """``62.7 to 65.7``, or ``no interval``."""
    return NO_INTERVAL if low is None or high is None else f"{low:{sign}.1f}{to}{high:{sign}.1f}"


def sources_of(media: Sequence[str] | None, split: str, rows: int) -> list[str]:
    """The source of each row: its medium, or the row itself where it has none."""
    return [name or f"\0{split}/{row}" for row, name in enumerate(media or [""] * rows)]


def mean_sample(values_R: np.ndarray, sources: Sequence[str]) -> Sample:
    """The mean of rows' results, for instance 1 where an answer is right, or the difference of two runs."""
    values_R = np.asarray(values_R, dtype=np.float64)
    names_G, index_R, sizes_G = np.unique(np.asarray(sources), return_inverse=True, return_counts=True)
    n, groups = len(values_R), len(names_G)
    value = float(values_R.mean())
    residual_G = np.bincount(index_R, weights=values_R - value, minlength=groups)
    rest_G = np.maximum(n - sizes_G, 1)  # one source alone has no rest, and no interval
    shift_G = np.sqrt((groups - 1) / groups) * residual_G / rest_G
    independent = float(values_R.var(ddof=1)) / n if n > 1 else 0.0
    return Sample(value, n, names_G, shift_G, independent, sizes_G)


def correlation_sample(x_R: np.ndarray, y_R: np.ndarray, sources: Sequence[str], kind: str = "pearson") -> Sample:
    """A Pearson or Spearman correlation; 0 where it is undefined.

    Without its source a correlation is worked out on the rows that stay (ranks stay those of all rows). The variance of
    independent rows is that of normal ones: (1 - r^2)^2 / (n - 3), for ranks times 1 + r^2 / 2 (Bonett, Wright 2000).
    """
    if kind == "spearman":
        x_R, y_R = scipy.stats.rankdata(x_R), scipy.stats.rankdata(y_R)
    names_G, index_R, sizes_G = np.unique(np.asarray(sources), return_inverse=True, return_counts=True)
    n, groups = len(x_R), len(names_G)
    value = correlation(x_R, y_R, "pearson") or 0.0
    shift_G = np.sqrt((groups - 1) / groups) * (value - _without_each(x_R, y_R, index_R, groups))
    spread = 1 + value**2 / 2 if kind == "spearman" else 1.0
    independent = spread * (1 - value**2) ** 2 / (n - 3) if n > 3 else 0.0
    return Sample(value, n, names_G, shift_G, independent, sizes_G)


def _without_each(x_R: np.ndarray, y_R: np.ndarray, index_R: np.ndarray, groups: int) -> np.ndarray:
    """Pearson's correlation without the rows of each source, (G,); 0 where it is undefined."""
    x_R, y_R = (_standard(np.asarray(values, dtype=np.float64)) for values in (x_R, y_R))
    parts = (np.ones_like(x_R), x_R, y_R, x_R * x_R, y_R * y_R, x_R * y_R)
    sums = np.stack([np.bincount(index_R, weights=part, minlength=groups) for part in parts])
    count, x, y, xx, yy, xy = sums.sum(axis=1, keepdims=True) - sums
    with np.errstate(all="ignore"):
        scatter = (xx - x * x / count) * (yy - y * y / count)
        without_G = (xy - x * y / count) / np.sqrt(scatter)
    # A source that holds most of the squares leaves the sums of the others without digits: there, row by row.
    most = np.maximum(sums[3] / max(sums[3].sum(), 1e-300), sums[4] / max(sums[4].sum(), 1e-300)) > 0.5
    for group in np.flatnonzero(most | ~np.isfinite(without_G)):
        stay_R = index_R != group
        without_G[group] = (correlation(x_R[stay_R], y_R[stay_R], "pearson") or 0.0) if stay_R.any() else 0.0
    return np.clip(without_G, -1.0, 1.0)


def _standard(values_R: np.ndarray) -> np.ndarray:
    centred_R = values_R - values_R.mean()
    return centred_R / (np.abs(centred_R).max() or 1.0)


def mean_of_samples(samples: Sequence[Sample]) -> Sample:
    """The mean of statistics of the same rows, for instance over seeds."""
    first = samples[0]
    assert all(np.array_equal(one.sources_G, first.sources_G) for one in samples)
    return Sample(
        float(np.mean([one.value for one in samples])),
        first.rows,
        first.sources_G,
        np.mean([one.shift_G for one in samples], axis=0),
        float(np.mean([one.independent for one in samples])),
        first.sizes_G,
        first.most,
    )


def difference_of_samples(a: Sample, b: Sample) -> Sample:
    """``a`` less ``b``, two statistics of the same rows."""
    assert np.array_equal(a.sources_G, b.sources_G)
    return Sample(a.value - b.value, a.rows, a.sources_G, a.shift_G - b.shift_G, 0.0, a.sizes_G, a.most + b.most)


def share(samples: Sequence[Sample]) -> Estimate:
    """The mean of tasks' shares of right answers, in points.

    The interval is the wider of Wilson's (1927) and Jeffreys' (Brown, Cai and DasGupta 2001) at both ends, for as many
    independent rows as have the variance at hand (Korn and Graubard 1998); together they keep their coverage at shares
    near 0 and 1, where each alone falls short. Counts are discrete: with 20 rows and a share of 0.05 every interval
    that depends on the count alone covers 92.5% or 98.4%.
    """
    value = _value(samples)
    if not _has_interval(samples):
        return Estimate(100 * value, None, None)
    rows = _rows_worth(samples, value)
    right = rows * value
    low, high = wilson_interval(right, rows)
    tail = (1 - CONFIDENCE) / 2
    if right > 0:
        low = min(low, float(scipy.stats.beta.ppf(tail, right + 0.5, rows - right + 0.5)))
    if right < rows:
        high = max(high, float(scipy.stats.beta.ppf(1 - tail, right + 0.5, rows - right + 0.5)))
    return Estimate(100 * value, 100 * low, 100 * high)


def difference(samples: Sequence[Sample]) -> Estimate:
    """The mean of tasks' differences, in points: value ± t sqrt(Var + 1 / (G + 2)^2), G sources in all.

    The last term is one source in doubt (Agresti and Min 2005): where two sides agree in every row, there is still no
    certainty about other rows. Differences of shares stay within ±100, those of correlations within ±200.
    """
    doubt = 1 / (sum(one.effective_sources for one in samples) + 2) ** 2
    return _around(samples, doubt)


def of_correlation(sample: Sample) -> Estimate:
    """A correlation in points, by Fisher's z = atanh(r) with the standard error sqrt(Var) / (1 - r^2).

    No interval with three sources or fewer, or at r = 1 and -1, where the rows show no spread.
    """
    r = sample.value
    if len(sample.sources_G) <= 3 or abs(r) > 1 - 1e-12:
        return Estimate(100 * r, None, None)
    half = _quantile([sample]) * math.sqrt(sample.variance) / (1 - r * r)
    low, high = (float(np.tanh(np.arctanh(r) + sign * half)) for sign in (-1, 1))
    return Estimate(100 * r, 100 * low, 100 * high)


def mixed(samples: Sequence[Sample]) -> Estimate:
    """The mean of tasks' scores, some shares and some correlations, in points: value ± t sqrt(Var), within ±100.

    No interval where the rows show no spread, as of a correlation alone.
    """
    estimate = _around(samples, doubt=0.0)
    return estimate if _variance(samples) > 0 else Estimate(estimate.value, None, None)


def _around(samples: Sequence[Sample], doubt: float) -> Estimate:
    """value ± t sqrt(Var + doubt), within what the mean can be."""
    value, most = _value(samples), float(np.mean([one.most for one in samples]))
    if not _has_interval(samples):
        return Estimate(100 * value, None, None)
    half = _quantile(samples) * math.sqrt(_variance(samples) + doubt)
    return Estimate(100 * value, 100 * max(value - half, -most), 100 * min(value + half, most))


def _value(samples: Sequence[Sample]) -> float:
    return float(np.mean([one.value for one in samples]))


def _has_interval(samples: Sequence[Sample]) -> bool:
    return all(len(one.sources_G) > 1 for one in samples)


def _variance(samples: Sequence[Sample]) -> float:
    """Of the mean over tasks: shifts of one source are added over tasks before they are squared."""
    names = np.concatenate([one.sources_G for one in samples])
    shifts = np.concatenate([one.shift_G for one in samples]) / len(samples)
    _, index = np.unique(names, return_inverse=True)
    joined = np.bincount(index, weights=shifts)
    return max(float(joined @ joined), sum(one.independent for one in samples) / len(samples) ** 2)


def _degrees(samples: Sequence[Sample]) -> float:
    """Degrees of freedom of the variance (Satterthwaite), at most the sources over all tasks less one."""
    by_task = np.array([one.variance for one in samples])
    sources = len(np.unique(np.concatenate([one.sources_G for one in samples]))) - 1
    spread = sum(v**2 / (len(one.sources_G) - 1) for v, one in zip(by_task, samples, strict=True))
    return float(min(by_task.sum() ** 2 / spread, sources)) if spread > 0 else float(sources)


def _quantile(samples: Sequence[Sample]) -> float:
    return t_quantile(_degrees(samples))


def _rows_worth(samples: Sequence[Sample], value: float) -> float:
    """How many independent rows have the variance of this mean of shares.

    Of one task with rows that are their own sources this is its number of rows. With fewer sources than rows it counts
    in how well so few sources tell the variance, as far as rows of a source that always agree allow.
    """
    tasks = len(samples)
    shares, rows = np.array([one.value for one in samples]), np.array([one.rows for one in samples])
    effective = np.array([one.effective_sources for one in samples])
    spread = shares * (1 - shares)
    variance = _variance(samples)
    if spread.sum() <= 0 or variance <= 0:
        distinct = len(np.unique(np.concatenate([one.sources_G for one in samples])))
        if value <= 0 or value >= 1:
            return min(float(effective.sum()), float(distinct))
        smooth = (shares * effective + 0.5) / (effective + 1)
        return value * (1 - value) / float((smooth * (1 - smooth) / effective).sum() / tasks**2)
    plain = (spread / np.maximum(rows - 1, 1)).sum()
    worth = value * (1 - value) / variance * plain / (spread / rows).sum()
    agreeing = worth * variance / float((spread / np.maximum(effective - 1, 1e-9)).sum() / tasks**2)
    independent = t_quantile(max(int(rows.sum()) - tasks, 1))
    return float(max(worth * min(1.0, independent / _quantile(samples)) ** 2, min(worth, agreeing)))
