r"""The scorer of the authors' published runs, only to compare with published numbers.

It extracts an answer with the truth in hand and forgives a great deal: an empty answer counts as correct, and so does
an answer that is contained in the truth, or a number within 0.5 of it. The scores of this project
(`lime.evaluation.scoring`) are blind to the truth; these are shown beside them with the difference, and decide nothing.

Rules, in order; `p` is the cleaned prediction, `t` the normalised truth.

clean: lower case; `<|…|>` removed; whatever is not a word character, white space or a dot becomes a space; single
spaces; trailing dots dropped, then outer spaces: a dot before a final space or line end stays (`cat.\n` is `cat.`, a
truth of ` . ` is a dot, not empty). normalise: clean, then yes and true become `true`, no and false become `false`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lime.evaluation.predictions import Prediction
from lime.evaluation.scoring import Task
from lime.evaluation.statistics import correlation

KINDS = ("exact", "semantic", "numeric", "contains", "no_match")
NUMERIC_TOLERANCE = 0.5

_SPECIAL = re.compile(r"<\|.*?\|>")
_OTHER = re.compile(r"[^\w\s.]")
_SPACE = re.compile(r"\s+")
_NUMBER = re.compile(r"\d+\.?\d*")
_LETTER_FIRST = re.compile(r"([a-z])[.\s]")
_SENTIMENTS = ("positive", "negative", "neutral")
_LABELS = (
    "duplicate", "not_duplicate", "entailment", "contradiction", "neutral", "equivalent", "not_equivalent",
    "acceptable", "unacceptable",
)  # fmt: skip
_SAME = (
    frozenset({"duplicate", "true", "yes", "1"}),
    frozenset({"not_duplicate", "not duplicate", "false", "no", "0"}),
    frozenset({"equivalent", "true", "yes", "1"}),
    frozenset({"not_equivalent", "not equivalent", "false", "no", "0"}),
    frozenset({"entailment", "true", "yes", "1"}),
    frozenset({"not_entailment", "not entailment", "false", "no", "0"}),
    frozenset({"acceptable", "grammatical", "correct"}),
    frozenset({"unacceptable", "ungrammatical", "incorrect"}),
)
_OPPOSITES = (
    ("acceptable", "unacceptable"), ("grammatical", "ungrammatical"), ("correct", "incorrect"),
    ("equivalent", "not_equivalent"), ("equivalent", "not equivalent"), ("duplicate", "not_duplicate"),
    ("duplicate", "not duplicate"), ("entailment", "not_entailment"), ("entailment", "not entailment"),
)  # fmt: skip
_TRUTH_VALUES = {"yes": "true", "true": "true", "no": "false", "false": "false"}


def clean(text: str) -> str:
    """Text as the authors compare it (see the module's text)."""
    text = _OTHER.sub(" ", _SPECIAL.sub("", text.lower()))
    return _SPACE.sub(" ", text).rstrip(".").strip()


def normalise(text: str) -> str:
    """`clean`, with one word for yes and true and one for no and false."""
    cleaned = clean(text)
    return _TRUTH_VALUES.get(cleaned, cleaned)


def extract(prediction: str, truth: str) -> str:
    """The answer the authors' scorer reads in `prediction`, given the truth; the first rule that fires wins."""
    p, t = clean(prediction), normalise(truth)
    if ("_" in t or " " in t) and t in p:
        return t
    letter = _letter(p) if len(t) == 1 else None
    if letter is not None:
        return letter
    words = p.split()
    first = re.sub(r"\W", "", words[0]) if words else ""
    if first in _TRUTH_VALUES and t in ("true", "false"):
        return _TRUTH_VALUES[first]
    if first in _SENTIMENTS:
        return first
    for label in _LABELS:
        if p == label or p.startswith((label + " ", label + ".")):
            return label
    number = _NUMBER.match(p)
    if number:
        return number.group()
    if t in words or t in p:
        return t
    return words[0] if words else p


def _letter(p: str) -> str | None:
    if re.fullmatch("[a-z]", p):
        return p
    match = _LETTER_FIRST.match(p)
    return match.group(1) if match else None


def compare(extracted: str, truth: str) -> tuple[bool, str]:
    """(correct, which of `KINDS`) of an extracted answer; the first rule that applies wins."""
    a, b = normalise(extracted), normalise(truth)
    if a == b:
        return True, "exact"
    if any(a in group and b in group for group in _SAME):
        return True, "semantic"
    number, expected = _NUMBER.match(a), _NUMBER.match(b)
    if number and expected and abs(float(number.group()) - float(expected.group())) <= NUMERIC_TOLERANCE:
        return True, "numeric"
    for pair in _OPPOSITES:
        for member, other in (pair, pair[::-1]):
            if (a == member and other in b) or (b == member and other in a):
                return False, "no_match"
    if b in a or a in b:
        return True, "contains"
    return False, "no_match"


def judge(prediction: str | None, truth: str) -> tuple[str, bool, str]:
    """(extracted, correct, kind) of what a model wrote; a row that got no answer at all counts as empty text."""
    extracted = extract(prediction or "", truth)
    return extracted, *compare(extracted, truth)


def leading_number(text: str) -> float:
    """The number that the cleaned text begins with, 0 where there is none (STS-B)."""
    match = _NUMBER.match(clean(text))
    return float(match.group()) if match else 0.0


@dataclass(frozen=True)
class AuthorsSplit:
    """A split by both scorers, in points (accuracy, or 100 x Pearson where the split is scored by correlation).

    authors: by the authors' rules. blind: by this project's. kinds: rows by the rule that judged them, e.g.
    {"exact": 40, "contains": 3, "no_match": 17}. empty: rows without any answer that the authors' rules call correct.
    pearson, spearman: of the leading numbers, for correlation splits.
    """

    split: str
    category: str
    n: int
    authors: float
    blind: float
    kinds: dict[str, int]
    empty: int
    pearson: float | None = None
    spearman: float | None = None

    @property
    def difference(self) -> float:
        """Points that the authors' scorer gives beyond the blind one."""
        return self.authors - self.blind


@dataclass(frozen=True)
class AuthorsScores:
    """Both scorers over all splits; `categories` and `macro` are unweighted means over splits, (authors, blind)."""

    splits: tuple[AuthorsSplit, ...]
    categories: dict[str, tuple[float, float]]
    macro: tuple[float, float]


def score_as_authors(
    predictions: Sequence[Prediction], tasks: Mapping[str, Task], blind: Mapping[str, float]
) -> AuthorsScores:
    """Score saved predictions by the authors' rules.

    Args:
        predictions: the records of a run.
        tasks: by split name.
        blind: the blind score of each split in points, to be shown beside.

    Raises:
        ValueError: no predictions, or a split without a task or a blind score.
    """
    by_split: dict[str, list[Prediction]] = {}
    for record in predictions:
        by_split.setdefault(record.split, []).append(record)
    lacking = sorted(split for split in by_split if split not in tasks or split not in blind)
    if not by_split or lacking:
        raise ValueError(f"no predictions to score, or splits without a task or a blind score: {lacking}")
    splits = tuple(_split(tasks[split], by_split[split], blind[split]) for split in tasks if split in by_split)
    categories = {
        name: _means([split for split in splits if split.category == name])
        for name in dict.fromkeys(split.category for split in splits)
    }
    return AuthorsScores(splits, categories, _means(splits))


def _split(task: Task, records: Sequence[Prediction], blind: float) -> AuthorsSplit:
    judged = [judge(record.raw, record.truth) for record in records]
    kinds = {kind: sum(rule == kind for _, _, rule in judged) for kind in KINDS}
    score = 100 * sum(correct for _, correct, _ in judged) / len(judged)
    pearson = spearman = None
    if task.metric == "correlation":
        given = np.array([leading_number(record.raw or "") for record in records])
        truths = np.array([leading_number(record.truth) for record in records])
        pearson = correlation(given, truths, "pearson") or 0.0
        spearman = correlation(given, truths, "spearman") or 0.0
        score = 100 * pearson
    return AuthorsSplit(
        split=task.split,
        category=task.category,
        n=len(records),
        authors=score,
        blind=blind,
        kinds={kind: count for kind, count in kinds.items() if count},
        empty=sum(correct and not clean(r.raw or "") for r, (_, correct, _) in zip(records, judged, strict=True)),
        pearson=pearson,
        spearman=spearman,
    )


def _means(splits: Sequence[AuthorsSplit]) -> tuple[float, float]:
    return float(np.mean([split.authors for split in splits])), float(np.mean([split.blind for split in splits]))
