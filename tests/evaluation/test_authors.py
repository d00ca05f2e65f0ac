"""The authors' scorer agrees with 700 of its own judgements; the blind one gives nothing where that one forgives."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lime.evaluation.authors import KINDS, judge, leading_number, score_as_authors
from lime.evaluation.authors_report import authors_markdown, read_authors_scores, write_authors_scores
from lime.evaluation.extraction import extract
from lime.evaluation.predictions import collect
from lime.evaluation.scoring import matches
from tests.evaluation.tasks import ALLOWED, ARC, QQP, STSB, TASKS, SmallRow

GOLDEN = Path(__file__).parents[1] / "golden" / "authors_scorer.json"  # prediction, truth, extracted, correct, kind


PIECES = """duplicate not_duplicate entailment contradiction neutral equivalent not_equivalent acceptable unacceptable
not_entailment grammatical ungrammatical correct incorrect yes no true false not negative""".split()


def test_every_golden_case_agrees() -> None:
    cases = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert len(cases) == 700
    differing = [case for case in cases if judge(case[0], case[1]) != tuple(case[2:])]
    assert not differing


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        ("cat.", "dog", ("cat", False, "no_match")),
        ("cat. ", "dog", ("cat.", False, "no_match")),
        ("cat.!", "cat", ("cat", True, "exact")),
        ("4.\n", "9", ("4.", False, "no_match")),
        ("b.\n", "B", ("b", True, "exact")),
        ("cat", ". ", ("cat", False, "no_match")),
        ("cat.", ".", ("", True, "exact")),
        ("cat", "", ("", True, "exact")),
        ("positive", "", ("positive", True, "contains")),
        ("7 cats", "", ("7", True, "contains")),
        ("", "", ("", True, "exact")),
        ("", ". ", ("", True, "contains")),
        ("not_entailment", " ", ("", True, "exact")),
        ("entailment ", " ", ("entailment", True, "contains")),
        ("...", "x", ("", True, "contains")),
        (". . .", "x", (".", True, "contains")),
    ],
)
def test_final_dots_and_empty_truths(prediction: str, truth: str, expected: tuple[str, bool, str]) -> None:
    assert judge(prediction, truth) == expected


def test_it_does_what_the_rules_say_rule_by_rule() -> None:
    draw = random.Random(0)
    words = [
        *PIECES,
        *"abz",
        "i",
        "5",
        "2.5",
        "4.75",
        "12",
        "-3",
        "0",
        "1",
        "dog",
        "sea lake",
        "x_y",
        "positive",
        "neutral",
    ]
    marks = ["", "", "", " ", ".", ". ", " .", "\n", ".\n", "!", ".)", "..", "<|im_end|>", "  "]
    kinds = Counter()
    for _ in range(8_000):
        made = [
            "".join(draw.choice(words) + draw.choice(marks) for _ in range(draw.choice((1, 1, 2, 3)))) for _ in "pt"
        ]
        made = [draw.choice(marks) + text if draw.random() < 0.9 else draw.choice(marks) for text in made]
        made = [text.upper() if draw.random() < 0.1 else text for text in made]
        prediction, truth = made if draw.random() < 0.7 else (made[1] + made[0], made[1])
        extracted = by_the_rules(prediction, truth)
        assert judge(prediction, truth) == (extracted, *compared(extracted, truth)), (prediction, truth)
        kinds[compared(extracted, truth)[1]] += 1
    assert set(kinds) == set(KINDS)


def cleaned(text: str, truth_values: bool = False) -> str:
    kept = "".join(c if c.isalnum() or c in "_." else " " for c in re.sub(r"<\|.*?\|>", "", text.lower()))
    while "  " in kept:
        kept = kept.replace("  ", " ")
    while kept.endswith("."):
        kept = kept[:-1]
    kept = kept.strip()
    return {"yes": "true", "no": "false"}.get(kept, kept) if truth_values else kept


def by_the_rules(prediction: str, truth: str) -> str:
    p, t = cleaned(prediction), cleaned(truth, truth_values=True)
    first = p.split()[0] if p.split() else ""
    bare = "".join(c for c in first if c.isalnum() or c == "_")
    if "_" in t and t in p:
        return t
    if " " in t and t in p:
        return t
    letter = p[:1] if "a" <= p[:1] <= "z" else None
    if letter and len(p) == 1 and len(t) == 1:
        return letter
    if letter and len(t) == 1 and p[1:2] in (".", " "):
        return letter
    if bare in ("yes", "true", "no", "false") and t in ("true", "false"):
        return "true" if bare in ("yes", "true") else "false"
    if bare in ("positive", "negative", "neutral"):
        return bare
    for label in PIECES[:9]:
        if p == label or p[: len(label) + 1] in (label + " ", label + "."):
            return label
    if number(p):
        return number(p)
    if t in p.split() or t in p:
        return t
    return first or p


def number(text: str) -> str:
    end = next((i for i, c in enumerate(text) if not c.isdigit()), len(text))
    if end and text[end : end + 1] == ".":
        end = next((i for i in range(end + 1, len(text)) if not text[i].isdigit()), len(text))
    return text[:end]


def compared(extracted: str, truth: str) -> tuple[bool, str]:
    a, b = cleaned(extracted, truth_values=True), cleaned(truth, truth_values=True)
    if a == b:
        return True, "exact"
    for name in ("duplicate", "equivalent", "entailment"):
        if {a, b} <= {name, "true", "yes", "1"} or {a, b} <= {f"not_{name}", f"not {name}", "false", "no", "0"}:
            return True, "semantic"
    judged = {"acceptable", "grammatical", "correct"}
    if {a, b} <= judged or {a, b} <= {"unacceptable", "ungrammatical", "incorrect"}:
        return True, "semantic"
    if number(a) and number(b) and abs(float(number(a)) - float(number(b))) <= 0.5:
        return True, "numeric"
    pairs = [("acceptable", "unacceptable"), ("grammatical", "ungrammatical"), ("correct", "incorrect")]
    pairs += [
        (name, prefix + name) for name in ("equivalent", "duplicate", "entailment") for prefix in ("not_", "not ")
    ]
    for u, v in [*pairs, *[(v, u) for u, v in pairs]]:
        if (a == u and v in b) or (b == u and v in a):
            return False, "no_match"
    return (True, "contains") if b in a or a in b else (False, "no_match")


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
