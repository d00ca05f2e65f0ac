"""Means over seeds and paired differences, from the per-item results of records.

Two kinds of uncertainty are kept apart. The interval of a mean or a difference is that of `lime.evaluation.intervals`
over the test items, with each item's result averaged over the seeds; it says what other test rows would have given. The
standard deviation over seeds says what other seeds would have given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lime.data.tasks import TASKS
from lime.evaluation import intervals
from lime.evaluation.aggregation import MACRO
from lime.evaluation.intervals import (
    Sample,
    correlation_sample,
    difference_of_samples,
    mean_of_samples,
    mean_sample,
    sources_of,
)
from lime.runs.record import Items, Record

METRICS = ("score", "exact_match")


@dataclass(frozen=True)
class SeedMean:
    """Mean over seeds in points, its 95% interval over test items, and the sample standard deviation over seeds (None
    for one seed)."""

    value: float
    low: float | None
    high: float | None
    deviation: float | None
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Difference:
    """Mean paired difference in points over the seeds that both sides have, with its 95% interval over test items."""

    value: float
    low: float | None
    high: float | None
    seeds: tuple[int, ...]

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


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
    by_seed = [100 * float(np.mean([_sample(split, [one[split]], metric).value for split in splits])) for one in items]
    of_group = intervals.mixed if any(_correlates(split, metric) for split in splits) else intervals.share
    found = of_group([_sample(split, [one[split] for one in items], metric) for split in splits])
    if len(splits) == 1 and _correlates(splits[0], metric):
        found = intervals.of_correlation(_sample(splits[0], [one[splits[0]] for one in items], metric))
    deviation = float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None
    return SeedMean(float(np.mean(by_seed)), found.low, found.high, deviation, tuple(by_seed))


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
    found = intervals.difference(
        [
            _sample_of_difference(split, [one[split] for one in left], [one[split] for one in right], metric)
            for split in splits
        ]
    )
    return Difference(found.value, found.low, found.high, tuple(seeds))


def _correlates(split: str, metric: str) -> bool:
    return metric == "score" and TASKS[split].metric == "correlation"


def _sample(split: str, items: Sequence[Items], metric: str) -> Sample:
    """One task's mean over seeds, for `lime.evaluation.intervals`."""
    sources = _sources(split, items[0])
    if _correlates(split, metric):
        return mean_of_samples([correlation_sample(*_numbers(one), sources) for one in items])
    return mean_sample(_rights(items), sources)


def _sample_of_difference(split: str, ours: Sequence[Items], theirs: Sequence[Items], metric: str) -> Sample:
    if _correlates(split, metric):
        return difference_of_samples(_sample(split, ours, metric), _sample(split, theirs, metric))
    return mean_sample(_rights(ours) - _rights(theirs), _sources(split, ours[0]))


def _rights(items: Sequence[Items]) -> np.ndarray:
    """Share of the seeds that answered each row rightly, (R,)."""
    rights: np.ndarray = np.mean([[float(mark) for mark in one.correct] for one in items], axis=0)
    return rights


def _sources(split: str, items: Items) -> list[str]:
    names = None if items.clusters is None else [str(cluster) for cluster in items.clusters]
    return sources_of(names, split, len(items.correct))


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
