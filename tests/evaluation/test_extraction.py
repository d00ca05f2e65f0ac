"""What counts as an answer, case by case, and what holds for every text."""

from __future__ import annotations

import inspect
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lime.evaluation.extraction import ANSWER_TYPES, extract

ABCD = ["A", "B", "C", "D"]
TAMPER = ["(A) original", "(B) masking", "(C) repetition", "(D) substitution", "(E) dropping", "(F) rotate"]
WORDS = ["original", "masking", "repetition", "substitution", "dropping", "rotate"]
QQP = ["duplicate", "not_duplicate"]
COLA = ["acceptable", "unacceptable"]
QNLI = ["entailment", "not_entailment"]
LAND = ["AnnualCrop", "Forest", "River", "SeaLake"]

LETTERS = [
    ("B", "B"),
    ("b", "B"),
    ("(B)", "B"),
    ("b.", "B"),
    ("B)", "B"),
    ("[c]", "C"),
    ("**C**", "C"),
    ("`D`", "D"),
    ("  D \n", "D"),
    ("B<|im_end|>", "B"),
    ("(B) masking", "B"),
    ("B. At some time in the past, Antarctica was a desert.", "B"),
    ("The answer is B.", "B"),
    ("The correct answer is: (C)", "C"),
    ("Answer: d", "D"),
    ("answer = B", "B"),
    ("I think B", "B"),
    ("Option A shows the cause", "A"),
    ("option b", "B"),
    ("A", "A"),
    ("A is correct", "A"),
    ("B because A is wrong", "B"),
    ("B. A is wrong", "B"),
    ("It is not A but B", "B"),
    ("not A, so C", "C"),
    ("A is tempting.\nThe answer is C.", "C"),
    ("First I thought the answer is A. No, the answer is B.", "B"),
    ("B\nB", "B"),
    ("Ｂ", "B"),  # full width
    # none, or more than one
    ("", None),
    ("   ", None),
    ("...", None),
    ("<|im_end|>", None),
    ("E", None),
    ("ABCD", None),
    ("A B C D", None),
    ("A, B, C, D", None),
    ("A. B. C. D.", None),
    ("A\nB\nC\nD", None),
    ("A. red\nB. blue\nC. green", None),
    ("A or B", None),
    ("The answer is A or B.", None),
    ("(A) red (B) blue", None),
    ("not B", None),
    ("The answer is not B.", None),
    ("B is wrong", None),
    ("It isn't B", None),
    ("neither B", None),
    ("A dog is in the picture", None),
    ("a dog", None),
    ("the answer is a dog", None),
    ("I do not know", None),
    ("Because", None),
    ("masking", None),
]

LABELS = [
    (QQP, "duplicate", "duplicate"),
    (QQP, "Duplicate.", "duplicate"),
    (QQP, "not_duplicate", "not_duplicate"),
    (QQP, "not duplicate", "not_duplicate"),
    (QQP, "Not-Duplicate", "not_duplicate"),
    (QQP, "The two questions are not duplicate.", "not_duplicate"),
    (QQP, "never duplicate", None),
    (QQP, "duplicate or not_duplicate", None),
    (QQP, "duplicated", None),
    (QNLI, "not entailment", "not_entailment"),
    (QNLI, "It is an entailment", "entailment"),
    (COLA, "acceptable", "acceptable"),
    (COLA, "unacceptable", "unacceptable"),
    (COLA, "The sentence is UNACCEPTABLE", "unacceptable"),
    (COLA, "not acceptable", None),
    (COLA, "isn't acceptable", None),
    (COLA, "not really acceptable", None),
    (COLA, "acceptable rather than unacceptable", "acceptable"),
    (COLA, "acceptable unacceptable", None),
    (COLA, "acceptable\nunacceptable", None),
    (LAND, "AnnualCrop", "AnnualCrop"),
    (LAND, "annual crop", "AnnualCrop"),
    (LAND, "a river", "River"),
    (LAND, "riverside", None),
    (LAND, "sea lake, seen from above", "SeaLake"),
    (TAMPER, "(B) masking", "(B) masking"),
    (TAMPER, "B", "(B) masking"),
    (TAMPER, "b", "(B) masking"),
    (TAMPER, "masking", "(B) masking"),
    (TAMPER, "The answer is (C).", "(C) repetition"),
    (TAMPER, "B. masking", "(B) masking"),
    (TAMPER, "(A) masking", None),
    (TAMPER, " ".join(TAMPER), None),
    (TAMPER, "\n".join(TAMPER), None),
    (TAMPER, "no masking", None),
    (WORDS, "(B) masking", "masking"),
    (WORDS, "Original", "original"),
    (WORDS, "B", None),
    (["red", "dark red"], "It is dark red", "dark red"),
    (["red", "dark red"], "dark red red", None),
    (["positive", "negative"], "negative. The words are positive though", None),
    (["positive", "negative"], "Sentiment: negative", "negative"),
    (["yes", "no"], "no", "no"),
    (["3", "30"], "30", "30"),
    (["class 3", "class 30"], "class 30", "class 30"),
]

YES_NO = [
    ("yes", "yes"),
    ("No.", "no"),
    ("Yes, there is no doubt", "yes"),
    ("No, there are no spots", "no"),
    ("True", "yes"),
    ("false", "no"),
    ("The answer is no", "no"),
    ("The answer is: Yes!", "yes"),
    ("yes\nyes", "yes"),
    ("yes or no", None),
    ("Yes, no", None),
    ("yes/no", None),
    ("not true", None),
    ("I do not know", None),
    ("nothing", None),
    ("yesterday", None),
    ("", None),
]

NUMBERS = [
    ("5", "5"),
    ("5.", "5"),
    ("-5", "-5"),
    ("−5", "-5"),
    ("+5", "5"),
    ("4.0", "4.0"),
    ("1,234", "1234"),
    ("1,234.5 million", "1234500000"),
    ("$5", "5"),
    ("50%", "50"),
    ("three", "3"),
    ("Twenty", "20"),
    ("3.5 out of 5", "3.5"),
    ("The similarity is 2.4.", "2.4"),
    ("Answer: -5", "-5"),
    ("5 5 5", "5"),
    ("5 or 5.0", "5"),
    ("one of the bars is 4", "4"),
    ("3 or 4", None),
    ("3-5", None),
    ("1 2 3 4 5", None),
    ("not 5", None),
    ("5 is wrong", None),
    ("B2", None),
    ("1e999", None),
    ("someone", None),
    ("", None),
]

TEXTS = [
    (None, "Virgin", "Virgin"),
    (None, '"Virgin"\nIt is a logo.', "Virgin"),
    (None, "The answer is Virgin.", "Virgin"),
    (None, "Answer: in the kitchen", "in the kitchen"),
    (None, "Answer: a cat, because it purrs", "a cat"),
    (None, "Answer: because of you", "because of you"),
    (None, "it's", "it's"),
    (None, "?!", "?!"),
    (["red", "blue"], "it is RED", "red"),
    (["red", "blue"], "purple", "purple"),  # wrong, but worth seeing
    (["red", "blue"], "red, blue", None),
    (["1", "2", "3"], "2", "2"),
    (["1", "2", "3"], "2.0", "2"),
]


@pytest.mark.parametrize(("raw", "expected"), LETTERS)
def test_letters(raw: str, expected: str | None) -> None:
    assert extract(raw, "letter", ABCD) == expected


@pytest.mark.parametrize(("allowed", "raw", "expected"), LABELS)
def test_labels(allowed: list[str], raw: str, expected: str | None) -> None:
    assert extract(raw, "label", allowed) == expected


@pytest.mark.parametrize(("raw", "expected"), YES_NO)
def test_yes_no(raw: str, expected: str | None) -> None:
    assert extract(raw, "yes_no") == expected
    assert extract(raw, "yes_no", ["yes", "no"]) == expected


@pytest.mark.parametrize(("raw", "expected"), NUMBERS)
def test_numbers(raw: str, expected: str | None) -> None:
    assert extract(raw, "number") == expected


@pytest.mark.parametrize(("allowed", "raw", "expected"), TEXTS)
def test_free_text(allowed: list[str] | None, raw: str, expected: str | None) -> None:
    assert extract(raw, "text", allowed) == expected


def test_the_form_of_the_allowed_answers_goes_before_the_type() -> None:
    assert extract("(B)", "yes_no", ["A", "B"]) == "B"
    assert extract("b", "label", ["A", "B"]) == "B"
    assert extract("4.0", "number", ["4", "5"]) == "4"
    assert extract("-5", "number", ["5"]) == "-5"  # not the allowed 5
    assert extract("true", "yes_no", ["True", "False"]) == "True"
    assert extract("no", "yes_no", ["True", "False"]) == "False"


def test_without_allowed_answers_any_letter_counts() -> None:
    assert extract("G", "letter") == "G"
    assert extract("I think B", "letter") == "B"
    assert extract("U.S.", "letter") is None


@pytest.mark.parametrize("kind", ANSWER_TYPES)
def test_no_answer_is_none(kind: str) -> None:
    for raw in (None, "", " \n"):
        assert extract(raw, kind) is None
    for raw in (".", "<|im_end|><|im_end|>", "**"):  # free text may be just that
        assert extract(raw, kind) == (raw if kind in ("label", "text") else None)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="answer_type: expected one of letter"):
        extract("A", "letters")
    with pytest.raises(ValueError, match="allowed"):
        extract("A", "letter", [])
    with pytest.raises(ValueError, match="allowed"):
        extract("A", "label", ["a", " "])


def test_the_truth_is_no_argument() -> None:
    assert list(inspect.signature(extract).parameters) == ["raw", "answer_type", "allowed"]


# -- for every text ----------------------------------------------------------------------------------------

SETS = [ABCD, TAMPER, WORDS, QQP, QNLI, COLA, LAND, ["yes", "no"], ["0", "1", "2", "10"], ["red", "dark red"]]
PIECES = [
    *(piece for choices in SETS for piece in choices),
    *["the", "answer is", "not", "or", "because", "a", "I", ".", ",", "\n", "(", ")", ":", "-5", "3.5", "_"],
]
texts = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(PIECES), max_size=8).map(" ".join),
    st.text(alphabet=string.ascii_letters + string.digits + " .,()-_\n", max_size=40),
)


@settings(max_examples=300, deadline=None)
@given(raw=texts, kind=st.sampled_from(ANSWER_TYPES), allowed=st.one_of(st.none(), st.sampled_from(SETS)))
def test_an_answer_is_allowed_and_stays_itself(raw: str, kind: str, allowed: list[str] | None) -> None:
    answer = extract(raw, kind, allowed)
    if answer is None:
        return
    if allowed is not None and kind in ("letter", "label", "yes_no") and allowed != SETS[-2]:
        assert answer in allowed
    if kind == "letter" and allowed is None:
        assert answer in string.ascii_uppercase
    assert extract(answer, kind, allowed) == answer


@pytest.mark.parametrize("allowed", SETS)
@pytest.mark.parametrize(
    "form", ["{}", " {}\n", "{}.", "({})", "**{}**", "The answer is {}.", "Answer: {}", "{}<|im_end|>", '"{}"']
)
def test_every_allowed_answer_is_found_in_every_form(allowed: list[str], form: str) -> None:
    kind = "number" if allowed[0].isdigit() else "label"
    for answer in allowed:
        assert extract(form.format(answer), kind, allowed) == answer
        assert extract(form.format(answer).swapcase(), kind, allowed) == answer


@pytest.mark.parametrize("allowed", SETS)
@pytest.mark.parametrize("joint", [" ", ", ", "\n", " or ", "; ", "/"])
def test_all_answers_at_once_are_none(allowed: list[str], joint: str) -> None:
    kind = "number" if allowed[0].isdigit() else "label"
    assert extract(joint.join(allowed), kind, allowed) is None
    assert extract(joint.join(reversed(allowed)), kind, allowed) is None


@pytest.mark.parametrize("allowed", [s for s in SETS if s not in (QQP, QNLI)])
def test_a_negated_answer_is_none(allowed: list[str]) -> None:
    kind = "number" if allowed[0].isdigit() else "label"
    for answer in allowed:
        for form in ("not {}", "It is not {}.", "never {}", "The answer is not {}"):
            assert extract(form.format(answer), kind, allowed) is None, form.format(answer)
