"""Scores of one split: answers compared after normalisation, then its metric with count, interval and baselines.

Comparison: letters by letter; numbers by value, |a - b| <= 1e-6 min(1, max(|a|, |b|)) (no relaxed tolerance); yes/true
and no/false alike where the task asks for them; everything else by `text.key`, whose rules `lime.evaluation.text`
lists. An answer written as the truth is written is right. A missing answer is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from lime.evaluation import intervals
from lime.evaluation.extraction import Answer, extract
from lime.evaluation.intervals import Sample, mean_sample
from lime.evaluation.metrics import metric_of
from lime.evaluation.text import another_unit, key, number_literal, number_of, same_number

_TRUTH_VALUES = {"true": "yes", "false": "no"}


class Task(Protocol):
    """What scoring needs to know of a task."""

    @property
    def split(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def modality(self) -> str: ...
    @property
    def category(self) -> str: ...
    @property
    def answer_type(self) -> str: ...
    @property
    def metric(self) -> str: ...


@dataclass(frozen=True)
class SplitAnswers:
    """Answers to the rows of one split, in row order.

    extracted: what `extract` read in the model's output (None: no answer). frozen: the same of the frozen backbone on
    the same rows. right, frozen_right: whether these are right, where `matches` was asked already. allowed: the closed
    set of answers, where there is one. media: the medium each row was made from ("" for text), whose rows are not
    independent; None: every row stands for itself. cut: answers that had not ended at evaluation.max_new_tokens.
    too_long: truths longer than that.
    """

    task: Task
    truths: Sequence[str]
    extracted: Sequence[str | None]
    frozen: Sequence[str | None] | None = None
    allowed: Sequence[str] | None = None
    media: Sequence[str] | None = None
    cut: int = 0
    too_long: int = 0
    right: Sequence[bool] | None = None
    frozen_right: Sequence[bool] | None = None

    def __post_init__(self) -> None:
        n = len(self.truths)
        if n == 0:
            raise ValueError(f"{self.task.split}: no rows to score")
        for name in ("extracted", "frozen", "media", "right", "frozen_right"):
            if (answers := getattr(self, name)) is not None and len(answers) != n:
                raise ValueError(f"{self.task.split}: {n} truths, but {len(answers)} entries in {name}")
        metric_of(self.task.metric)  # raises where nothing has registered it

    @cached_property
    def right_R(self) -> np.ndarray:
        """1.0 where the model's answer is right, else 0.0."""
        return self.marks(self.extracted) if self.right is None else np.array(self.right, dtype=float)

    @cached_property
    def frozen_right_R(self) -> np.ndarray:
        """1.0 where the frozen backbone's answer is right, else 0.0."""
        return self.marks(self.frozen or ()) if self.frozen_right is None else np.array(self.frozen_right, dtype=float)

    def marks(self, given: Sequence[str | None]) -> np.ndarray:
        """1.0 where one of these answers is right, else 0.0: (R,)."""
        kind = self.task.answer_type
        pairs = zip(given, self.truths, strict=True)
        return np.array([matches(answer, truth, kind) for answer, truth in pairs], dtype=float)


@dataclass(frozen=True)
class SplitScore:
    """Scores of one split. Every score and interval is in points: per cent, or 100 times the correlation.

    value: by the split's metric (`lime.evaluation.metrics`), `low` and `high` its 95% interval
    (`lime.evaluation.intervals`), both None where the rows give none.
    exact_match: share of right answers, whatever the metric. pearson, spearman: -1 to 1, for correlation splits.
    chance: a uniform guess among the allowed answers (0 for a correlation; None where it is unknown). majority: the
    score of always giving `majority_answer`, the most frequent truth of the split (0 for a correlation, a constant
    having none). frozen: the frozen backbone's score. answered: rows with an answer. notes: what a reader must know.
    """

    split: str
    name: str
    modality: str
    category: str
    metric: str
    n: int
    value: float
    low: float | None
    high: float | None
    exact_match: float
    exact_low: float | None
    exact_high: float | None
    majority_answer: str
    majority: float
    majority_exact: float
    answered: int
    chance: float | None = None
    pearson: float | None = None
    spearman: float | None = None
    spearman_low: float | None = None
    spearman_high: float | None = None
    frozen: float | None = None
    frozen_exact: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def above_majority(self) -> bool:
        """Whether the interval of the score lies above the majority answer's score."""
        return self.low is not None and self.low > self.majority


def normalise(answer: str, answer_type: str) -> str:
    """The form in which two answers of this type are compared; a number's sign (% or $) stands behind it."""
    number = number_of(answer) if answer_type != "letter" else None
    if number is not None:
        return number_literal(number[0]) + number[1]
    text = key(answer)
    return _TRUTH_VALUES.get(text, text) if answer_type == "yes_no" else text


def matches(extracted: str | None, truth: str, answer_type: str) -> bool:
    """Whether an extracted answer is right (see the module's text). None is never right; what is written exactly as
    the truth always is."""
    if extracted is None:
        return False
    if isinstance(extracted, Answer) and extracted.whole != extracted:
        if extracted.whole == truth.strip() or _equal(extracted.whole, truth, answer_type):
            return True
        signed = (number := number_of(truth)) is not None and number[1]
        if number_of(extracted.whole) is not None or (signed and another_unit(extracted.whole)):
            return False  # its sign is not that of the truth
    return _equal(extracted, truth, answer_type)


def _equal(one: str, other: str, answer_type: str) -> bool:
    if one.strip() == other.strip():
        return True
    first, second = (None, None) if answer_type == "letter" else (number_of(one), number_of(other))
    if first is not None and second is not None:
        same_unit = first[1] == second[1] or not (first[1] and second[1])
        return same_unit and same_number(first[0], second[0])
    return normalise(one, answer_type) == normalise(other, answer_type)


def majority_answer(truths: Sequence[str], answer_type: str) -> str:
    """The most frequent truth after normalisation, as it was first written; ties go to the one seen first."""
    first: dict[str, str] = {}
    for truth in truths:
        first.setdefault(normalise(truth, answer_type), truth)
    return first[Counter(normalise(truth, answer_type) for truth in truths).most_common(1)[0][0]]


@dataclass(frozen=True)
class SplitSamples:
    """What intervals are made of: the split's score and exact match, and the score less both baselines' on the same
    rows."""

    score: Sample
    exact: Sample
    over_majority: Sample
    over_frozen: Sample | None


def score_split(answers: SplitAnswers) -> tuple[SplitScore, SplitSamples]:
    """The scores of one split, and what the intervals of its groups are made of.

    Raises ValueError where the metric cannot read these rows.
    """
    task, n, truths = answers.task, len(answers.truths), answers.truths
    metric = metric_of(task.metric)
    sources = intervals.sources_of(answers.media, task.split, n)
    rows = metric.read(task.split, answers.extracted, truths, answers.right_R)
    sample, exact_sample = metric.sample([rows], sources), mean_sample(answers.right_R, sources)
    score, exact = metric.interval(sample), intervals.share([exact_sample])

    majority = majority_answer(truths, task.answer_type)
    majority_right_R = answers.marks([majority] * n)
    over_majority, majority_score = sample, 0.0
    if metric.rates_constants:
        constant = metric.read(task.split, [majority] * n, truths, majority_right_R)
        over_majority = metric.difference([rows], [constant], sources)
        majority_score = 100 * metric.sample([constant], sources).value

    over_frozen, frozen_score, frozen_exact = None, None, None
    if answers.frozen is not None:
        frozen = metric.read(task.split, answers.frozen, truths, answers.frozen_right_R)
        over_frozen = metric.difference([rows], [frozen], sources)
        frozen_score = 100 * metric.sample([frozen], sources).value
        frozen_exact = 100 * float(answers.frozen_right_R.mean())

    details, notes = metric.details(rows, sources)
    return SplitScore(
        split=task.split,
        name=task.name,
        modality=task.modality,
        category=task.category,
        metric=task.metric,
        n=n,
        value=score.value,
        low=score.low,
        high=score.high,
        exact_match=exact.value,
        exact_low=exact.low,
        exact_high=exact.high,
        majority_answer=majority,
        majority=majority_score,
        majority_exact=100 * float(majority_right_R.mean()),
        answered=sum(answer is not None for answer in answers.extracted),
        chance=metric.chance(answers.allowed),
        frozen=frozen_score,
        frozen_exact=frozen_exact,
        notes=(*_notes(answers), *notes),
        **details,
    ), SplitSamples(sample, exact_sample, over_majority, over_frozen)


def _notes(answers: SplitAnswers) -> list[str]:
    notes = []
    n = len(answers.truths)
    kind = answers.task.answer_type
    distinct = Counter(answers.truths)
    unreachable = sum(
        count for truth, count in distinct.items() if not matches(extract(truth, kind, answers.allowed), truth, kind)
    )
    if unreachable:
        notes.append(
            f"{unreachable} of {n} truths cannot be given as an answer of type {kind}"
            + (f" among {len(answers.allowed)} allowed answers" if answers.allowed else "")
        )
    if answers.cut:
        notes.append(f"{answers.cut} of {n} answers were cut at evaluation.max_new_tokens")
    if answers.too_long:
        notes.append(f"{answers.too_long} of {n} truths are longer than evaluation.max_new_tokens and cannot be given")
    return notes
