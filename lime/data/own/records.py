"""One row of a table as people have it, as a row of this package: media, question, answer and earlier turns.

A row with one medium before one question is a row as MMT-47 has them, however it was written. Others (several pictures,
a picture within the text, several turns, a system turn) keep their turns in `Row.turns`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from lime.data.layout import is_blank
from lime.data.own.spec import Columns
from lime.data.rows import Turn
from lime.data.tasks import MODALITIES

MARK = re.compile(r"[ \t]*\n?<(image|video)>\n?")
"""Where a text shows a picture or a clip; a line break beside it belongs to the mark."""
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts")
_USERS, _ASSISTANTS = ("user", "human"), ("assistant", "gpt", "model", "bot")
_KEYS = {"conversations": ("from", "value"), "messages": ("role", "content")}
_SHOWN = {"image": "image", "image_url": "image", "video": "video", "video_url": "video"}


class RowProblem(ValueError):
    """What is wrong with a row; `kind` is one of `lime.data.tools.verify.KINDS`."""

    def __init__(self, kind: str, problem: str) -> None:
        super().__init__(problem)
        self.kind = kind


@dataclass(frozen=True)
class Fields:
    """What a row says. `media` are paths as written; no `turns` where `question` and one medium before it say all."""

    source_type: str
    media: tuple[str, ...]
    question: str
    answer: str
    turns: tuple[Turn, ...] = ()


def task_of(record: Mapping[str, Any], columns: Columns) -> str:
    """The task that a row names in its column."""
    return _text(record, columns["task"])


def fields_of(record: Mapping[str, Any], columns: Columns, question: str | None) -> Fields:
    """The row that a record of a table is. RowProblem naming the column.

    Args:
        record: {column: value}.
        columns: which is what.
        question: what is asked where the row does not say it.
    """
    media = list(_media(record, columns))
    if columns.chat is None:
        asked = _question(record, columns, question)
        turns = [Turn("user", _parts(asked, marked=bool(media)))]
        answer = _text(record, columns["answer"])
    else:
        turns, inline, answer = _chat(record, columns, bool(media))
        media += inline
    shown = [kind for turn in turns for kind in turn.shown]
    if not shown and media:  # pictures without marks come before the first question
        first = next(i for i, turn in enumerate(turns) if turn.role == "user")
        shown = [kind for kind, _ in media]
        turns[first] = Turn("user", (*((kind, "") for kind in shown), *turns[first].parts))
    if shown != [kind for kind, _ in media]:
        marks = f"{len(shown)} marks ({', '.join(f'<{kind}>' for kind in shown) or 'none'})"
        raise RowProblem("no_media_path", f"{marks} for {len(media)} media; expected one for each, in their order")
    kinds = set(shown)
    if len(kinds) > 1 or shown.count("video") > 1:
        raise RowProblem("wrong_type", f"shows {', '.join(shown)}; expected pictures alone or one clip")
    text = turns[-1].text
    if is_blank(text):
        raise RowProblem("empty_question", "its question is empty or blank; every row needs one")
    simple = len(turns) == 1 and [kind for kind, _ in turns[0].parts] in (
        ["text"],
        ["image", "text"],
        ["video", "text"],
    )
    paths = tuple(path for _, path in media)
    return Fields(shown[0] if shown else "text", paths, text, answer, () if simple else tuple(turns))


def _question(record: Mapping[str, Any], columns: Columns, constant: str | None) -> str:
    for column in columns.roles.get("question", ()):
        if record.get(column) is not None or constant is None:
            return _text(record, column)
    if constant is None:
        raise RowProblem("missing_value", "no question: name its column (columns: question) or write one (question: …)")
    return constant


def _text(record: Mapping[str, Any], column: str) -> str:
    """A column's text; numbers and truth values as they are written."""
    return _as_text(record.get(column), f"its {column}")


def _as_text(value: Any, what: str, *, blank: bool = False) -> str:
    if value is None:
        raise RowProblem("missing_value", f"{what} is absent")
    if isinstance(value, float) and not math.isfinite(value):
        raise RowProblem("missing_value", f"{what} is {value!r}, which is no value")
    if isinstance(value, bool):
        value = "true" if value else "false"
    elif isinstance(value, int | float):
        value = repr(value)
    if not isinstance(value, str):
        raise RowProblem("missing_value", f"{what} is {str(value)[:40]!r}; expected text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowProblem("not_utf8", f"{what} is not UTF-8 text ({value[:40]!r})") from None
    if not blank and is_blank(value):
        name = "empty_answer" if "answer" in what else "empty_question" if "question" in what else "missing_value"
        raise RowProblem(name, f"{what} is empty or blank")
    return value


def _media(record: Mapping[str, Any], columns: Columns) -> Iterator[tuple[str, str]]:
    """(kind, path) of each medium that a row's columns name."""
    said = _text(record, columns["kind"]) if "kind" in columns else None
    if said is not None and said not in MODALITIES:
        raise RowProblem(
            "unknown_source_type", f"its {columns['kind']} is {said!r}; expected one of {', '.join(MODALITIES)}"
        )
    if said == "text":
        return
    found = 0
    for role in ("image", "video"):
        for column in columns.roles.get(role, ()):
            value = record.get(column)
            for one in value if isinstance(value, list | tuple) else [value] if value is not None else []:
                path = _path(one, column)
                kind = said or ("video" if path.lower().endswith(VIDEO_SUFFIXES) else role)
                found += 1
                yield kind, path
    if said is not None and not found:
        raise RowProblem("no_media_path", f"a {said} row without a path")


def _path(value: Any, column: str) -> str:
    if isinstance(value, Mapping):  # an Image feature of `datasets`, {bytes, path}; a URL of the messages layout
        inside = value.get("bytes") is not None
        value = value.get("path") or value.get("url")
        if inside:
            raise RowProblem(
                "wrong_type", f"its {column} holds the picture itself; `data.py unpack` writes it to a file"
            )
    if isinstance(value, bytes):
        raise RowProblem("wrong_type", f"its {column} holds bytes; `data.py unpack` writes pictures to files")
    path = _as_text(value, f"its {column}", blank=True).strip()
    if is_blank(path):
        raise RowProblem("no_media_path", f"its {column} is empty or blank; expected a path")
    path = path.removeprefix("file://")
    if re.match(r"[a-zA-Z][\w+.-]*:", path):
        raise RowProblem("outside_root", f"its {column} {path[:60]!r} is an address; expected a path inside the folder")
    if path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise RowProblem("outside_root", f"its {column} {path!r} leaves the folder; expected a path inside it")
    return path


def _parts(text: str, *, marked: bool) -> tuple[tuple[str, str], ...]:
    """A text as parts (kind, text), cut at its marks where it has media."""
    if not marked or not MARK.search(text):
        return (("text", text),)
    parts: list[tuple[str, str]] = []
    start = 0
    for mark in MARK.finditer(text):
        parts += [("text", text[start : mark.start()]), (mark[1], "")]
        start = mark.end()
    parts.append(("text", text[start:]))
    return tuple(part for part in parts if part != ("text", ""))


def _chat(
    record: Mapping[str, Any], columns: Columns, has_media: bool
) -> tuple[list[Turn], list[tuple[str, str]], str]:
    """The turns before the answer, the media that they name themselves, and the answer."""
    layout = columns.chat
    assert layout is not None
    column, (who, what) = columns[layout], _KEYS[layout]
    said = record.get(column)
    if not isinstance(said, list | tuple) or not said:
        raise RowProblem("missing_value", f"its {column} is {str(said)[:40]!r}; expected a list of {{{who}, {what}}}")
    turns: list[Turn] = []
    media: list[tuple[str, str]] = []
    for number, one in enumerate(said, 1):
        place = f"turn {number} of its {column}"
        if not isinstance(one, Mapping) or not {who, what} <= one.keys():
            raise RowProblem("missing_value", f"{place} is {str(one)[:40]!r}; expected {{{who}, {what}}}")
        role = _role(one[who], place)
        parts = _content(one[what], f"{place}: {what}", has_media and role == "user", media)
        if role != "user" and any(kind != "text" for kind, _ in parts):
            raise RowProblem("wrong_type", f"{place} is the {role}'s and shows a medium; expected those in the user's")
        turns.append(Turn(role, parts))
    _check_order(turns, column)
    answer = turns.pop()
    if is_blank(answer.text):
        raise RowProblem("empty_answer", f"the last answer of its {column} is empty or blank")
    return turns, media, answer.text


def _role(value: Any, place: str) -> str:
    name = str(value).lower()
    if name in _USERS:
        return "user"
    if name in _ASSISTANTS:
        return "assistant"
    if name == "system":
        return name
    expected = ", ".join((*_USERS, *_ASSISTANTS, "system"))
    raise RowProblem("unknown_source_type", f"{place} is of {value!r}; expected one of {expected}")


def _content(value: Any, place: str, marked: bool, media: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Parts of a turn: of a text with marks, or of a list of parts, which may name their media."""
    if not isinstance(value, list | tuple):
        return _parts(_as_text(value, place, blank=True), marked=marked)
    parts: list[tuple[str, str]] = []
    for one in value:
        kind = one.get("type") if isinstance(one, Mapping) else "text"
        if kind == "text":
            parts += _parts(
                _as_text(one.get("text") if isinstance(one, Mapping) else one, place, blank=True), marked=marked
            )
        elif isinstance(kind, str) and kind in _SHOWN:
            parts.append((_SHOWN[kind], ""))
            named = next((one[key] for key in (kind, "path", "url") if one.get(key) is not None), None)
            if named is not None:
                media.append((_SHOWN[kind], _path(named, place)))
        else:
            raise RowProblem("unknown_source_type", f"{place}: a part of type {kind!r}; expected text, image or video")
    return tuple(parts)


def _check_order(turns: Sequence[Turn], column: str) -> None:
    """System first, if at all; then user and assistant in turn; an answer last."""
    roles = [turn.role for turn in turns if turn.role != "system"]
    if any(turn.role == "system" for turn in turns[1:]):
        raise RowProblem("missing_value", f"its {column} has a system turn after others; expected it first")
    expected = ["user", "assistant"] * (len(roles) // 2)
    if not roles or roles != expected:
        said = ", ".join(roles) or "nothing"
        raise RowProblem(
            "missing_value", f"its {column} is {said}; expected user and assistant in turn, an answer last"
        )
