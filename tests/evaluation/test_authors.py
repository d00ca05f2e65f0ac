"""The authors' scorer agrees with 700 of its own judgements; the blind one gives nothing where that one forgives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lime.evaluation.authors import judge, leading_number, score_as_authors
from lime.evaluation.authors_report import authors_markdown, read_authors_scores, write_authors_scores
from lime.evaluation.extraction import extract
from lime.evaluation.predictions import collect
from lime.evaluation.scoring import matches
from tests.evaluation.tasks import ALLOWED, ARC, QQP, STSB, TASKS, SmallRow

GOLDEN = Path(__file__).parents[1] / "golden" / "authors_scorer.json"  # prediction, truth, extracted, correct, kind


def test_every_golden_case_agrees() -> None:
    cases = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert len(cases) == 700
    differing = [case for case in cases if judge(case[0], case[1]) != tuple(case[2:])]
    assert not differing


@pytest.mark.parametrize(
    ("prediction", "truth", "kind", "allowed"),
    [
        ("", "B", "letter", list("ABCD")),
        ("   \n", "duplicate", "label", ["duplicate", "not_duplicate"]),
        ("", "dog", "text", None),
        ("A B C D", "B", "letter", list("ABCD")),
        ("(A) (B) (C) (D)", "A", "letter", list("ABCD")),
        ("A, B, C or D", "C", "letter", list("ABCD")),
        ("ABCD", "A", "letter", list("ABCD")),
        ("not B", "B", "letter", list("ABCD")),
        ("not duplicate", "duplicate", "label", ["duplicate", "not_duplicate"]),
        ("not_duplicate", "duplicate", "label", ["duplicate", "not_duplicate"]),
        ("not entailment", "entailment", "label", ["entailment", "not_entailment"]),
        ("unacceptable", "acceptable", "label", ["acceptable", "unacceptable"]),
        ("not acceptable", "acceptable", "label", ["acceptable", "unacceptable"]),
        ("not equivalent", "equivalent", "label", ["equivalent", "not_equivalent"]),
        ("no", "yes", "yes_no", ["yes", "no"]),
        ("not true", "true", "yes_no", ["yes", "no"]),
        ("It is not positive.", "positive", "label", ["positive", "negative"]),
        ("-5", "5", "number", None),
        ("5", "-5", "number", None),
        ("-5", "5", "text", None),
        ("minus 5", "5", "number", None),
        ("negative five", "5", "number", None),
        ("4.6", "5", "number", None),
    ],
)
def test_the_blind_scorer_gives_nothing(prediction: str, truth: str, kind: str, allowed: list[str] | None) -> None:
    assert not matches(extract(prediction, kind, allowed), truth, kind)


def test_both_scorers_stand_side_by_side(tmp_path: Path) -> None:
    rows = [SmallRow(f"{ARC.split}/{i}", ARC.split, "B") for i in range(4)]
    rows += [SmallRow(f"{QQP.split}/{i}", QQP.split, "duplicate") for i in range(2)]
    rows += [SmallRow(f"{STSB.split}/{i}", STSB.split, truth) for i, truth in enumerate(("1.0", "2.5", "4.0"))]
    raw = ["B", "", None, "C", "not_duplicate", "yes", "1.2", "nothing", "4.4"]
    records = collect(rows, raw, TASKS, ALLOWED)
    blind = {ARC.split: 25.0, QQP.split: 0.0, STSB.split: 90.0}
    scores = score_as_authors(records, TASKS, blind)
    arc, qqp, stsb = scores.splits
    assert (arc.authors, arc.blind, arc.difference, arc.empty) == (75.0, 25.0, 50.0, 2)
    assert arc.kinds == {"exact": 1, "contains": 2, "no_match": 1}
    assert (qqp.authors, qqp.kinds) == (50.0, {"semantic": 1, "no_match": 1})
    expected = float(np.corrcoef([1.2, 0.0, 4.4], [1.0, 2.5, 4.0])[0, 1])  # no number counts as 0
    assert stsb.pearson == pytest.approx(expected)
    assert scores.macro[0] == pytest.approx((75 + 50 + 100 * expected) / 3)
    assert scores.categories["second"] == pytest.approx(((50 + 100 * expected) / 2, 45.0))
    write_authors_scores(tmp_path, scores)
    assert read_authors_scores(tmp_path) == scores
    assert "| first | 75.0 | 25.0 | +50.0 |" in authors_markdown(scores)
    assert read_authors_scores(tmp_path / "elsewhere") is None
    with pytest.raises(ValueError, match="a blind score"):
        score_as_authors(records, TASKS, {})


def test_leading_number() -> None:
    assert [leading_number(text) for text in ("4.25 of 5", "about 3", "", "-2")] == [4.25, 0.0, 0.0, 2.0]
