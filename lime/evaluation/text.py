"""Text helpers shared by extraction and scoring: cleaning, folding to a comparison key, reading numbers."""

from __future__ import annotations

import math
import re
import unicodedata

NUMBER_TOLERANCE = 1e-6  # relative to max(1, |truth|): "4", "4.0" and "4.0000001" are one number

_SPECIAL_TOKEN = re.compile(r"<\|[^|<>]*\|>|</?s>")
_EMPHASIS = re.compile(r"\*+|`+")
_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "−": "-", "–": "-", "—": "-"})
_NUMBER = re.compile(
    r"(?<![\w.])(?<!\d,)(?P<sign>[-+]?|(?:minus|negative)\s+)\s?[$€£]?(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?P<exponent>[eE][-+]?\d+)?(?!\.\d)",
    re.IGNORECASE,
)
_DENOMINATOR = re.compile(r"\s*\bout of\s+(?:\d+(?:\.\d+)?|[a-z]+)\b", re.IGNORECASE)
_ARTICLE = re.compile(r"^(?:a|an|the)\s+(?=\S)")
_WORDS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty"""
NUMBER_WORDS = {word: str(value) for value, word in enumerate(_WORDS.split())}
_NUMBER_WORD = re.compile(
    r"(?<!\w)(?P<sign>(?:minus|negative)\s+)?(?P<word>" + "|".join(NUMBER_WORDS) + r")(?!\w)", re.IGNORECASE
)


def clean(raw: str) -> str:
    """Model output without special tokens and emphasis marks; NFKC, plain quotes and dashes, outer space
    stripped."""
    text = _EMPHASIS.sub("", _SPECIAL_TOKEN.sub(" ", raw))
    return unicodedata.normalize("NFKC", text).translate(_QUOTES).strip()


def numbers(text: str) -> list[tuple[int, int, str]]:
    """Numbers in `text` as (start, end, literal): digits first; number words (zero to twenty) only where no
    digits are.

    Thousands separators are removed, a leading minus ("-", "minus", "negative") is kept, `out of N` is not a number
    of its own.
    """
    blanked = _DENOMINATOR.sub(lambda match: " " * len(match.group()), text)
    found = []
    for match in _NUMBER.finditer(blanked):
        sign = "-" if match["sign"] not in ("", "+") else ""
        literal = sign + match["digits"].replace(",", "") + (match["exponent"] or "")
        if math.isfinite(float(literal)):
            found.append((match.start(), match.end(), literal))
    if found:
        return found
    return [
        (m.start(), m.end(), ("-" if m["sign"] else "") + NUMBER_WORDS[m["word"].lower()])
        for m in _NUMBER_WORD.finditer(blanked)
    ]


def parse_number(text: str) -> float | None:
    """The number that `text` consists of (units such as % and $ aside), or None where it is not a single
    number."""
    stripped = clean(text).strip(" \t\n.()[]\"'")
    found = numbers(stripped)
    if len(found) != 1:
        return None
    start, end, literal = found[0]
    rest = (stripped[:start] + stripped[end:]).strip(" %$€£")
    return float(literal) if not rest else None


def key(text: str) -> str:
    """Comparison key: case folded, a leading article dropped, only letters, digits, `+`, `#` and the dots and
    minus signs of numbers kept. `not_duplicate`, `Not duplicate.` and `not-duplicate` share one key."""
    folded = _ARTICLE.sub("", clean(text).casefold().strip(" \t\n\"'.,;:!?()[]"))
    kept = []
    for index, char in enumerate(folded):
        after = folded[index + 1 : index + 2]
        before = folded[index - 1 : index]
        point = char == "." and after.isdigit()
        minus = char == "-" and after.isdigit() and not before.isalpha()
        if char.isalnum() or char in "+#" or point or minus:
            kept.append(char)
    return "".join(kept) or folded
