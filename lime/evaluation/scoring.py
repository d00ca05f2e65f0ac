"""Scores of one split: comparison after normalisation, accuracy or correlation, with count, interval and
baselines.

Comparison: letters by letter; numbers by value, |a - b| <= 1e-6 min(1, max(|a|, |b|)) (no relaxed tolerance); yes/true
and no/false alike where the task asks for them; everything else by `text.key`, whose rules `lime.evaluation.text`
lists. An answer written as the truth is written is right. A missing answer is wrong.

STS-B is scored by Pearson correlation (Spearman beside it). A constant side has no correlation: it counts as
0, with a note. A row without a number takes the mean of the numbers that were given: it then adds nothing to
the correlation, so silence cannot be taken for a value, and it is wrong in the exact match.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lime.evaluation import intervals
from lime.evaluation.extraction import Answer, extract
from lime.evaluation.intervals import Estimate, Sample, correlation_sample, mean_sample
from lime.evaluation.statistics import correlation
from lime.evaluation.text import another_unit, key, number_literal, number_of, parse_number, same_number

METRICS = ("accuracy", "correlation")
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

    extracted: what `extract` found in the model's output (None: no answer). frozen: the same of the frozen
    backbone on the same rows. allowed: the closed set of answers, where there is one. media: the medium each row was
    made from ("" for text), whose rows are not independent; None: every row stands for itself. cut: answers that had
    not ended at evaluation.max_new_tokens. too_long: truths longer than that.
    """

    task: Task
    truths: Sequence[str]
    extracted: Sequence[str | None]
    frozen: Sequence[str | None] | None = None
    allowed: Sequence[str] | None = None
    media: Sequence[str] | None = None
    cut: int = 0
    too_long: int = 0

    def __post_init__(self) -> None:
        n = len(self.truths)
        if n == 0:
            raise ValueError(f"{self.task.split}: no rows to score")
        for name, answers in (("extracted", self.extracted), ("frozen", self.frozen), ("media", self.media)):
            if answers is not None and len(answers) != n:
                raise ValueError(f"{self.task.split}: {n} truths, but {len(answers)} entries in {name}")
        if self.task.metric not in METRICS:
            raise ValueError(f"{self.task.split}: metric {self.task.metric!r}; expected one of {', '.join(METRICS)}")


@dataclass(frozen=True)
class SplitScore:
    """Scores of one split. Every score and interval is in points: per cent, or 100 times the correlation.

    value: the split's metric (accuracy, or 100 x Pearson), `low` and `high` its 95% interval
    (`lime.evaluation.intervals`), both None where the rows give none.
    exact_match: share of right answers, whatever the metric. pearson, spearman: -1 to 1, for correlation
    splits.
    chance: a uniform guess among the allowed answers (0 for a correlation; None for an open set). majority:
    the score of always giving `majority_answer`, the most frequent truth of the split (0 for a correlation, a
    constant having none). frozen: the frozen backbone's score. answered: rows with an answer. notes: what a
    reader must know.
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

    @property
    def difference(self) -> float | None:
        """Points above the frozen backbone."""
        return None if self.frozen is None else self.value - self.frozen


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


def correct_rows(answers: SplitAnswers, given: Sequence[str | None] | None = None) -> np.ndarray:
    """1.0 where the answer is right, else 0.0: (n,). `given` in place of the extracted answers."""
    kind = answers.task.answer_type
    pairs = zip(answers.extracted if given is None else given, answers.truths, strict=True)
    return np.array([float(matches(answer, truth, kind)) for answer, truth in pairs])


def majority_answer(truths: Sequence[str], answer_type: str) -> str:
    """The most frequent truth after normalisation, as it was first written; ties go to the one seen first."""
    first: dict[str, str] = {}
    for truth in truths:
        first.setdefault(normalise(truth, answer_type), truth)
    return first[Counter(normalise(truth, answer_type) for truth in truths).most_common(1)[0][0]]


def number_columns(answers: SplitAnswers, given: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray, int]:
    """(predictions, truths, rows without a number) of a correlation split; such rows take the mean of the
    others.

    Raises ValueError for a truth that is not a number.
    """
    truths = [parse_number(truth) for truth in answers.truths]
    for index, value in enumerate(truths):
        if value is None:
            raise ValueError(
                f"{answers.task.split}, row {index}: truth {answers.truths[index]!r} is not a number, "
                "as a split scored by correlation needs"
            )
    values = [None if answer is None else parse_number(answer) for answer in given]
    known = [value for value in values if value is not None]
    mean = float(np.mean(known)) if known else 0.0
    predictions = np.array([mean if value is None else value for value in values], dtype=float)
    return predictions, np.array(truths, dtype=float), len(values) - len(known)


@dataclass(frozen=True)
class SplitSamples:
    """What intervals are made of: the split's score and exact match, and the score less both baselines' on the same
    rows."""

    score: Sample
    exact: Sample
    over_majority: Sample
    over_frozen: Sample | None


def split_samples(answers: SplitAnswers) -> SplitSamples:
    """The samples behind the intervals of one split, and of the groups that it belongs to."""
    task, n = answers.task, len(answers.truths)
    sources = intervals.sources_of(answers.media, task.split, n)
    right = correct_rows(answers)
    exact = mean_sample(right, sources)
    if task.metric == "correlation":
        predictions, truths, _ = number_columns(answers, answers.extracted)
        score = correlation_sample(predictions, truths, sources)
        frozen = None
        if answers.frozen is not None:
            frozen = correlation_sample(number_columns(answers, answers.frozen)[0], truths, sources)
        # A constant answer has no correlation: the majority scores 0.
        return SplitSamples(score, exact, score, frozen and intervals.difference_of_samples(score, frozen))
    majority = correct_rows(answers, [majority_answer(answers.truths, task.answer_type)] * n)
    over_frozen = None
    if answers.frozen is not None:
        over_frozen = mean_sample(right - correct_rows(answers, answers.frozen), sources)
    return SplitSamples(exact, exact, mean_sample(right - majority, sources), over_frozen)


def score_split(answers: SplitAnswers, samples: SplitSamples | None = None) -> SplitScore:
    """Score one split (see `SplitScore`). samples: where `split_samples` of these answers are at hand already."""
    task, n = answers.task, len(answers.truths)
    samples = samples or split_samples(answers)
    exact = intervals.share([samples.exact])
    majority = majority_answer(answers.truths, task.answer_type)
    majority_exact = 100 * float(correct_rows(answers, [majority] * n).mean())
    frozen_exact = None if answers.frozen is None else 100 * float(correct_rows(answers, answers.frozen).mean())
    answered = sum(answer is not None for answer in answers.extracted)
    notes = _notes(answers)
    common = {
        "split": task.split,
        "name": task.name,
        "modality": task.modality,
        "category": task.category,
        "metric": task.metric,
        "n": n,
        "exact_match": exact.value,
        "exact_low": exact.low,
        "exact_high": exact.high,
        "majority_answer": majority,
        "majority_exact": majority_exact,
        "answered": answered,
        "frozen_exact": frozen_exact,
    }
    if task.metric == "correlation":
        special = _correlation_scores(answers, intervals.of_correlation(samples.score), notes)
    else:
        special = {
            "value": exact.value,
            "low": exact.low,
            "high": exact.high,
            "majority": majority_exact,
            "chance": 100 / len(set(answers.allowed)) if answers.allowed else None,
            "frozen": frozen_exact,
        }
    return SplitScore(**common, **special, notes=tuple(notes))  # type: ignore[arg-type]


def _correlation_scores(answers: SplitAnswers, score: Estimate, notes: list[str]) -> dict[str, float | None]:
    predictions, truths, missing = number_columns(answers, answers.extracted)
    pearson = correlation(predictions, truths, "pearson")
    spearman = correlation(predictions, truths, "spearman")
    if pearson is None or spearman is None:
        notes.append("correlation undefined (constant answers, constant truths or one row): counted as 0")
        pearson = spearman = 0.0
    if missing:
        notes.append(f"{missing} of {len(truths)} rows without a number: the mean of the others stands in")
    frozen = None
    if answers.frozen is not None:
        column, _, _ = number_columns(answers, answers.frozen)
        frozen = 100 * (correlation(column, truths, "pearson") or 0.0)
    sources = intervals.sources_of(answers.media, answers.task.split, len(truths))
    ranked = intervals.of_correlation(correlation_sample(predictions, truths, sources, "spearman"))
    return {
        "value": 100 * pearson,
        "low": score.low,
        "high": score.high,
        "pearson": pearson,
        "spearman": spearman,
        "spearman_low": None if ranked.low is None else ranked.low / 100,
        "spearman_high": None if ranked.high is None else ranked.high / 100,
        "majority": 0.0,
        "chance": 0.0,
        "frozen": frozen,
    }


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
