"""Means over seeds and paired differences, from the per-item results of records.

Two kinds of uncertainty are kept apart. The interval of a mean or a difference is that of `lime.evaluation.intervals`
over the test items, with each item's result averaged over the seeds; it says what other test rows would have given. The
standard deviation over seeds says what other seeds would have given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lime.evaluation import intervals
from lime.evaluation.aggregation import MACRO
from lime.evaluation.intervals import Estimate, sources_of
from lime.evaluation.metrics import Metric, Rows, group_estimate, metric_of
from lime.evaluation.metrics.accuracy import ACCURACY
from lime.runs.record import Items, Record

MEASURES = ("score", "exact_match")
"""``score``: by each task's own metric; ``exact_match``: the share of right answers everywhere."""


@dataclass(frozen=True)
class SeedMean(Estimate):
    """Mean over seeds, with its interval over test items. deviation: sample standard deviation over seeds (None for
    one seed)."""

    deviation: float | None
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Difference(Estimate):
    """Mean paired difference over the seeds that both sides have, with its interval over test items."""

    seeds: tuple[int, ...]


class CannotCompare(ValueError):
    """Records that do not hold the same items; names them."""


def splits_of(records: Sequence[Record], group: str) -> list[str]:
    """Splits of a category, of a modality (``text``, ``image``, ``video``), of ``vision`` (image and video), a split
    itself, or all of them (``macro``), as far as the records have them."""
    present, table = records[0].items, records[0].table
    if group == MACRO:
        return list(present)
    if group in table.tasks:
        return [group] if group in present else []
    if group in table.categories:
        return [split for split in present if table.tasks[split].category == group]
    modalities = {"vision": ("image", "video")}.get(group, (group,))
    return [split for split in present if table.tasks[split].modality in modalities]


def seed_mean(records: Sequence[Record], group: str, measure: str = "score") -> SeedMean | None:
    """Mean over the records (one per seed) of a group's score: the unweighted mean over its tasks.

    Args:
        measure: one of :data:`MEASURES`.

    Returns:
        None without records, or where they have no such task.
    """
    if not records or not (splits := splits_of(records, group)):
        return None
    _check_same(records, measure)
    items = [record.split_items() for record in records]
    metrics = _metrics(records[0], splits, measure)
    by_seed, samples = [], []
    for one in items:
        scores = [metrics[s].sample([_rows(one[s])], _sources(s, one[s])).value for s in splits]
        by_seed.append(100 * float(np.mean(scores)))
    for split in splits:
        seeds = [one[split] for one in items]
        samples.append(metrics[split].sample([_rows(one) for one in seeds], _sources(split, seeds[0])))
    estimate = group_estimate([*metrics.values()], samples)
    deviation = float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None
    return SeedMean(float(np.mean(by_seed)), estimate.low, estimate.high, deviation, tuple(by_seed))


def difference(
    ours: Sequence[Record], theirs: Sequence[Record], group: str, measure: str = "score"
) -> Difference | None:
    """``ours`` less ``theirs``, paired by seed and item; None where they share no seed or no task."""
    a, b = ({record.seed: record for record in side} for side in (ours, theirs))
    seeds = sorted(a.keys() & b.keys())
    pairs = [record for seed in seeds for record in (a[seed], b[seed])]
    if not pairs or not (splits := splits_of(pairs, group)):
        return None
    _check_same(pairs, measure)
    left, right = ([side[seed].split_items() for seed in seeds] for side in (a, b))
    samples = []
    for split, metric in _metrics(pairs[0], splits, measure).items():
        ours_rows, theirs_rows = ([_rows(one[split]) for one in side] for side in (left, right))
        samples.append(metric.difference(ours_rows, theirs_rows, _sources(split, left[0][split])))
    estimate = intervals.difference(samples)
    return Difference(estimate.value, estimate.low, estimate.high, tuple(seeds))


def _metrics(record: Record, splits: Sequence[str], measure: str) -> dict[str, Metric]:
    """The metric of each split: the one that the run was scored by."""
    if measure == "exact_match":
        return dict.fromkeys(splits, ACCURACY)
    return {split: metric_of(metric_name(record, split)) for split in splits}


def metric_name(record: Record, split: str) -> str:
    """The metric that a run's split was scored by."""
    scored = (entry["metric"] for entry in record.scores if (entry["level"], entry["name"]) == ("split", split))
    return next(scored, record.table.tasks[split].metric)


def _sources(split: str, items: Items) -> list[str]:
    names = None if items.clusters is None else [str(cluster) for cluster in items.clusters]
    return sources_of(names, split, len(items.correct))


def _rows(items: Items) -> Rows:
    return Rows(
        right_R=np.array([mark == "1" for mark in items.correct], dtype=float),
        values_R=None if items.values is None else np.array(items.values, dtype=float),
        truths_R=None if items.truths is None else np.array(items.truths),
    )


def _check_same(records: Sequence[Record], measure: str) -> None:
    first = records[0]
    for record in records[1:]:
        if record.identity.data != first.identity.data:
            raise CannotCompare(
                f"runs {first.identity.config} and {record.identity.config} of {first.name} saw other data "
                f"({str(first.identity.data)[:12]}, {str(record.identity.data)[:12]}); run one of them again"
            )
        for split in sorted(first.items.keys() | record.items.keys()):
            rows = [one.items.get(split, {}).get("rows") for one in (first, record)]
            if rows[0] != rows[1]:
                raise CannotCompare(
                    f"runs {first.identity.config} and {record.identity.config} of {first.name} were scored on other "
                    f"rows of {split}; compare runs of the same data.rows_per_split and evaluation.splits"
                )
            names = [metric_name(one, split) for one in (first, record)]
            if measure == "score" and names[0] != names[1]:
                raise CannotCompare(
                    f"runs {first.identity.config} and {record.identity.config} of {first.name} were scored on {split} "
                    f"by other metrics ({', '.join(names)}); compare runs of the same evaluation.metrics"
                )
