"""Text helpers shared by extraction and scoring: cleaning, the comparison key, reading and comparing numbers.

Written rules, by which two answers written differently are equal:

1. Case (one letter for one letter: `ß` is not `ss`), compatibility forms (full width, ligatures; `10²` is `10^2`,
   `½` is `1/2`), plain and curly quotes and dashes, emoji with and without a presentation selector, invisible format
   characters.
2. A leading article before a word ("a", "an" before two letters or more, "the").
3. Special tokens (`<|…|>`, `</s>`) and pairs of emphasis marks around words.
4. Punctuation and spaces around and between words: `not_duplicate`, `Not duplicate.`, `not-duplicate`,
   `it's` and `its`.
5. Numbers by value: `4`, `+4` and `4.0`, `1,234.5` and `1.234,5`, `400` and `four hundred`. `%`, `$`, `€`, `£`, `¥`
   and `₹` (also written percent, dollars, euros) may be absent on one side; where both have one it is the same.

All else tells answers apart: separators between two digits (`3/4`, `1:20`, `3-5`, `10 20`), marks of every script,
accents, signs before and after (`-5`, `A-`, `C++`, `#1`, `5°`, `5"`), symbols and emoji, units. A text of punctuation
alone is equal to itself alone.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from functools import lru_cache

from lime.evaluation.numerals import digits_value, numbers, plain_literal

NUMBER_TOLERANCE = 1e-6  # of the larger number, of 1 where that is larger: "4" and "4.0000001" are one number
_TINY = Decimal("1e-6")

_SPECIAL_TOKEN = re.compile(r"<\|[^|<>]*\|>|</?s>")
_EMPHASIS = re.compile(r"(?<![\w*`])(\*{1,3}|`{1,3})(?=[^\s*`])([^*`]*?[^\s*`])\1(?![\w*`])")
_LEFT_OVER = re.compile(r"^(?:\*+|`+)\s*(?=.*\w)|(?<=[^\w\s*`])(?:\*+|`+)$|(?<!\w)\*\*|\*\*(?!\w)|`{3}", re.DOTALL)
_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "−": "-", "–": "-", "—": "-", "⁄": "/", "∕": "/"})
_INVISIBLE = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe0e\ufe0f\ufeff]")
_GROUP_SPACE = re.compile("(?<=\\d)[\u00a0\u2009\u202f](?=\\d{3}(?!\\d))")
_ARTICLE = re.compile(r"^(?:the\s+(?=\w)(?!the$)|an?\s+(?=[^\W\d_]{2}))")
_GROUPED = re.compile(r"(?<![\w.,(\[])\d+(?:[.,]\d+)+(?![.,)\]]*\d|\s?[/:^*×])")
_UNITS = "%$€£¥₹"
_UNIT_WORD = re.compile(r"(?<=[\w.])\s+(percent|dollars?|euros?)(?=[\s.)\]\"']*$)", re.IGNORECASE)
_SIGN_OF = {"perc": "%", "doll": "$", "euro": "€"}
_TELLING = frozenset("#%&*/@\\‰‱′″‴§¶†‡")  # punctuation by its Unicode category that says something
PUNCTUATION = " \t\n\r\"'.,;:!?"
_FEET = re.compile(r"(?:(?<=\d)|(?<=\b[^\W\d_]))(''|\"|')(?!\w)")
_HALF_OPEN = re.compile(r"\([^()\[\]]+,[^()\[\]]+\]|\[[^()\[\]]+,[^()\[\]]+\)")


def clean(raw: str) -> str:
    """Model output without special tokens and emphasis marks; compatibility forms and quotes made plain (a quote
    that closes none and follows a digit is a prime), outer space stripped."""
    text = _SPECIAL_TOKEN.sub(" ", raw)
    text = unemphasised(_fold_compatibility(_GROUP_SPACE.sub("", text)).translate(_QUOTES))
    return _FEET.sub(_as_prime, text.strip())


def unemphasised(text: str) -> str:
    """Text without pairs of `*` and backquotes around words, and without those whose partner was cut off."""
    if "*" not in text and "`" not in text:
        return text
    before = None
    while before != text:
        before, text = text, _EMPHASIS.sub(r"\2", text)
    stripped = _LEFT_OVER.sub("", text.strip())
    return stripped if any(not char.isspace() and char not in "*`" for char in stripped) else text


def _fold_compatibility(text: str) -> str:
    """As NFKC, but what a position says is kept: superscript digits after `^`, subscript digits apart from the digit
    before them, fractions apart from it as well. Invisible characters go."""
    if text.isascii():
        return text
    folded: list[str] = []
    for char in text:
        piece = _compatible(char)
        if piece[:1] == "^" and folded and folded[-1][:1] == "^":
            piece = piece[1:]  # 10²³
        elif piece != char and piece[:1].isdigit() and folded and folded[-1][-1:].isdigit() and not _wide(char):
            piece = ("_" if "<sub>" in unicodedata.decomposition(char) else " ") + piece
        folded.append(piece)
    return _INVISIBLE.sub("", unicodedata.normalize("NFC", "".join(folded)))


def _compatible(char: str) -> str:
    """One character with its compatibility decomposition worked out."""
    kind, _, codes = unicodedata.decomposition(char).partition("> ")
    if not codes:
        return char
    parts = "".join(_compatible(chr(int(code, 16))) for code in codes.split())
    if kind == "<super":
        sign = parts.replace("−", "-")
        return "^" + sign if sign.isdigit() or sign in "+-" else char
    if kind == "<circle":
        return f"({parts})"
    if (parts[:1] == " " and parts != " ") or char == "№":
        return char  # a spacing accent is no space with an accent
    return parts.replace("⁄", "/")


def _wide(char: str) -> bool:
    return unicodedata.decomposition(char).startswith(("<wide>", "<font>"))


def parse_number(text: str) -> float | None:
    """The number that `text` consists of (signs such as % and $ aside), or None where it is not a single number."""
    number = number_of(text)
    return None if number is None else float(number[0])


@lru_cache(maxsize=4096)
def number_of(text: str) -> tuple[Decimal, str] | None:
    """(value, its sign such as % or $, "" without one) where `text` is a single number, else None."""
    cleaned = clean(text)
    stripped = _UNIT_WORD.sub(lambda match: _SIGN_OF[match[1].lower()[:4]], cleaned)
    stripped = stripped.lstrip(" \t\n([\"'").rstrip(" \t\n.)]\"'")
    numbers_inside = numbers(stripped)
    if len(numbers_inside) != 1 or (value := numbers_inside[0].value) is None:
        return None
    number = numbers_inside[0]
    written = stripped[number.start : number.end]
    if "," in written and cleaned[:1] in ("(", "["):
        return None  # (100,200) is a pair
    rest = (stripped[: number.start] + stripped[number.end :]).strip()
    unit = "".join(char for char in rest + written if char in _UNITS)
    if rest.strip(" " + _UNITS) or len(unit) > 1:
        return None
    return value, unit


def another_unit(text: str) -> bool:
    """Whether the one number in `text` stands beside a word or sign that may be its unit: `6 kg`, `#6`."""
    cleaned = clean(text)
    numbers_inside = numbers(cleaned)
    if len(numbers_inside) != 1:
        return False
    before, after = cleaned[: numbers_inside[0].start][-1:], cleaned[numbers_inside[0].end :].lstrip()[:1]
    return bool(after and (after.isalpha() or not _separates(after))) or bool(before and before in "#@~<>±≈¢")


def same_number(one: Decimal, other: Decimal) -> bool:
    """|a - b| <= 1e-6 min(1, max(|a|, |b|)): whole numbers are equal or not, however large."""
    return abs(one - other) <= Decimal(str(NUMBER_TOLERANCE)) * min(Decimal(1), max(abs(one), abs(other)))


def number_literal(value: Decimal) -> str:
    """A number as text, the same for equal ones up to twelve digits after the point."""
    if value and abs(value) < _TINY:
        return str(value.normalize())
    return plain_literal(value if abs(value) >= 10**12 else round(value, 12))


@lru_cache(maxsize=4096)
def key(text: str) -> str:
    """Comparison key by the rules of the module's text. Equal keys, equal answers."""
    cleaned = clean(text)
    plain = _GROUPED.sub(lambda match: digits_value(match.group()) or match.group(), _fold_case(cleaned))
    pieces = "".join(_telling_pieces(_ARTICLE.sub("", inner(plain))))
    if _HALF_OPEN.fullmatch(interval := inner(plain, PUNCTUATION)):
        pieces = interval[0] + pieces + interval[-1]
    return pieces or cleaned or text.strip()


def inner(text: str, around: str = PUNCTUATION + "()[]") -> str:
    """Without quotes, brackets and punctuation around it; a point before a digit stays."""
    stripped = text.lstrip(around)
    before = text[: len(text) - len(stripped)]
    stripped = stripped.rstrip(around)
    return "." + stripped if stripped[:1].isdigit() and before.endswith(".") else stripped


def _as_prime(match: re.Match[str]) -> str:
    before = match.string[: match.start()]
    if before.lstrip()[:1] == match[0] or before.count(match[0]) % 2:
        return match[0]  # closes a quotation
    return "′" if match[0] == "'" else "′′"


def _fold_case(text: str) -> str:
    return "".join(folded if len(folded := char.casefold()) == 1 else char.lower() for char in text)


def _telling_pieces(text: str) -> list[str]:
    """Words, and of what stands between them what tells answers apart."""
    pieces: list[str] = []
    position = 0
    while position < len(text):
        end = position
        separator = _separates(text[position])
        while end < len(text) and _separates(text[end]) == separator:
            end += 1
        run = text[position:end]
        pieces.append(run if not separator else _between(text[:position], run, text[end:]))
        position = end
    return pieces


def _separates(char: str) -> bool:
    """Whether a character is space or punctuation that only stands between or around words."""
    category = unicodedata.category(char)
    return category[0] == "Z" or category == "Cc" or (category[0] == "P" and char not in _TELLING)


def _between(before: str, run: str, after: str) -> str:
    """What of these separators counts: all between two digits, a point or minus before a digit, a minus at the end."""
    if before[-1:].isdigit() and after[:1].isdigit():
        return re.sub(r"\s*([^\s\w]|_)\s*", r"\1", run) if run.strip() else " "
    if after[:1].isdigit() and (not before or len(run) > 1 or not before[-1].isalpha()):
        return run[-1] if run[-1] in "-." else ""
    if not after and run[:1] == "-" and before[-1:].isalnum():
        return "-"
    if run[-1:] == "-" and after[:1].isalpha() and (_is_sign(before) if before else not after[1:2].isalpha()):
        return "-"  # e^-x, -x
    return ""


def _is_sign(before: str) -> bool:
    return unicodedata.category(before[-1])[0] in "SP"
