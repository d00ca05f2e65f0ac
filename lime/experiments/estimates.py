"""Means over seeds and paired differences, from the per-item results of records.

Two kinds of uncertainty are kept apart. The interval of a mean or a difference comes from resampling the test items
(whole clusters that share a medium) within each task, with each item's result averaged over the seeds; it says what
other test rows would have given. The standard deviation over seeds says what other seeds would have given.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lime.data.tasks import TASKS
from lime.evaluation.clusters import cluster_weights, weighted_correlations, weighted_means
from lime.evaluation.statistics import bootstrap_correlations, bootstrap_means, correlation, percentile_interval
from lime.experiments.records import Items, Record

MACRO = "macro"
RESAMPLES = 2000
METRICS = ("score", "exact_match")


@dataclass(frozen=True)
class SeedMean:
    """Mean over seeds in points, its 95% interval over test items, and the sample standard deviation over seeds (None
    for one seed)."""

    value: float
    low: float
    high: float
    deviation: float | None
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Difference:
    """Mean paired difference in points over the seeds that both sides have, with its 95% interval over test items."""

    value: float
    low: float
    high: float
    seeds: tuple[int, ...]

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


class CannotCompare(ValueError):
    """Records that do not hold the same items; names them."""


def splits_of(records: Sequence[Record], group: str) -> list[str]:
    """Splits of a category, of a modality (``text``, ``image``, ``video``), of ``vision`` (image and video), a split
    itself, or all of them (``macro``), as far as the records have them."""
    present = records[0].items
    if group == MACRO:
        return list(present)
    if group in TASKS:
        return [group] if group in present else []
    modalities = {"vision": ("image", "video")}.get(group, (group,))
    return [split for split in present if TASKS[split].category == group or TASKS[split].modality in modalities]


def seed_mean(records: Sequence[Record], group: str, metric: str = "score") -> SeedMean | None:
    """Mean over the records (one per seed) of a group's score: the unweighted mean over its tasks.

    Args:
        metric: ``score`` (accuracy, 100 x Pearson) or ``exact_match``.

    Returns:
        None without records, or where they have no such task.
    """
    if not records or not (splits := splits_of(records, group)):
        return None
    _same_items(records)
    items = [record.split_items() for record in records]
    by_seed = [float(np.mean([_value(one[split], split, metric) for split in splits])) for one in items]
    samples = np.mean([_samples(split, [one[split] for one in items], None, metric) for split in splits], axis=0)
    low, high = percentile_interval(samples)
    deviation = float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None
    return SeedMean(float(np.mean(by_seed)), low, high, deviation, tuple(by_seed))


def difference(
    ours: Sequence[Record], theirs: Sequence[Record], group: str, metric: str = "score"
) -> Difference | None:
    """``ours`` less ``theirs``, paired by seed and item; None where they share no seed or no task."""
    a, b = ({record.seed: record for record in side} for side in (ours, theirs))
    seeds = sorted(a.keys() & b.keys())
    pairs = [record for seed in seeds for record in (a[seed], b[seed])]
    if not pairs or not (splits := splits_of(pairs, group)):
        return None
    _same_items(pairs)
    left, right = ([side[seed].split_items() for seed in seeds] for side in (a, b))
    values, samples = [], []
    for split in splits:
        mine, other = [one[split] for one in left], [one[split] for one in right]
        means = [np.mean([_value(items, split, metric) for items in side]) for side in (mine, other)]
        values.append(means[0] - means[1])
        samples.append(_samples(split, mine, other, metric))
    low, high = percentile_interval(np.mean(samples, axis=0))
    return Difference(float(np.mean(values)), low, high, tuple(seeds))


def _correlates(split: str, metric: str) -> bool:
    return metric == "score" and TASKS[split].metric == "correlation"


def _value(items: Items, split: str, metric: str) -> float:
    if not _correlates(split, metric):
        return 100.0 * items.correct.count("1") / len(items.correct)
    given, truths = _numbers(items)
    return 100.0 * (correlation(given, truths, "pearson") or 0.0)


def _samples(split: str, ours: Sequence[Items], theirs: Sequence[Items] | None, metric: str) -> np.ndarray:
    """Bootstrap samples of one task's mean (or mean difference) over seeds, in points.

    The draws depend on the rows and their media alone, so an estimate does not depend on which others are made.
    """
    sides = [ours] if theirs is None else [ours, theirs]
    clusters = ours[0].clusters
    weights = None if clusters is None else _weights(tuple(clusters))
    rng = np.random.default_rng(zlib.crc32(split.encode()))
    if _correlates(split, metric):
        columns = [[_numbers(items)[0] for items in side] for side in sides]
        truths = _numbers(ours[0])[1]
        if weights is None:
            flat = [column for side in columns for column in side]
            drawn = list(bootstrap_correlations(flat, truths, RESAMPLES, rng))
        else:
            drawn = [weighted_correlations(column, truths, weights) for side in columns for column in side]
        means = [np.mean(drawn[: len(ours)], axis=0), *([np.mean(drawn[len(ours) :], axis=0)] if theirs else [])]
        return 100.0 * (means[0] - means[1] if theirs else means[0])
    rights = [np.mean([[float(mark) for mark in items.correct] for items in side], axis=0) for side in sides]
    values = rights[0] - rights[1] if theirs is not None else rights[0]
    if weights is None:
        return 100.0 * bootstrap_means(values, RESAMPLES, rng)
    return 100.0 * weighted_means(values, weights)


@functools.lru_cache(maxsize=64)
def _weights(clusters: tuple[int, ...]) -> np.ndarray:
    return cluster_weights([str(cluster) for cluster in clusters], RESAMPLES, seed=0)


def _numbers(items: Items) -> tuple[np.ndarray, np.ndarray]:
    """Numbers given and expected; a row without a number takes the mean of the others, as in the scorer."""
    assert items.values is not None
    assert items.truths is not None
    known = [value for value in items.values if value is not None]
    mean = float(np.mean(known)) if known else 0.0
    return np.array([mean if v is None else v for v in items.values]), np.array(items.truths)


def _same_items(records: Sequence[Record]) -> None:
    first = records[0]
    for record in records[1:]:
        if record.identity.data != first.identity.data:
            raise CannotCompare(
                f"runs {first.identity.config} and {record.identity.config} of {first.name} saw other data "
                f"({str(first.identity.data)[:12]}, {str(record.identity.data)[:12]}); run one of them again"
            )
        for split in sorted(first.items.keys() | record.items.keys()):
            mine, other = (one.items.get(split, {}).get("rows") for one in (first, record))
            if mine != other:
                raise CannotCompare(
                    f"runs {first.identity.config} and {record.identity.config} of {first.name} were scored on other "
                    f"rows of {split}; compare runs of the same data.rows_per_split and evaluation.splits"
                )
