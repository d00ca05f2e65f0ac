"""`tasks.yaml` in a folder of one's own: which files hold the rows, which column is what, and the tasks.

    files: {train: train.csv, validation: val.csv, pets: "test-*.csv"}   # split: file, list of files or pattern
    columns: {image: picture, question: prompt, answer: label}           # role: column
    question: Which animal is this?                                      # of rows without a question column
    folder: pictures                                                     # where media paths begin
    tasks:
      - {split: pets, modality: image, answer_type: label, answers: [cat, dog]}

Every part may be left out and is then inferred (see lime.data.own.inference).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from lime.data.rows import DataError
from lime.data.tasks import load_yaml

SPEC = "tasks.yaml"
PARTS = ("files", "columns", "question", "folder", "categories", "tasks")
ROLES = ("image", "video", "question", "answer", "conversations", "messages", "task", "kind")
"""What a column can be. `task` and `kind` say of each row which task it is of, and whether text, image or video."""
_CHATS = ("conversations", "messages")


@dataclass(frozen=True)
class Columns:
    """The columns of each role; only `image` may have several (one for each picture of a row)."""

    roles: Mapping[str, tuple[str, ...]]

    def __contains__(self, role: str) -> bool:
        return role in self.roles

    def __getitem__(self, role: str) -> str:
        return self.roles[role][0]

    @property
    def chat(self) -> str | None:
        """The role of the column that holds whole conversations, if there is one."""
        return next((role for role in _CHATS if role in self.roles), None)

    def names(self) -> list[str]:
        """Every column, each once."""
        return list(dict.fromkeys(name for names in self.roles.values() for name in names))

    def written(self) -> dict[str, Any]:
        """As `tasks.yaml` says it."""
        return {role: names[0] if len(names) == 1 else list(names) for role, names in self.roles.items()}


@dataclass(frozen=True)
class Spec:
    """What a `tasks.yaml` says. None: it leaves that to inference.

    `questions` {split: constant question}, "" for every split; `tasks` the rows of its table.
    """

    path: Path
    files: dict[str, list[str]] | None = None
    columns: Columns | None = None
    questions: dict[str, str] = field(default_factory=dict)
    folder: str | None = None
    categories: dict[str, str] | None = None
    tasks: list[dict[str, Any]] | None = None


def read_spec(root: Path) -> Spec:
    """What root/tasks.yaml says; nothing, where there is none. DataError naming the file, the key and what is wrong."""
    path = root / SPEC
    if not path.is_file():
        return Spec(path)
    content = load_yaml(path)
    if content is None:  # empty, or comments alone
        return Spec(path)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise DataError(f"{path}: expected {', '.join(PARTS)} (each may be left out), got {str(content)[:40]!r}")
    if unknown := sorted(set(content) - set(PARTS)):
        raise DataError(f"{path}: {unknown[0]}: no such key; expected {', '.join(PARTS)}")
    tasks, categories = content.get("tasks"), content.get("categories")
    if tasks is not None and not (isinstance(tasks, list) and tasks and all(isinstance(row, dict) for row in tasks)):
        raise DataError(f"{path}: tasks: expected a list with a row {{split: …, …}} for each, got {str(tasks)[:40]!r}")
    for row in tasks or ():
        if "answers" in row and not (isinstance(row["answers"], list) and _listed(row["answers"])):
            raise DataError(f"{path}: tasks: answers: expected a list of texts, got {str(row['answers'])[:40]!r}")
    if categories is not None and not _is_texts(categories):
        raise DataError(f"{path}: categories: expected {{name: title}}, got {str(categories)[:40]!r}")
    return Spec(
        path,
        _files(path, content.get("files")),
        _columns(path, content.get("columns")),
        _questions(path, content.get("question")),
        _folder(path, content.get("folder")),
        categories,
        tasks,
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(part, str) for pair in value.items() for part in pair)


def _listed(value: Any) -> list[str] | None:
    """A text or a list of texts as a list; None for anything else."""
    values = [value] if isinstance(value, str) else value
    good = isinstance(values, list) and values and all(isinstance(one, str) and one for one in values)
    return values if good else None


def _files(path: Path, value: Any) -> dict[str, list[str]] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not value:
        raise DataError(f"{path}: files: expected {{split: file}}, such as {{train: train.csv}}, got {value!r}")
    files = {}
    for split, names in value.items():
        listed = _listed(names)
        if listed is None:
            raise DataError(f"{path}: files: {split}: expected a file, a pattern or a list of them, got {names!r}")
        for name in listed:
            if _leaves(name):
                raise DataError(f"{path}: files: {split}: {name!r} leaves the folder; expected a path inside it")
        files[split] = listed
    return files


def _columns(path: Path, value: Any) -> Columns | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not value:
        raise DataError(f"{path}: columns: expected {{role: column}}, such as {{answer: label}}, got {value!r}")
    roles = {}
    for role, names in value.items():
        if role not in ROLES:
            raise DataError(f"{path}: columns: {role}: no such role; expected {', '.join(ROLES)}")
        listed = _listed(names)
        if listed is None or (len(listed) > 1 and role != "image"):
            expected = "a column or a list of columns" if role == "image" else "one column"
            raise DataError(f"{path}: columns: {role}: expected {expected}, got {names!r}")
        roles[role] = tuple(listed)
    columns = Columns(roles)
    if columns.chat is None and "answer" not in columns:
        raise DataError(f"{path}: columns: answer is lacking (or conversations, or messages)")
    if columns.chat is not None and (twice := sorted({"question", "answer", *_CHATS} & set(roles) - {columns.chat})):
        raise DataError(f"{path}: columns: {twice[0]} beside {columns.chat}, which holds it already; leave one out")
    return columns


def _questions(path: Path, value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str) and value.strip():
        return {"": value}
    if _is_texts(value) and all(text.strip() for text in value.values()):
        return dict(value)
    raise DataError(f"{path}: question: expected a text, or {{split: text}}, got {value!r}")


def _folder(path: Path, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or _leaves(value) or not (path.parent / value).is_dir():
        raise DataError(
            f"{path}: folder: expected a folder inside {path.parent}, where media paths begin, got {value!r}"
        )
    return PurePosixPath(value).as_posix()


def _leaves(name: str) -> bool:
    return Path(name).is_absolute() or ".." in Path(name).parts
