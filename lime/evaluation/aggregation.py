"""Categories and the macro score: unweighted means over tasks, with bootstrap intervals over rows within each
task, rows of one source medium drawn together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lime.evaluation.clusters import cluster_weights, weighted_correlations, weighted_means
from lime.evaluation.scoring import (
    SplitAnswers,
    SplitScore,
    correct_rows,
    majority_answer,
    number_columns,
    score_split,
)
from lime.evaluation.statistics import bootstrap_correlations, bootstrap_means, percentile_interval, wilson_interval


@dataclass(frozen=True)
class Estimate:
    """A mean over tasks with its 95% bootstrap interval, in points."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class GroupScore:
    """Means over the tasks of a category, or over all tasks (`macro`), in points.

    score: mean of the tasks' metrics (accuracy, 100 x Pearson). exact_match: mean exact match. majority and
    frozen belong to `score`, majority_exact and frozen_exact to `exact_match`. over_majority, over_frozen:
    differences of exact match, their intervals from resampling rows with the answers of both sides together.
    above_majority: tasks whose exact match interval lies above their majority answer.
    """

    name: str
    tasks: int
    n: int
    score: Estimate
    exact_match: Estimate
    majority: float
    majority_exact: float
    over_majority: Estimate
    above_majority: int
    chance: float | None = None
    frozen: float | None = None
    frozen_exact: float | None = None
    over_frozen: Estimate | None = None


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model: per split, per category, over all. `absent`: splits of the benchmark that were not
    scored."""

    splits: tuple[SplitScore, ...]
    categories: tuple[GroupScore, ...]
    macro: GroupScore
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Samples:
    """Bootstrap samples of one split in points, each (resamples,)."""

    score: np.ndarray
    exact: np.ndarray
    over_majority: np.ndarray
    over_frozen: np.ndarray | None


def evaluate(
    answers: Sequence[SplitAnswers],
    *,
    categories: Mapping[str, str] | None = None,
    absent: Sequence[str] = (),
    resamples: int = 2000,
    seed: int = 0,
) -> Evaluation:
    """Score every split and aggregate.

    categories: ids in the order wanted (with any display name as value); None takes the order of appearance.
    A group has a frozen score only where every one of its splits has frozen answers. Rows are resampled
    within their split from `seed`; rows of one source medium together, across splits too (`clusters`).

    Raises ValueError without splits, or for one split twice.
    """
    if not answers:
        raise ValueError("no split to score")
    names = [answer.task.split for answer in answers]
    if len(set(names)) != len(names):
        raise ValueError(f"each split may be scored once, got {sorted(n for n in names if names.count(n) > 1)}")
    scores = [score_split(answer) for answer in answers]
    samples = [_resample(answer, resamples, seed) for answer in answers]
    present = list(dict.fromkeys(score.category for score in scores))
    order = [name for name in categories or present if name in present]
    order += [name for name in present if name not in order]
    groups = []
    for name in order:
        members = [index for index, score in enumerate(scores) if score.category == name]
        groups.append(_group(name, [scores[i] for i in members], [samples[i] for i in members]))
    return Evaluation(tuple(scores), tuple(groups), _group("macro", scores, samples), tuple(absent))


def _resample(answers: SplitAnswers, resamples: int, seed: int) -> _Samples:
    right = correct_rows(answers)
    majority = correct_rows(answers, [majority_answer(answers.truths, answers.task.answer_type)] * len(right))
    frozen = None if answers.frozen is None else correct_rows(answers, answers.frozen)
    draw = _Draw(answers, resamples, seed)
    exact = 100 * draw.means(right)
    over_majority = 100 * draw.means(right - majority)
    over_frozen = None if frozen is None else 100 * draw.means(right - frozen)
    score = exact
    if answers.task.metric == "correlation":
        predictions, truths, _ = number_columns(answers, answers.extracted)
        score = 100 * draw.correlations(predictions, truths)
    return _Samples(score, exact, over_majority, over_frozen)


class _Draw:
    """Resamples of one split: its source media where it has any, else its rows.

    Rows without media are drawn from a seed sequence named after the split, so that a split's interval does not depend
    on which others are scored.
    """

    def __init__(self, answers: SplitAnswers, resamples: int, seed: int):
        split, media = answers.task.split, answers.media
        self._resamples, self._weights = resamples, None
        self._rng = np.random.default_rng([seed, *split.encode()])
        if media is not None and any(media):
            names = [name or f"\0{split}/{row}" for row, name in enumerate(media)]
            self._weights = cluster_weights(names, resamples, seed)

    def means(self, values: np.ndarray) -> np.ndarray:
        if self._weights is not None:
            return weighted_means(values, self._weights)
        return bootstrap_means(values, self._resamples, self._rng)

    def correlations(self, predictions: np.ndarray, truths: np.ndarray) -> np.ndarray:
        if self._weights is not None:
            return weighted_correlations(predictions, truths, self._weights)
        samples: np.ndarray = bootstrap_correlations([predictions], truths, self._resamples, self._rng)[0]
        return samples


def _group(name: str, scores: Sequence[SplitScore], samples: Sequence[_Samples]) -> GroupScore:
    chances = [score.chance for score in scores if score.chance is not None]
    exact = _mean([score.exact_match for score in scores])
    majority_exact = _mean([score.majority_exact for score in scores])
    frozen = [score.frozen for score in scores if score.frozen is not None]
    frozen_exact = [score.frozen_exact for score in scores if score.frozen_exact is not None]
    over_frozen = [sample.over_frozen for sample in samples if sample.over_frozen is not None]
    complete = len(frozen_exact) == len(scores)
    rows = sum(score.n for score in scores)
    of_score = _estimate if any(score.pearson is not None for score in scores) else _bounded_by(rows)
    return GroupScore(
        name=name,
        tasks=len(scores),
        n=rows,
        score=of_score(_mean([score.value for score in scores]), [sample.score for sample in samples]),
        exact_match=_bounded_by(rows)(exact, [sample.exact for sample in samples]),
        majority=_mean([score.majority for score in scores]),
        majority_exact=majority_exact,
        over_majority=_estimate(exact - majority_exact, [sample.over_majority for sample in samples]),
        above_majority=sum(score.above_majority for score in scores),
        chance=_mean(chances) if len(chances) == len(scores) else None,
        frozen=_mean(frozen) if complete else None,
        frozen_exact=_mean(frozen_exact) if complete else None,
        over_frozen=_estimate(exact - _mean(frozen_exact), over_frozen) if complete else None,
    )


def _estimate(value: float, samples: Sequence[np.ndarray]) -> Estimate:
    low, high = percentile_interval(np.mean(samples, axis=0))
    return Estimate(value, low, high)


def _bounded_by(rows: int) -> Callable[[float, Sequence[np.ndarray]], Estimate]:
    """The estimate of a mean of shares: of nothing but wrong, or nothing but right, answers resampling learns nothing,
    and the interval is Wilson's for that many rows."""

    def estimate(value: float, samples: Sequence[np.ndarray]) -> Estimate:
        if value in (0.0, 100.0) and all((sample == value).all() for sample in samples):
            low, high = wilson_interval(rows if value else 0, rows)
            return Estimate(value, 100 * low, 100 * high)
        return _estimate(value, samples)

    return estimate


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
