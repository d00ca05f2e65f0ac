"""Pearson's correlation of the numbers answered with the true ones, Spearman's beside it (STS-B).

A constant side has no correlation: it counts as 0, with a note. A row without a number takes the mean of the numbers
that were given: it then adds nothing to the correlation, so silence cannot be taken for a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lime.evaluation import intervals
from lime.evaluation.intervals import Estimate, Sample, correlation_sample, difference_of_samples, mean_of_samples
from lime.evaluation.metrics.base import Metric, Rows, register
from lime.evaluation.paired import swap_correlations
from lime.evaluation.statistics import correlation
from lime.evaluation.text import parse_number


class Correlation(Metric):
    """100 x Pearson."""

    def read(self, split: str, answers: Sequence[str | None], truths: Sequence[str], right_R: np.ndarray) -> Rows:
        expected = [parse_number(truth) for truth in truths]
        if None in expected:
            row = expected.index(None)
            raise ValueError(
                f"{split}, row {row}: truth {truths[row]!r} is not a number, as a split scored by correlation needs"
            )
        given = [None if answer is None else parse_number(answer) for answer in answers]
        return Rows(right_R, np.array(given, dtype=float), np.array(expected, dtype=float))

    def sample(self, seeds: Sequence[Rows], sources: Sequence[str]) -> Sample:
        return mean_of_samples([correlation_sample(*_columns(rows), sources) for rows in seeds])

    def difference(self, ours: Sequence[Rows], theirs: Sequence[Rows], sources: Sequence[str]) -> Sample:
        return difference_of_samples(self.sample(ours, sources), self.sample(theirs, sources))

    def interval(self, sample: Sample) -> Estimate:
        return intervals.of_correlation(sample)

    def p_value(self, ours: Rows, theirs: Rows, sources: Sequence[str], rng: np.random.Generator) -> float:
        (a_R, truth_R), (b_R, _) = _columns(ours), _columns(theirs)
        return swap_correlations(a_R, b_R, truth_R, sources, rng)

    def chance(self, allowed: Sequence[str] | None) -> float | None:
        return 0.0

    def details(self, rows: Rows, sources: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        given_R, truth_R = _columns(rows)
        pearson, spearman = (correlation(given_R, truth_R, kind) for kind in ("pearson", "spearman"))
        notes = []
        if pearson is None or spearman is None:
            notes.append("correlation undefined (constant answers, constant truths or one row): counted as 0")
            pearson = spearman = 0.0
        assert rows.values_R is not None
        if missing := int(np.isnan(rows.values_R).sum()):
            notes.append(f"{missing} of {len(truth_R)} rows without a number: the mean of the others stands in")
        ranked = intervals.of_correlation(correlation_sample(given_R, truth_R, sources, "spearman"))
        return {
            "pearson": pearson,
            "spearman": spearman,
            "spearman_low": None if ranked.low is None else ranked.low / 100,
            "spearman_high": None if ranked.high is None else ranked.high / 100,
        }, notes


def _columns(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """(numbers given, numbers expected), a missing one being the mean of the others."""
    assert rows.values_R is not None
    assert rows.truths_R is not None
    known = rows.values_R[~np.isnan(rows.values_R)]
    mean = float(np.mean(known)) if known.size else 0.0
    return np.where(np.isnan(rows.values_R), mean, rows.values_R), rows.truths_R


register(Correlation("correlation", "100 x Pearson"))
