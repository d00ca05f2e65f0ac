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


@pytest.mark.parametrize(
    ("raw", "truth"),
    [
        ("point five", "5"), ("5k", "5"), ("5th", "5"), ("5M", "5"), ("5bn", "5"), ("0x1F", "0"), ("1_000", "1"),
        ("3 millions", "3"),
        ("two dozens", "2"), ("fourty two", "2"), ("one hundred one hundred", "10100"), ("two and a half million", "2"),
    ],
)  # fmt: skip
def test_a_number_is_not_read_from_a_part_of_another(raw: str, truth: str) -> None:
    assert not judge(raw, truth, "number")


@pytest.mark.parametrize(
    ("raw", "truth"),
    [
        ("point five", "0.5"), ("3 millions", "3000000"), ("two dozens", "24"), ("fourty two", "42"),
        ("five thousands", "5000"), ("The answer is point five.", "0.5"), ("minus point two five", "-0.25"),
        ("5 kg", "5"), ("5 km", "5"), ("5 M", "5"),
    ],
)  # fmt: skip
def test_number_words_in_other_forms(raw: str, truth: str) -> None:
    assert judge(raw, truth, "number")


@pytest.mark.parametrize(
    "allowed",
    [["A+", "A-", "A", "B"], ["Na+", "Na", "Cl-", "Cl"], ["-5 °C", "5 °C"], ["1-2", "2-1", "12"], ["$5", "€5", "5"]],
)
@pytest.mark.parametrize("form", ["The answer is {}.", "Answer: {}", "It is {} because I say so.", "**{}**"])
def test_labels_that_differ_in_a_sign(allowed: list[str], form: str) -> None:
    for answer in allowed:
        assert extract(form.format(answer), "label", allowed) == answer


@pytest.mark.parametrize(
    ("one", "other"),
    [("e^-x", "e^x"), ("-x", "x"), ("x = -y", "x = y"), ("[0, 1)", "(0, 1]"), ("[0, 1)", "[0, 1]"), ("f'(x)", "f(x)"),
     ("f''(x)", "f'(x)"), ("x'", "x")],
)  # fmt: skip
def test_signs_of_formulas_count(one: str, other: str) -> None:
    for first, second in ((one, other), (other, one), (one, one)):
        assert judge(first, second, "text") == (first == second)


def test_a_label_is_no_part_of_a_word_with_marks() -> None:
    assert extract("वह की है", "label", ["क", "ख"]) is None
    assert extract("वह क है", "label", ["क", "ख"]) == "क"
