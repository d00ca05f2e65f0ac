"""Answer extraction: from what a model wrote to an answer that can be compared. The truth is never seen here.

Rules, the same for every answer type:

1. Special tokens and emphasis marks are removed. Nothing but punctuation left: no answer, but for free text,
   where it is itself, and for an allowed answer written as it is.
2. Candidates are the allowed answers (letters, labels, yes/no) or numbers that occur as whole words, whatever
   their case. The longest label wins where labels overlap (`not_duplicate` over `duplicate`, `unacceptable`
   is not `acceptable`), and `_`, `-`, space and camel case separate words alike (`annual crop` is
   `AnnualCrop`).
3. A negated candidate ("not B", "isn't acceptable", "B is wrong") does not count.
4. Three passages are tried in turn: what follows the last "answer is" or "answer:" up to the end of that
   sentence; the first line up to "because" and the like; the whole text. The first passage with a candidate
   decides: one distinct candidate is the answer, several are none ("A or B", all letters at once), and
   neither is one where later lines begin with others (the options repeated).
5. No answer is None, and counts as wrong.
6. Free text is read short (what follows "answer:", the first line, without outer punctuation), and keeps the whole
   beside it: see `Answer`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal

from lime.evaluation.numerals import numbers
from lime.evaluation.text import PUNCTUATION, clean, inner, key, number_of

ANSWER_TYPES = ("letter", "yes_no", "number", "label", "text")

Candidate = tuple[int, int, str]  # start, end, answer

_MARKER = re.compile(
    r"\b(?:answer|label|prediction|category|conclusion|choice)\b"
    r"(?:\s+(?:is|was|would be|should be|must be)\b\s*:?|\s*[:=])",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
_CLAUSE_END = re.compile(r"\n|\b(?:because|since|due to|rather than|instead of|as opposed to)\b", re.IGNORECASE)
_NEGATED_BEFORE = re.compile(
    r"(?:\b(?:not|never|cannot|neither|nor|non|without|except|isnt|arent|wasnt|doesnt)\b|n't\b)"
    r"(?:[\s_\-]+(?:an|the|really|very|quite|exactly|be|option|answer|choice|a(?=\s)))*"
    r"[\s_\-(\[\"']*(?:[a-z][)\].:]+\s*)?$",
    re.IGNORECASE,
)
_NEGATED_BY_NO = re.compile(r"\bno[\s_\-]+[(\[\"']*$", re.IGNORECASE)
_NEGATED_AFTER = re.compile(
    r"^[)\]\"'.,:]*\s*(?:(?:is|are|was|were|would be)\s+(?:not\b|never\b|wrong\b|incorrect\b|false\b)"
    r"|(?:is|are|was|were)n't\b)",
    re.IGNORECASE,
)
_LETTER = re.compile(r"(?<![\w'.])(?P<open>[(\[]\s*)?(?P<letter>[A-Za-z])(?P<close>\s*[)\]])?(?![\w']|\.\w)")
_OPTION_WORD = re.compile(r"\b(?:option|choice|letter|answer)s?\s*[:(\[]?\s*$", re.IGNORECASE)
_FUNCTION_WORD = re.compile(r"^\s+(?:is|was|because|since|and|or|as|seems|but|would)\b")
_PREFIX = re.compile(r"^\s*[(\[]?\s*([A-Za-z])\s*(?:[)\]][.:]?|[.:])\s*(?=\S)")
_BETWEEN_WORDS = re.compile(r"(?<![\d\s_\-])[\s_\-]+|[\s_\-]+(?![\d\s_\-])")  # not between two digits
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_YES_NO = re.compile(r"(?<![\w'])(yes|no|true|false)(?![\w'])", re.IGNORECASE)
_YES_NO_LEAD = re.compile(
    r"\W*(yes|no|true|false)\b\s*(?:[,.;:!]+|\n|$)(?!\W*(?:or\s+)?(?:yes|no|true|false)\b)", re.IGNORECASE
)
_OPPOSITE = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}


class Answer(str):
    """A short reading of what a model wrote, with the whole of it.

    "The answer is blowing in the wind" is a truth and also a way to say "blowing in the wind": the reading is
    compared, and so is the whole. Where the whole is a number, its sign (`€5`) is not lost.
    """

    whole: str

    def __new__(cls, reading: str, whole: str | None = None) -> Answer:
        answer = super().__new__(cls, reading)
        answer.whole = reading if whole is None else whole
        return answer


def extract(raw: str | None, answer_type: str, allowed: Sequence[str] | None = None) -> str | None:
    """The answer in `raw`, or None where there is none or more than one.

    raw: what the model wrote. answer_type: one of `ANSWER_TYPES`. allowed: the closed set of answers, where
    there is one; the result is then one of them, verbatim (for the types number and text it may also be
    another number or text, which is wrong but worth seeing). The form of the allowed answers goes before the
    type: a `label` whose allowed answers are single letters is read as a letter.

    Raises ValueError for an unknown answer type, an empty set of allowed answers or an empty allowed answer.
    """
    if answer_type not in ANSWER_TYPES:
        raise ValueError(f"answer_type: expected one of {', '.join(ANSWER_TYPES)}, got {answer_type!r}")
    answers = None if allowed is None else list(dict.fromkeys(allowed))
    if answers is not None and (not answers or not all(answer.strip() for answer in answers)):
        raise ValueError(f"allowed: expected None or non-empty answers, got {allowed!r}")
    text, whole = clean(raw or ""), (raw or "").strip()
    if not whole:
        return None
    if answers is not None:
        exact = {key(answer): answer for answer in reversed(answers)} | {answer.strip(): answer for answer in answers}
        if (answer := exact.get(whole) or exact.get(key(text))) is not None:
            return answer
    rules = _rules(answer_type, answers)
    if rules is None:
        return _free_text(text, whole)
    answer, decided = _decide(text, rules) if any(char.isalnum() for char in text) else (None, False)
    if answer is None and not decided and answer_type == "text":
        return _free_text(text, whole)
    if answer is not None and answers is None and answer_type == "number":
        return Answer(answer, whole)
    return answer


def _rules(answer_type: str, answers: list[str] | None) -> Callable[[str], list[Candidate]] | None:
    """How candidates are found: by the form of the allowed answers first, then by type; None for free
    text."""
    if answers is not None:
        by_letter = {_bare_letter(answer): answer for answer in reversed(answers)}
        if None not in by_letter:
            return lambda text: _letters(text, {str(letter): answer for letter, answer in by_letter.items()})
        values = {number and number[0] for number in map(number_of, answers)}
        if None not in values and len(values) == len(answers):
            return lambda text: _numbers(text, answers)
        by_truth = {_OPPOSITE.get(answer.strip().lower()): answer for answer in reversed(answers)}
        if set(by_truth) == {"yes", "no"}:
            return lambda text: _yes_no(text, {str(value): answer for value, answer in by_truth.items()})
        return lambda text: _labels(text, answers)
    if answer_type == "letter":
        return lambda text: _letters(text, {chr(code): chr(code) for code in range(ord("A"), ord("Z") + 1)})
    if answer_type == "yes_no":
        return lambda text: _yes_no(text, {"yes": "yes", "no": "no"})
    if answer_type == "number":
        return lambda text: _numbers(text, [])
    return None


def _passages(text: str) -> Iterator[tuple[int, int]]:
    """The passages of rule 4 as (start, end) in `text`."""
    markers = list(_MARKER.finditer(text))
    if markers:
        start = markers[-1].end()
        stripped = start + len(text[start:]) - len(text[start:].lstrip())
        end = _SENTENCE_END.search(text, stripped)
        yield start, end.start() if end else len(text)
    end = _CLAUSE_END.search(text)
    yield 0, end.start() if end else len(text)
    yield 0, len(text)


def _decide(text: str, rules: Callable[[str], list[Candidate]]) -> tuple[str | None, bool]:
    """(answer, whether any candidate was there to decide on)."""
    candidates = rules(text)
    for start, end in _passages(text):
        inside = {answer for first, last, answer in candidates if start <= first and last <= end}
        if inside:
            chosen = len(inside) == 1 and not _lists_others(text, end, candidates, inside)
            return (inside.pop() or None if chosen else None), True
    return None, bool(candidates)


def _lists_others(text: str, end: int, candidates: list[Candidate], inside: set[str]) -> bool:
    """Whether a line after `end` begins with another candidate: a list of answers, of which none was
    chosen."""
    return any(
        first >= end and answer not in inside and re.search(r"\n[\s\-•(\[]*$", text[:first])
        for first, _, answer in candidates
    )


def _negated(text: str, start: int, end: int, *, by_no: bool = True) -> bool:
    before, after = text[:start], text[end:]
    return bool(
        _NEGATED_BEFORE.search(before) or (by_no and _NEGATED_BY_NO.search(before)) or _NEGATED_AFTER.match(after)
    )


def _bare_letter(answer: str) -> str | None:
    stripped = answer.strip(" ()[].:")
    return stripped.upper() if len(stripped) == 1 and stripped.isascii() and stripped.isalpha() else None


def _letters(text: str, answers: dict[str, str]) -> list[Candidate]:
    """Option letters. Bracketed, or followed by `.`, `)` or `:`, or named ("option b"), or a capital standing
    alone; "A" and "I" before a lower-case word are the article and the pronoun. A lower-case letter needs
    more: brackets, the start of a line with punctuation after it, a name before it, or nothing else in the
    text."""
    candidates = []
    for match in _LETTER.finditer(text):
        letter, start, end = match["letter"], match.start(), match.end()
        answer = answers.get(letter.upper())
        if answer is None or _negated(text, start, end):
            continue
        before, after = text[:start], text[end:]
        closed = match["close"] is not None or bool(re.match(r"[.:](?:\s|$)", after))
        named = bool(_OPTION_WORD.search(before) or re.search(_MARKER.pattern + r"\s*$", before, re.IGNORECASE))
        alone = not any(char.isalnum() for char in before + after)
        ends = bool(re.match(r"\s*(?:[.,;:!?)\]\n]|$)", after))
        line_start = not before.strip() or before.rstrip(" (").endswith("\n")
        if letter.isupper():
            word = letter in "AI" and re.match(r"\s+[a-z]", after) and not _FUNCTION_WORD.match(after)
            accepted = closed or named or not word
        else:
            bracketed = match["open"] is not None and match["close"] is not None
            accepted = alone or bracketed or (closed and line_start) or (named and ends)
        if accepted:
            candidates.append((start, end, answer))
    return candidates


def _label_pattern(label: str) -> str:
    label = label.strip()
    inside = label.strip("-") or label
    before, _, after = label.partition(inside)  # a minus at its ends is a sign: `-5 °C`, `A-`
    words = [word for part in _BETWEEN_WORDS.split(inside) for word in _CAMEL.split(part) if word]
    body = re.escape(before) + (r"[\s_\-]*".join(map(re.escape, words)) or re.escape(inside)) + re.escape(after)
    left = r"(?<![-\d.,])" if body[:1].isdigit() else ""
    right = r"(?![.,]?\d)" if body[-1:].isdigit() else ""
    return rf"{left}(?<![^\W_]){body}(?![^\W_]){right}"


def _labels(text: str, answers: list[str]) -> list[Candidate]:
    """Labels as whole words, longest first. Labels that all carry option letters ("(B) masking") may also be
    named by their letter, with or without the word; letter and word must then agree."""
    plain = {answer: clean(answer) for answer in answers}
    lettered: dict[str, str] = {}
    for answer, label in plain.items():
        prefix = _PREFIX.match(label)
        if prefix:
            lettered.setdefault(prefix[1].upper(), answer)
    if len(lettered) == len(answers):
        plain = {answer: _PREFIX.sub("", label, count=1) for answer, label in plain.items()}
    else:
        lettered = {}
    ordered = sorted(answers, key=lambda answer: -len(plain[answer]))
    pattern = re.compile(
        "|".join(f"(?P<label{i}>{_label_pattern(plain[answer])})" for i, answer in enumerate(ordered)),
        re.IGNORECASE,
    )
    candidates = []
    rest = list(text)
    for match in pattern.finditer(text):
        rest[match.start() : match.end()] = " " * (match.end() - match.start())
        inside = unicodedata.category(text[match.end() : match.end() + 1] or " ").startswith("M")  # "क" in "की"
        if not inside and not _negated(text, match.start(), match.end()):
            assert match.lastgroup is not None
            candidates.append((match.start(), match.end(), ordered[int(match.lastgroup.removeprefix("label"))]))
    return candidates + (_letters("".join(rest), lettered) if lettered else [])


def _yes_no(text: str, answers: dict[str, str]) -> list[Candidate]:
    """Yes and no, true and false. A text that opens with one of them and a comma or full stop is decided by
    it."""
    lead = _YES_NO_LEAD.match(text)
    if lead and not _MARKER.search(text):
        return [(lead.start(1), lead.end(1), answers[_OPPOSITE[lead[1].lower()]])]
    return [
        (match.start(), match.end(), answers[_OPPOSITE[match[1].lower()]])
        for match in _YES_NO.finditer(text)
        if not _negated(text, match.start(), match.end(), by_no=False)
    ]


def _numbers(text: str, answers: list[str]) -> list[Candidate]:
    """Numbers; an expression such as 3/4 is a candidate that is no answer, unless nothing else was written and any
    number may be. Equal numbers are one candidate, written as the allowed answer of that value where there is
    one."""
    known = {parsed[0]: answer for answer in reversed(answers) if (parsed := number_of(answer)) is not None}
    first: dict[Decimal, str] = {}
    candidates = []
    for number in numbers(text):
        if number.value is None:
            answer = "" if answers or (number.start, number.end) != (0, len(text)) else number.literal
        else:
            answer = known.get(number.value) or first.setdefault(number.value, number.literal)
        if not _negated(text, number.start, number.end):
            candidates.append((number.start, number.end, answer))
    return candidates


def _free_text(text: str, whole: str) -> str:
    """Short free text: what follows "answer is" or "answer:", else the first line; outer quotes and full stop
    removed. A text of signs alone is itself."""
    reading = _short(text)
    while reading is not None and (shorter := _short(clean(reading))) is not None and len(shorter) < len(reading):
        reading = shorter  # what was cut off may have been the partner of a quote or an emphasis mark
    return Answer(whole if reading is None else reading, whole)


def _short(text: str) -> str | None:
    for start, end in _passages(text):
        line = text[start:end].split("\n")[0]
        for passage in (inner(_CLAUSE_END.split(line)[0], PUNCTUATION), inner(line, PUNCTUATION)):
            if any(char.isalnum() for char in passage):
                return passage
    return None
