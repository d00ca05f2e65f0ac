"""The rows of an MMT-47 data root: opened from a `datasets` DatasetDict folder or from parquet as the hub
lays it out.

A row is `source_type` (text, image or video), `media_path` (relative to the data root), `question`, `answer`.
The root holds a `train` split and any of the 47 test splits; what is absent is listed in `MMTDataset.absent`,
never ignored.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from lime.data.fingerprint import media_fingerprint
from lime.data.layout import SplitFiles, find_splits, is_blank
from lime.data.tasks import MODALITIES, TaskTable, mmt47

log = logging.getLogger(__name__)

COLUMNS = ("source_type", "media_path", "question", "answer")
MORE_COLUMNS = ("more_media", "turns")  # of rows that have them
TRAIN, VALIDATION = "train", "validation"
MANIFEST = "manifest.json"


class DataError(ValueError):
    """A data root or a row that cannot be used; the message names it, what was expected and what to do."""


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation: its `role` (system, user, assistant) and `parts`, (kind, text) in order.

    The kind is text, image or video; an image or video part, without a text, shows the row's next medium.
    """

    role: str
    parts: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """Its text, without what it shows."""
        return "\n".join(text for kind, text in self.parts if kind == "text")

    @property
    def shown(self) -> list[str]:
        """The kinds of what it shows, in order."""
        return [kind for kind, _ in self.parts if kind != "text"]


@dataclass(frozen=True)
class Row:
    """One row. `id` is "<split>/<index>", with the index in the file, whatever part of the split is used.

    A row is asked as its one medium and its question, unless `turns` says more: then these are the turns before the
    answer, the question being the last one's text. `more_media` are the media after the first.
    """

    id: str
    split: str
    index: int
    source_type: str
    media_path: str
    question: str
    answer: str
    more_media: tuple[str, ...] = ()
    turns: tuple[Turn, ...] = ()

    @property
    def media_paths(self) -> tuple[str, ...]:
        """Every medium of the row, in order."""
        return (self.media_path, *self.more_media) if self.source_type != "text" else ()


class Rows(Sequence[Row]):
    """A read-only view of one split's rows; slicing and `take` give views of the same columns."""

    def __init__(self, split: str, columns: dict[str, list[Any]], indices: Sequence[int] | None = None) -> None:
        self.split = split
        self._columns = columns
        self._indices: Sequence[int] = range(len(columns["answer"])) if indices is None else indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, key: int) -> Row: ...
    @overload
    def __getitem__(self, key: slice) -> Rows: ...
    def __getitem__(self, key: int | slice) -> Row | Rows:
        if isinstance(key, slice):
            return Rows(self.split, self._columns, self._indices[key])
        index = self._indices[key]
        values = {name: column[index] for name, column in self._columns.items()}
        return Row(id=f"{self.split}/{index}", split=self.split, index=index, **values)

    def __iter__(self) -> Iterator[Row]:
        return (self[position] for position in range(len(self)))

    def take(self, positions: Sequence[int]) -> Rows:
        """The rows at these positions of this view, in that order."""
        return Rows(self.split, self._columns, [self._indices[p] for p in positions])

    def named(self, split: str) -> Rows:
        """These rows as those of another split."""
        return Rows(split, self._columns, self._indices)

    def sample(self, count: int | None) -> Rows:
        """`count` rows (all, if fewer or None) chosen by a hash of their content, in file order."""
        if count is None or count >= len(self):
            return self
        order = sorted(range(len(self)), key=lambda p: (content_hash(self[p]), p))
        return self.take(sorted(order[:count]))

    def digest(self) -> str:
        """SHA-256 over the content of these rows (text and media paths, not the media files)."""
        total = hashlib.sha256(self.split.encode())
        names = [*COLUMNS, *(name for name in MORE_COLUMNS if name in self._columns)]
        for index in self._indices:
            for name in names:
                value = str(self._columns[name][index]).encode()
                total.update(len(value).to_bytes(8, "little") + value)
        return total.hexdigest()


def content_hash(row: Row) -> int:
    """A 64-bit hash of what the row asks (question and media), so that equal questions always fall on one side."""
    data = f"{row.media_path}\0{row.question}"
    if row.more_media or row.turns:
        data += f"\0{row.more_media}\0{row.turns}"
    return int.from_bytes(hashlib.sha256(data.encode()).digest()[:8], "big")


class MMTDataset:
    """An opened data root.

    `table` its tasks (MMT-47's, unless given); `train` the training rows; `validation` its own validation rows, None
    where they are a part of the training rows; `tests` {split: rows} in the order of the
    table; `absent` the test splits not there; `manifest` the content of root/manifest.json ({} without one). Raises
    DataError for a root that does not exist or holds no split, a split that lacks a column, a row with an empty
    question or answer, an unknown source type, or a path that leaves the root.
    """

    def __init__(self, root: str | Path, table: TaskTable | None = None) -> None:
        self.root, self.table = Path(root), table or mmt47()
        tasks, files = self.table.tasks, find_splits(self.root)
        known = [name for name in (TRAIN, *tasks) if name in files]
        self.unknown = sorted(set(files) - set(known))
        if self.unknown:
            log.warning("%s: splits that belong to no task are left out: %s", self.root, ", ".join(self.unknown))
        if not known:
            place = next(iter(files.values())).place.parent
            raise DataError(
                f"{self.root}: none of its splits is train or one of the {len(tasks)} test splits; it has "
                f"{', '.join(self.unknown[:8])}{' and others' if len(self.unknown) > 8 else ''}, in {place}. Expected "
                "files <split>-00000-of-00001.parquet or <split>.parquet, or Arrow folders <split>/, with a name such "
                f"as {TRAIN} or {next(iter(tasks))} for <split> (`python scripts/data.py tasks` lists them)"
            )
        loaded = {name: _read(self.root, files[name]) for name in known}
        self._train = loaded.pop(TRAIN, None)
        self.validation: Rows | None = None
        self.tests: dict[str, Rows] = loaded
        self.absent: list[str] = [name for name in tasks if name not in loaded]
        self.manifest: dict[str, Any] = read_manifest(self.root)

    @property
    def has_train(self) -> bool:
        """Whether there is a 'train' split."""
        return self._train is not None

    @property
    def train(self) -> Rows:
        """The training rows; DataError where the root has none."""
        if self._train is None:
            raise DataError(f"{self.root}: no 'train' split (found {', '.join(self.tests)}): it can only be evaluated")
        return self._train

    def allowed_answers(self, split: str) -> list[str] | None:
        """The closed answer set of a task: what the manifest says, else what it has by nature, else None."""
        declared = self.manifest.get("allowed_answers", {}).get(split)
        if declared:
            return [str(answer) for answer in declared]
        labels = self.table.tasks[split].labels
        return list(labels) if labels else None

    @functools.cached_property
    def row_tasks(self) -> dict[str, Sequence[str | None]]:
        """The test split of each row's task, by its index, for the training rows and those that validate: where the
        manifest's `train_tasks` names it (as split or short name); else nothing.

        DataError where that is not one known name a row.
        """
        named = self.manifest.get("train_tasks")
        if named is None:
            return {}
        place, rows = self.root / MANIFEST, self.splits.get(TRAIN, ())
        if not isinstance(named, list) or len(named) != len(rows):
            raise DataError(f"{place}: train_tasks: expected a list of {len(rows)} names, one for each training row")
        splits = {name: task.split for task in self.table.tasks.values() for name in (task.name, task.split)}
        for index, name in enumerate(named):
            if not isinstance(name, str) or name not in splits:
                raise DataError(f"{place}: train_tasks: row {TRAIN}/{index}: {name!r} is no task; correct it")
        return {TRAIN: [splits[name] for name in named]}

    @functools.cached_property
    def rows_fingerprint(self) -> str:
        """SHA-256 over all rows present: texts and media paths."""
        total = hashlib.sha256()
        for rows in self.splits.values():
            total.update(rows.digest().encode())
        return total.hexdigest()

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all that can change a number: rows, media (see `lime.data.fingerprint`), declared answers, and
        the tasks where they are not MMT-47's."""
        media = media_fingerprint(self.root, self.media_paths())
        answers = json.dumps(self.manifest.get("allowed_answers", {}), sort_keys=True)
        tasks = "" if self.table.is_mmt47 else f" {json.dumps(self.table.content())}"
        return hashlib.sha256(f"{self.rows_fingerprint} {media} {answers}{tasks}".encode()).hexdigest()

    @property
    def splits(self) -> dict[str, Rows]:
        """All rows present by split, the training rows first."""
        trained = {TRAIN: self._train, VALIDATION: self.validation}
        return {**{name: rows for name, rows in trained.items() if rows is not None}, **self.tests}

    def media_paths(self) -> list[str]:
        """The media that rows name, each once, in order."""
        return sorted({path for rows in self.splits.values() for row in rows for path in row.media_paths})


def read_manifest(root: Path) -> dict[str, Any]:
    """The content of root/manifest.json, {} without one. DataError where it is not a JSON object."""
    path = root / MANIFEST
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise DataError(f"{path}: not valid JSON ({error}); delete it or generate the data set again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(content).__name__}")
    allowed = content.get("allowed_answers", {})
    if not isinstance(allowed, dict) or not all(isinstance(answers, list) for answers in allowed.values()):
        raise DataError(f"{path}: allowed_answers: expected {{split: [answer, …]}}; correct it")
    return content


def _read(root: Path, files: SplitFiles) -> Rows:
    """One split as columns of strings, every row checked."""
    present = files.column_names()
    lacking = [name for name in COLUMNS if name not in present]
    if lacking:
        raise DataError(
            f"{root}: split '{files.split}' lacks column {', '.join(map(repr, lacking))}; "
            f"found {', '.join(map(repr, present)) or 'no column'}, expected {', '.join(map(repr, COLUMNS))}"
        )
    columns = files.columns(COLUMNS)
    columns["media_path"] = [value if value is not None else "" for value in columns["media_path"]]
    for index, values in enumerate(zip(*(columns[name] for name in COLUMNS), strict=True)):
        if problem := _problem(*values):
            raise DataError(f"{root}: row {files.split}/{index}: {problem}")
    return Rows(files.split, columns)


def _problem(*values: Any) -> str | None:
    for name, value in zip(COLUMNS, values, strict=True):
        if not isinstance(value, str):
            return f"{name} is {value!r}; expected text"
    kind, media, question, answer = values
    if kind not in MODALITIES:
        return f"source_type is {kind!r}; expected one of {', '.join(MODALITIES)}"
    for name, text in (("answer", answer), ("question", question)):
        if is_blank(text):
            return f"its {name} is empty or blank; every row needs one (correct or remove the row)"
    path = Path(media)
    if kind != "text" and is_blank(media):
        return f"a {kind} row without a media_path"
    if media and (path.is_absolute() or ".." in path.parts):
        return f"media_path {media!r} leaves the data root; expected a path relative to it"
    return None
