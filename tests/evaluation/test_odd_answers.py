"""Different answers are different, and every truth is right when it is given."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lime.evaluation.extraction import extract
from lime.evaluation.scoring import matches
from lime.evaluation.text import number_of
from tests.evaluation.odd_answers import EQUAL, NUMBERS, ODD, SEPARATORS, SIGNS, WORDS

NUMERIC = [*SEPARATORS, *NUMBERS, *WORDS, *SIGNS]


def judge(raw: str, truth: str, kind: str) -> bool:
    return matches(extract(raw, kind), truth, kind)


@pytest.mark.parametrize("kind", ["text", "label"])
def test_no_two_odd_answers_are_taken_for_each_other(kind: str) -> None:
    given_answers = {answer: extract(answer, kind) for answer in ODD}
    for truth in ODD:
        right = {answer for answer, extracted in given_answers.items() if matches(extracted, truth, kind)}
        assert truth in right, truth
        assert right <= {truth} | {answer for answer, also in EQUAL.items() if truth in also}, truth


def test_numbers_are_not_taken_for_each_other() -> None:
    truths = [text for text in NUMERIC if number_of(text) is not None]
    assert len(truths) > 40
    for truth in truths:
        assert [answer for answer in NUMERIC if judge(answer, truth, "number")] == [truth]


@pytest.mark.parametrize("kind", ["text", "label", "number", "letter", "yes_no"])
def test_every_allowed_answer_is_found_as_it_is_written(kind: str) -> None:
    for start in range(len(ODD)):
        allowed = [ODD[start], *ODD[start + 1 : start + 4], ODD[start - 1]]
        for answer in allowed:
            assert extract(answer, kind, allowed) == answer.strip() or extract(answer, kind, allowed) == answer
            assert matches(extract(answer, kind, allowed), answer, kind)


@settings(max_examples=400, deadline=None)
@given(text=st.one_of(st.text(max_size=30), st.text(alphabet="aA1 2.,:/-+*_%$'\"()\n½²क़ि", max_size=12)))
def test_any_text_is_itself(text: str) -> None:
    if text.strip():
        assert judge(text, text, "text")
        assert judge(f"  {text}\n", text, "text")
        assert matches(extract(text, "label", [text, "other"]), text, "label")
        if number_of(text) is not None:
            assert judge(text, text, "number")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,234.5", "1.234,5"),
        ("400", "four hundred"),
        ("Two thousand and twenty", "2020"),
        ("a dozen", "12"),
        ("3.5", "three and a half"),
        ("3.14", "three point one four"),
        ("one hundred and five thousand", "105,000"),
        ("minus twelve", "-12"),
        ("5 million", "5,000,000"),
        ("1\u202f234", "1234"),
        ("½", "1/2"),
        ("10²", "10^2"),
        ("10⁻²", "10^-2"),
        ("٣", "3"),
        ("6%", "6 percent"),
        ("$6", "6"),
        ("6 m²", "6m^2"),
        ("（3，4）", "(3, 4)"),
        ("❤️", "❤"),
        ("re\u0301sume\u0301", "Résumé"),
        ("ﬁsh", "FISH"),
        ("it’s", "it's"),
        ("3–5", "3-5"),
        ("**3:00**", "3:00"),
        ("1,000 km", "1000 km"),
        ("soft\u00adware", "software"),
        ("a river", "River."),
        ("No. 5", "No.5"),
    ],
)
def test_what_the_rules_call_equal(one: str, other: str) -> None:
    assert judge(one, other, "text")
    assert judge(other, one, "text")


@pytest.mark.parametrize(
    ("raw", "truth"),
    [
        ("€5", "$5"), ("5 kg", "$5"), ("3/3", "3"), ("5:05", "5"), ("3,4", "3"), ("2.1.3", "2.1"), ("3 1/2", "3"),
        ("one third", "1"), ("twenty-first", "20"), ("half a dozen", "12"), ("5 million", "5"), ("(100,200)", "100200"),
        ("two and a half", "2"), ("six hundred", "6"), ("3 and a half", "3"), ("10^2", "10"),
        ("12345678901234567891", "12345678901234567890"),
    ],
)  # fmt: skip
def test_a_number_is_all_of_what_is_written(raw: str, truth: str) -> None:
    assert not judge(raw, truth, "number")
    assert not judge(raw, truth, "text")


def test_a_label_is_no_part_of_a_word_with_marks() -> None:
    assert extract("वह की है", "label", ["क", "ख"]) is None
    assert extract("वह क है", "label", ["क", "ख"]) == "क"
