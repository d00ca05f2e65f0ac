"""Numbers in text: digits with separators and signs, number words of several parts, and what only looks like one.

Written as digits: `1,234.5` and `1.234,5` are one number, and so are groups of three set apart by a no-break space;
`5 million` and `2 dozen` are multiplied, `3 and a half` is 3.5. Written as words: one hundred and five, twenty-five,
minus three, three point five, a dozen.

Digits joined by other signs, `3/4`, `1:20`, `(3,4)`, `10^2`, `2.1.3`, `5k`, `5th`, `0x1F`, and words such as one third
and twenty-first are expressions: they are not the number that they begin with, and are equal to themselves alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

_ONES = dict(zip("zero one two three four five six seven eight nine".split(), range(10), strict=True))
_TEENS = dict(
    zip(
        "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split(),
        range(10, 20),
        strict=True,
    )
)
_TENS = dict(
    zip("twenty thirty forty fifty sixty seventy eighty ninety".split(), range(20, 100, 10), strict=True),
)
_TENS["fourty"] = 40  # often written so
_UNITS = {**_ONES, **_TEENS, **_TENS}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_MULTIPLES = {"dozen": 12, "hundred": 100, **_SCALES}
_ORDINALS = (
    "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|\\w+teenth|\\w+tieth|"
    "hundredth|thousandth|millionth|billionth"
)
_PARTS = f"(?:half|halves|quarters?|(?:(?!first|second)(?:{_ORDINALS}))s?)"
_SIMPLE = "|".join(_UNITS)
_MULTIPLE = "|".join(_MULTIPLES)
_POINT = rf"point(?:[\s-]+(?:{'|'.join(_ONES)})(?!\w))+"
_WORDS = (
    rf"(?:(?:(?:an?[\s-]+)?(?:{_MULTIPLE})|{_SIMPLE})"
    rf"(?:(?:[\s-]+and)?[\s-]+(?:{_SIMPLE}|(?:{_MULTIPLE})s?)(?!\w))*"
    rf"(?:\s+{_POINT})?|(?:(?<!\w\s)|(?<=\bis\s)|(?<=minus\s)|(?<=negative\s)){_POINT})"
)
_SIGN = r"[-+]?|(?:minus|negative)\s+"
_HALF = r"(?P<half>\s+and\s+a\s+half)?"
_WORD_NUMBER = re.compile(
    rf"(?<!\w)(?P<odd>half\s+(?=an?\b))?(?P<sign>(?:minus|negative)\s+)?(?P<words>{_WORDS})(?!\w){_HALF}"
    rf"(?P<part>[\s-]+{_PARTS}(?!\w)|-(?:{_ORDINALS})(?!\w))?",
    re.IGNORECASE,
)
_DIGITS = r"(?:\d+(?:[.,]\d+)*|\.\d+)"
_DIGIT_NUMBER = re.compile(
    rf"(?<![\w.])(?<!\d[,:/^])(?P<sign>{_SIGN})\s?[$€£¥₹]?"
    rf"(?P<digits>{_DIGITS})(?P<exponent>[eE][-+]?\d+(?!\w))?"
    rf"(?P<joined>(?:(?::|[ ]?[/^*×][ ]?)[-+]?{_DIGITS})+"
    rf"|_\d\w*|(?<=0)x[0-9a-f]+|(?-i:st|nd|rd|th|k|K|M|bn|mn|B)(?!\w))?"
    rf"(?P<scales>(?:\s+(?:{_MULTIPLE})s?(?!\w))*){_HALF}",
    re.IGNORECASE,
)
_ENGLISH = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+")
_CONTINENTAL = re.compile(r"\d{1,3}(?:\.\d{3})+,\d+")
_OUT_OF = re.compile(rf"\s*\bout of\s+(?:an?\s+|the\s+)?(?:\d+(?:[.,]\d+)*|{_WORDS}|[a-z]+)\b", re.IGNORECASE)
_LARGEST_EXPONENT = 308  # what a float holds


@dataclass(frozen=True)
class Number:
    """A number in a text: from `start` to `end`, as a plain literal; `value` None for an expression."""

    start: int
    end: int
    literal: str
    value: Decimal | None


def numbers(text: str) -> list[Number]:
    """Numbers and expressions in `text`: those with digits; number words only where there are no digits.

    Thousands separators are removed, a leading minus ("-", "minus", "negative") is kept, `out of N` is not a number
    of its own.
    """
    blanked = _OUT_OF.sub(lambda match: " " * len(match.group()), text)
    return list(_in_digits(blanked)) or list(_in_words(blanked))


def digits_value(digits: str) -> str | None:
    """The plain literal of digits with separators (`1,234.5`, `1.234,5`), None for an expression (`3,4`, `1.2.3`)."""
    if _ENGLISH.fullmatch(digits):
        return digits.replace(",", "")
    if _CONTINENTAL.fullmatch(digits):
        return digits.replace(".", "").replace(",", ".")
    return None


def _in_digits(text: str) -> Iterator[Number]:
    for match in _DIGIT_NUMBER.finditer(text):
        start, end = match.span()
        plain = digits_value(match["digits"])
        pair = "," in match["digits"] and text[:start][-1:] in ("(", "[") and text[end : end + 1] in (")", "]")
        if plain is None or match["joined"] or pair:
            yield Number(start, end, match.group().strip(), None)
            continue
        sign = "-" if match["sign"] not in ("", "+") else ""
        literal = sign + plain + (match["exponent"] or "")
        exponent = (match["exponent"] or "e0")[1:]
        large = len(exponent) > 5 or abs(int(exponent)) + len(plain) > _LARGEST_EXPONENT
        if large and not math.isfinite(float(literal)):
            continue
        value = Decimal(literal)
        if match["scales"] or match["half"]:
            for word in match["scales"].lower().split():
                value *= _MULTIPLES[word.removesuffix("s")]
            if match["half"]:
                value += Decimal("0.5").copy_sign(value)
            literal = plain_literal(value)
        yield Number(start, end, literal, value)


def _in_words(text: str) -> Iterator[Number]:
    for match in _WORD_NUMBER.finditer(text):
        start, end = match.span()
        if match["odd"] or match["part"]:
            yield Number(start, end, match.group().strip().lower(), None)
            continue
        values = _values(match["words"].lower())
        if len(values) > 1:  # a list of numbers: each for itself, where they stand
            for value in values:
                yield Number(start, end, plain_literal(value), value)
            continue
        value = values[0] + (Decimal("0.5") if match["half"] else 0)
        if match["sign"]:
            value = -value
        yield Number(start, end, plain_literal(value), value)


def _values(words: str) -> list[Decimal]:
    """The numbers that a run of number words says: one, where the words build on each other."""
    whole, _, fraction = f" {words}".partition(" point")
    totals: list[int] = []
    total, group, last, limit = 0, 0, "", 0  # closed by a scale; open below it; kind of the word before; that scale
    for word in re.findall(r"[^\s-]+", whole):
        if word in ("and", "a", "an"):
            continue
        word = word.removesuffix("s") if word.removesuffix("s") in _MULTIPLES else word
        kind = _kind(word)
        if last and (not _builds(last, kind, word, limit) or (kind == "multiple" and group >= 100)):
            totals.append(total + group)
            total, group, last, limit = 0, 0, "", 0
        if kind == "scale":
            total, group, limit = total + (group if last and last != "scale" else 1) * _SCALES[word], 0, _SCALES[word]
        elif kind == "multiple":
            group = (group if last in ("one", "teen", "tens") else 1) * _MULTIPLES[word]
        else:
            group += _UNITS[word]
        last = kind
    totals.append(total + group)
    values = [Decimal(value) for value in totals]
    if fraction:
        digits = "".join(str(_ONES[word]) for word in re.split(r"[\s-]+", fraction.strip()))
        values[-1] = Decimal(f"{totals[-1]}.{digits}")
    return values


def _kind(word: str) -> str:
    kinds = (("one", _ONES), ("teen", _TEENS), ("tens", _TENS), ("scale", _SCALES), ("multiple", _MULTIPLES))
    return next(kind for kind, words in kinds if word in words)


def _builds(last: str, kind: str, word: str, limit: int) -> bool:
    """Whether a word goes on with the number that the words before it began."""
    if kind == "scale":
        return last != "scale" and (not limit or _SCALES[word] < limit)
    if kind == "multiple":
        return last in ("one", "teen", "tens") or (last == "scale" and word == "hundred")
    return last in ("multiple", "scale") or (last == "tens" and kind == "one" and word != "zero")


def plain_literal(value: Decimal) -> str:
    """The number without exponent and without trailing zeros after the point."""
    text = f"{value:f}" if value else "0"
    return text.rstrip("0").rstrip(".") if "." in text else text
