"""What a folder's `tasks.yaml` leaves out: files by their names, columns by names and contents, tasks by their rows."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lime.data.own.spec import SPEC, Columns
from lime.data.own.tables import Table, is_table
from lime.data.rows import TRAIN, VALIDATION, DataError

TEST = "test"
MOST_LABELS = 50
_LONGEST_LABEL = 40
_LETTERS = frozenset("ABCDEFGHIJ")
_WORDS = {
    TRAIN: ("train", "training"),
    VALIDATION: ("validation", "valid", "val", "dev"),
    TEST: ("test", "testing", "eval"),
}
_NOT_ROWS = (
    "manifest.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "config.json",
)
_SHARD = re.compile(r"-\d{5}-of-\d{5}(-[0-9a-f]+)?$")
_NAMES = {
    "conversations": ("conversations", "conversation"),
    "messages": ("messages",),
    "image": ("image", "images", "image_path", "picture", "pictures", "photo", "img", "file_name", "filename", "file"),
    "video": ("video", "videos", "video_path", "clip"),
    "question": ("question", "prompt", "instruction", "query", "problem", "text", "sentence", "input"),
    "answer": ("answer", "label", "response", "target", "output", "class", "category", "caption", "solution"),
    "task": ("task",),
    "kind": ("source_type", "modality"),
}
_KEYS = ("id", "idx", "index", "key", "uid", "split", "source")  # neither question nor answer
_MEDIA = ("media_path", "media", "path")  # an image or, by its suffix, a video


def infer_files(root: Path) -> dict[str, list[str]]:
    """{split: files} of the tables in a folder, by their names. DataError where that is not clear."""
    found: dict[str, list[str]] = {}
    for place in (root, root / "data", *sorted(path.parent for path in root.glob("*/dataset_dict.json"))):
        tables = [path for path in sorted(place.iterdir()) if is_rows(path)] if place.is_dir() else []
        for path in tables:
            found.setdefault(_split_of(path), []).append(path.relative_to(root).as_posix())
        if found:
            break
    if not found:
        names = ", ".join(sorted(path.name for path in root.iterdir())[:12]) or "nothing"
        raise DataError(
            f"data.root: {root} holds no table of rows: expected a .csv, .tsv, .json, .jsonl or .parquet file, or a "
            f"folder written by save_to_disk. It holds: {names}"
        )
    if TRAIN not in found and len(found) == 1 and TEST not in found:
        return {TRAIN: next(iter(found.values()))}
    if unclear := [name for name in found if name not in _WORDS]:
        files = [file for name in unclear for file in found[name]]
        raise DataError(
            f"data.root: {root}: {', '.join(files[:6])}: training rows or test rows? Write it in {root / SPEC}: "
            f"files: {{train: {files[0]}, test: …}}"
        )
    return {name: found[name] for name in _WORDS if name in found}


def is_rows(path: Path) -> bool:
    """Whether this is a table of rows by its name."""
    return is_table(path) and path.name not in _NOT_ROWS and not path.name.startswith(".")


def _split_of(path: Path) -> str:
    """train, validation or test, where the file's name says so; else its name."""
    stem = _SHARD.sub("", path.stem)
    words = re.split(r"[-_. ]", stem.lower())
    return next((split for split, names in _WORDS.items() if set(names) & set(words)), stem)


def infer_columns(table: Table, root: Path, constant: bool) -> Columns:
    """The role of each column, by name, and by content where the name says nothing. DataError where that is not clear.

    Args:
        table: the training rows.
        root: the folder.
        constant: the question is the same for all rows.
    """
    by_name = {name.lower().strip(): name for name in reversed(table.columns)}
    roles: dict[str, tuple[str, ...]] = {}
    for role, names in _NAMES.items():
        if role == "answer" and roles.keys() & {"conversations", "messages"}:
            continue
        if known := next((by_name[name] for name in names if name in by_name), None):
            roles[role] = (known,)
    if "conversations" in roles or "messages" in roles:
        chat = "messages" if "messages" in roles else "conversations"
        return Columns({role: names for role, names in roles.items() if role in (chat, "image", "video", "task")})
    rest = [name for name in table.columns if (name,) not in roles.values() and name.lower() not in _KEYS]
    if "image" not in roles and "video" not in roles:
        media = next((by_name[name] for name in _MEDIA if name in by_name), None)
        if media is None:
            media = next((name for name in rest if _are_files(table, name, root)), None)
            is_row = media is not None and any(_is_there(base, media) for base in bases(root, table.path))
            if is_row and table.path.suffix.lower() in (".csv", ".tsv"):
                raise DataError(
                    f"{table.path}: line 1: holds a file's name, {media!r}, and so is a row; put a line with the names "
                    "of the columns before it, such as image,label"
                )
        if media is not None:
            roles["image"] = (media,)
            rest = [name for name in rest if name != media]
    if (
        "answer" not in roles
        and "question" in roles
        and not rest
        and not constant
        and roles.keys() & {"image", "video"}
    ):
        roles["answer"] = roles.pop("question")  # of two columns, one is the picture: the other is the answer
    if "answer" not in roles and len(rest) == 1:
        roles["answer"] = (rest.pop(),)
    if "question" not in roles and len(rest) == 1 and not roles.keys() & {"image", "video"}:
        roles["question"] = (rest.pop(),)
    has_question = constant or "question" in roles or roles.keys() & {"image", "video"}
    if "answer" not in roles or not has_question:
        lacking = "answer" if "answer" not in roles else "question"
        raise DataError(
            f"{table.path}: which column is the {lacking}? It has {', '.join(map(repr, table.columns))}. Write it in "
            f"{root / SPEC}: columns: {{{lacking}: {table.columns[-1]}, …}}"
        )
    return Columns(roles)


def _are_files(table: Table, column: str, root: Path) -> bool:
    """Whether a column's first values are files somewhere in the folder."""
    values = [str(row.get(column) or "\0") for row in table.rows[:5]]
    return any(all(_is_there(base, value) for value in values) for base in bases(root, table.path))


def _is_there(base: Path, name: str) -> bool:
    return os.path.isfile(base / name)  # noqa: PTH113  # False, too, where it is no name at all


def bases(root: Path, table: Path) -> list[Path]:
    """Folders in which paths of media may begin: the root, that of the table, each direct subfolder."""
    children = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return list(dict.fromkeys([root, table.parent, *children]))


def infer_folder(root: Path, table: Path, paths: Sequence[str]) -> str:
    """Where these paths of media begin, relative to the root: where most of the first are; else the root."""
    first = paths[:20]
    best = max(bases(root, table), key=lambda base: sum(_is_there(base, path) for path in first))
    return best.relative_to(root).as_posix()


@dataclass(frozen=True)
class Seen:
    """What is known of a task's rows: how many of each kind, and their answers."""

    kinds: Counter[str]
    answers: Counter[str]


def infer_task(task: Mapping[str, Any], seen: Seen) -> dict[str, Any]:
    """The row of the task table with what it leaves out filled in."""
    known = dict(task)
    known.setdefault("modality", seen.kinds.most_common(1)[0][0] if seen.kinds else "text")
    if "answer_type" not in known and "answers" not in known and (labels := closed_answers(seen.answers)) is not None:
        known["answers"] = labels
    known.setdefault("answer_type", _answer_type(known.get("answers")))
    return known


def closed_answers(answers: Counter[str]) -> list[str] | None:
    """The answers, sorted, where they are surely a closed set: few, short, each seen several times; else None."""
    names = sorted(answers)
    few = 2 <= len(names) <= min(MOST_LABELS, sum(answers.values()) // 4)
    distinct = len({" ".join(re.split(r"[\W_]+", name.casefold())) for name in names}) == len(names)
    usual = (
        all(len(name) <= _LONGEST_LABEL and "\n" not in name for name in names) and min(answers.values(), default=0) > 1
    )
    return names if few and distinct and usual else None


def _answer_type(answers: Iterable[str] | None) -> str:
    if answers is None:
        return "text"
    if {answer.lower() for answer in answers} == {"yes", "no"}:
        return "yes_no"
    return "letter" if set(answers) <= _LETTERS else "label"


def infer_question(answers: Sequence[str] | None, modality: str) -> str:
    """A question for rows that have none."""
    if answers is not None and len(answers) <= MOST_LABELS:
        return f"Which of these is it: {', '.join(answers)}?"
    return f"What does the {modality} show?"
