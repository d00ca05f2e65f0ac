"""What a metric is: how a task's rows become one score, its interval, and a test between two runs.

A metric that is the mean of a function of each row needs the function alone (`row_metric`). Any other statistic
subclasses `Metric`, as `correlation.py` does.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lime.evaluation import intervals
from lime.evaluation.intervals import Estimate, Sample, mean_sample
from lime.evaluation.paired import flip_at_random

RowScore = Callable[[str | None, str], float]


@dataclass(frozen=True)
class Rows:
    """What a metric knows of the R rows of a task; a run's record keeps it, so that tables need no predictions.

    right_R: 1.0 where the answer is right, else 0.0. values_R: what the metric reads from each answer, NaN where it
    reads nothing; None for a metric of `right_R` alone. truths_R: what the values are held against, for correlations.
    """

    right_R: np.ndarray
    values_R: np.ndarray | None = None
    truths_R: np.ndarray | None = None


@dataclass(frozen=True)
class Metric(ABC):
    """How a task is scored.

    name: as `evaluation.metrics` and the results name it. title: with its scale where that is not points of a share,
    as in "100 x Pearson".
    """

    name: str
    title: str

    reads_answers = True
    """Whether it reads answers, and not only whether they are right."""
    shares = False
    """Whether it is a mean of row values between 0 and 1; a group of such tasks has the interval of shares."""
    rates_constants = False
    """Whether an answer that is always the same has a score; without one, the majority answer scores 0."""

    @abstractmethod
    def read(self, split: str, answers: Sequence[str | None], truths: Sequence[str], right_R: np.ndarray) -> Rows:
        """What the metric needs of these rows. Raises ValueError, naming split and row, where it cannot."""

    @abstractmethod
    def sample(self, seeds: Sequence[Rows], sources: Sequence[str]) -> Sample:
        """The score in [-1, 1], a mean over the seeds' runs, with what each source of rows contributes."""

    @abstractmethod
    def difference(self, ours: Sequence[Rows], theirs: Sequence[Rows], sources: Sequence[str]) -> Sample:
        """`ours` less `theirs`, seed by seed on the same rows."""

    @abstractmethod
    def interval(self, sample: Sample) -> Estimate:
        """The score of one task in points, with its 95% interval."""

    @abstractmethod
    def p_value(self, ours: Rows, theirs: Rows, sources: Sequence[str], rng: np.random.Generator) -> float:
        """Two-sided p of a difference between two runs on the same rows."""

    def chance(self, allowed: Sequence[str] | None) -> float | None:
        """Points of a uniform guess among the allowed answers; None where that is unknown."""
        return None

    def details(self, rows: Rows, sources: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """Further fields of `SplitScore`, and notes for the reader."""
        return {}, []


class MeanOfRows(Metric):
    """The mean over rows of a value between 0 and 1."""

    shares = True
    rates_constants = True

    def row_values(self, rows: Rows) -> np.ndarray:
        """The value of each row, (R,)."""
        assert rows.values_R is not None
        return rows.values_R

    def sample(self, seeds: Sequence[Rows], sources: Sequence[str]) -> Sample:
        return mean_sample(self._mean(seeds), sources)

    def difference(self, ours: Sequence[Rows], theirs: Sequence[Rows], sources: Sequence[str]) -> Sample:
        return mean_sample(self._mean(ours) - self._mean(theirs), sources)

    def interval(self, sample: Sample) -> Estimate:
        return intervals.share([sample])

    def p_value(self, ours: Rows, theirs: Rows, sources: Sequence[str], rng: np.random.Generator) -> float:
        return flip_at_random(self.row_values(theirs) - self.row_values(ours), sources, rng)

    def _mean(self, seeds: Sequence[Rows]) -> np.ndarray:
        """The value of each row, averaged over seeds, (R,)."""
        mean_R: np.ndarray = np.mean([self.row_values(rows) for rows in seeds], axis=0)
        return mean_R


@dataclass(frozen=True)
class RowMetric(MeanOfRows):
    """The mean of a function of (answer, truth); the answer is None where the model gave none."""

    score: RowScore

    def read(self, split: str, answers: Sequence[str | None], truths: Sequence[str], right_R: np.ndarray) -> Rows:
        values = [float(self.score(answer, truth)) for answer, truth in zip(answers, truths, strict=True)]
        for row, value in enumerate(values):
            if not 0 <= value <= 1:
                raise ValueError(f"{split}, row {row}: metric {self.name} gave {value}; expected a number from 0 to 1")
        return Rows(right_R, np.array(values))


METRICS: dict[str, Metric] = {}
"""Every metric by its name; `register` adds to it."""


def register(metric: Metric) -> Metric:
    """Offer a metric under its name.

    Raises ValueError where another metric has the name.
    """
    if METRICS.setdefault(metric.name, metric) != metric:
        raise ValueError(f"metric {metric.name}: there is another one of this name; choose another name")
    return metric


def row_metric(name: str, title: str) -> Callable[[RowScore], RowScore]:
    """Register the decorated function of (answer, truth), a number from 0 to 1, as a metric: its mean over rows."""

    def registered(score: RowScore) -> RowScore:
        register(RowMetric(name, title, score))
        return score

    return registered


def import_metrics(module: str, key: str) -> None:
    """Import a module of one's own that registers metrics.

    Raises ValueError, beginning with ``key``, where it cannot be imported, whatever it raises.
    """
    try:
        importlib.import_module(module)
    except Exception as error:
        raise ValueError(
            f"{key}: {module}: cannot be imported ({type(error).__name__}: {error}); expected a module on Python's "
            "path that registers a metric (docs/records.md)"
        ) from error


def metric_of(name: str) -> Metric:
    """The metric of this name.

    Raises ValueError for a name that nothing has registered.
    """
    if name not in METRICS:
        raise ValueError(
            f"metric {name!r}: expected one of {', '.join(METRICS)}, or one of your own, whose module must be named "
            "(evaluation.module=MODULE; --module MODULE of scripts)"
        )
    return METRICS[name]


def title_of(name: str) -> str:
    """The metric's title; its name where its module is not imported, as when somebody else's results are shown."""
    return METRICS[name].title if name in METRICS else name


def score_in_words(scored: Mapping[str, str], separator: str = "; ") -> str:
    """What "score" means in a table, by task name and metric: ``accuracy; 100 x Pearson for STS-B``."""
    parts = ["accuracy"] if "accuracy" in scored.values() or not scored else []
    if scored.get("stsb") == "correlation":
        parts.append("100 x Pearson for STS-B")
    for metric in dict.fromkeys(name for name in scored.values() if name != "accuracy"):
        tasks = [task for task, name in scored.items() if name == metric and (task, name) != ("stsb", "correlation")]
        parts += [f"{title_of(metric)} for {', '.join(tasks)}"] if tasks else []
    return separator.join(parts)


def group_estimate(metrics: Sequence[Metric], samples: Sequence[Sample]) -> Estimate:
    """The unweighted mean of tasks' scores in points, with its 95% interval; of one task its own."""
    if len(samples) == 1:
        return metrics[0].interval(samples[0])
    return (intervals.share if all(metric.shares for metric in metrics) else intervals.mixed)(samples)
