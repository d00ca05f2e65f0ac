"""Categories and the macro score: unweighted means over tasks, with the intervals of `lime.evaluation.intervals`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lime.evaluation import intervals
from lime.evaluation.intervals import Estimate
from lime.evaluation.metrics import group_estimate, metric_of
from lime.evaluation.scoring import SplitAnswers, SplitSamples, SplitScore, score_split

MACRO = "macro"
"""The group of all tasks."""


@dataclass(frozen=True)
class GroupScore:
    """Means over the tasks of a category, or over all tasks (`macro`), in points.

    score: mean of the tasks' metrics (accuracy; 100 x Pearson): the headline wherever one number stands for a run.
    exact_match: mean exact match. majority and frozen belong to `score`, majority_exact and frozen_exact to
    `exact_match`. over_majority, over_frozen: differences of `score`, with the answers of both sides to a row together.
    above_majority: tasks whose interval lies above their majority answer's score.
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


def evaluate(
    answers: Sequence[SplitAnswers],
    *,
    categories: Mapping[str, str] | None = None,
    absent: Sequence[str] = (),
) -> Evaluation:
    """Score every split and aggregate.

    categories: ids in the order wanted (with any display name as value); None takes the order of appearance.
    A group has a frozen score only where every one of its splits has frozen answers.

    Raises ValueError without splits, or for one split twice.
    """
    if not answers:
        raise ValueError("no split to score")
    names = [answer.task.split for answer in answers]
    if len(set(names)) != len(names):
        raise ValueError(f"each split may be scored once, got {sorted(n for n in names if names.count(n) > 1)}")
    scores, samples = zip(*map(score_split, answers), strict=True)
    present = list(dict.fromkeys(score.category for score in scores))
    order = [name for name in categories or present if name in present]
    order += [name for name in present if name not in order]
    groups = []
    for name in order:
        members = [index for index, score in enumerate(scores) if score.category == name]
        groups.append(_group(name, [scores[i] for i in members], [samples[i] for i in members]))
    return Evaluation(tuple(scores), tuple(groups), _group(MACRO, scores, samples), tuple(absent))


def _group(name: str, scores: Sequence[SplitScore], samples: Sequence[SplitSamples]) -> GroupScore:
    chances = [score.chance for score in scores if score.chance is not None]
    frozen = [score.frozen for score in scores if score.frozen is not None]
    frozen_exact = [score.frozen_exact for score in scores if score.frozen_exact is not None]
    over_frozen = [sample.over_frozen for sample in samples if sample.over_frozen is not None]
    complete = len(over_frozen) == len(scores)
    return GroupScore(
        name=name,
        tasks=len(scores),
        n=sum(score.n for score in scores),
        score=group_estimate([metric_of(score.metric) for score in scores], [sample.score for sample in samples]),
        exact_match=intervals.share([sample.exact for sample in samples]),
        majority=_mean([score.majority for score in scores]),
        majority_exact=_mean([score.majority_exact for score in scores]),
        over_majority=intervals.difference([sample.over_majority for sample in samples]),
        above_majority=sum(score.above_majority for score in scores),
        chance=_mean(chances) if len(chances) == len(scores) else None,
        frozen=_mean(frozen) if complete else None,
        frozen_exact=_mean(frozen_exact) if complete else None,
        over_frozen=intervals.difference(over_frozen) if complete else None,
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
