"""A folder's tables, and what is what in them: said by `tasks.yaml` or inferred."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lime.data.layout import find_splits
from lime.data.own import inference
from lime.data.own.inference import TEST, Seen
from lime.data.own.records import Fields, RowProblem, fields_of, task_of
from lime.data.own.spec import SPEC, Columns, read_spec
from lime.data.own.tables import Table, paths_of, read_table_file
from lime.data.rows import COLUMNS, TRAIN, VALIDATION, DataError
from lime.data.tasks import TaskTable, mmt47, table_from

_TITLES = {"own": "Own tasks"}


def is_own(root: Path) -> bool:
    """Whether a folder is one's own: it has a `tasks.yaml`, or tables, but not those of the published layout."""
    if not root.is_dir() or (root / SPEC).is_file():
        return root.is_dir()
    try:
        splits, published = find_splits(root), set(COLUMNS[:2])
        return not any(name in mmt47().tasks or published & set(at.column_names()) for name, at in splits.items())
    except (OSError, ValueError):
        places = [place for place in (root, root / "data") if place.is_dir()]
        return any(inference.is_rows(path) and path.suffix != ".parquet" for at in places for path in at.iterdir())


@dataclass(frozen=True)
class FoundRow:
    """A row where it was found: its table, its part (train, validation or a task's split) with its index there.

    `task` is its task where that is known, `fields` what it says, or why it cannot be used.
    """

    table: Table
    part: str
    index: int
    task: str | None
    fields: Fields | RowProblem


class Folder:
    """A folder of rows.

    `files` {split: tables}; `columns` which is what; `tasks` the task table; `inferred` all that `tasks.yaml` leaves
    out, in its form; `written` the whole of it.

    Raises DataError naming the file, and the line, key or column, where that cannot be read or is not clear.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DataError(f"data.root: {root} is not a folder; expected the one that holds your rows and media")
        self.root, self.spec = root, read_spec(root)
        self.inferred: dict[str, Any] = {}
        named = self.spec.files
        if named is None:
            named = self.inferred["files"] = inference.infer_files(root)
        self.files = {
            split: [table for name in names for table in self._tables(split, name)] for split, names in named.items()
        }
        first = next(iter(self.files.values()))[0]
        said = self.spec.columns
        self.columns: Columns = said or inference.infer_columns(first, root, bool(self.spec.questions))
        if said is None:
            self.inferred["columns"] = self.columns.written()
        for table in (table for tables in self.files.values() for table in tables):
            self._check_columns(table, optional=("image", "video") if said is None else ())
            if said is None:
                self._check_media(table)
        self.splits = self._split_names()
        self._check_files()
        self._questions = dict(self.spec.questions)
        if unknown := [split for split in self._questions if split not in ("", *self.splits)]:
            raise DataError(
                f"{self.spec.path}: question: {unknown[0]}: no such task; expected {', '.join(self.splits)}"
            )
        if not self._questions and "question" not in self.columns and self.columns.chat is None:
            self._infer_questions()
        self.rows = list(self._read())
        folder = self._media_folder()
        self.rows = [self._placed(row, folder) for row in self.rows]
        self.tasks = self._task_table()

    @property
    def written(self) -> dict[str, Any]:
        """What `tasks.yaml` says and what was inferred, as one such file."""
        spec = self.spec
        said = {
            "files": spec.files,
            "columns": spec.columns.written() if spec.columns else None,
            "question": spec.questions.get("", spec.questions) or None,
            "folder": spec.folder,
            "categories": spec.categories,
            "tasks": spec.tasks,
        }
        return {key: value for key, value in (said | self.inferred).items() if value is not None}

    def _tables(self, split: str, name: str) -> list[Table]:
        paths = paths_of(self.root, name)
        if not paths:
            raise DataError(f"{self.spec.path}: files: {split}: no file in {self.root} fits {name!r}")
        return [read_table_file(path) for path in paths]

    def _check_files(self) -> None:
        """DataError where a file's rows would come twice, or train and be held out as well."""
        seen: dict[Path, list[str]] = {}
        for split, tables in self.files.items():
            for table in tables:
                others = seen.setdefault(table.path.resolve(), [])
                if other := next((one for one in others if one == split or {one, split} & {TRAIN, VALIDATION}), None):
                    raise DataError(
                        f"{self.spec.path}: files: {table.path.relative_to(self.root)} is "
                        f"{f'in {split} twice' if other == split else f'both in {other} and in {split}'}; "
                        "name it once"
                    )
                others.append(split)

    def _check_media(self, table: Table) -> None:
        """DataError where a table names its pictures or clips in another column than those that were inferred."""
        if any(name in table.columns for role in ("image", "video") for name in self.columns.roles.get(role, ())):
            return
        try:
            own = inference.infer_columns(table, self.root, constant=True)
        except DataError:
            return  # it has no other columns of its own
        for role in ("image", "video"):
            if role in own:
                raise DataError(
                    f"{table.path}: its column {own[role]!r} looks like {role}s, but other tables have none of that "
                    f"name; give it one name in all (or write in {self.spec.path} which columns count: columns: …)"
                )

    def _check_columns(self, table: Table, optional: tuple[str, ...]) -> None:
        for role, names in self.columns.roles.items():
            if role in optional:
                continue
            if lacking := [name for name in names if name not in table.columns]:
                raise DataError(
                    f"{table.path}: no column {lacking[0]!r} for {role}; found "
                    f"{', '.join(map(repr, table.columns)) or 'none'} (columns: in {self.spec.path} says which is what)"
                )

    def _split_names(self) -> list[str]:
        """The tasks' splits. DataError where the files of `tasks.yaml` name others."""
        named = [split for split in self.files if split not in (TRAIN, VALIDATION)]
        if self.spec.tasks is not None:
            splits = [row.get("split") or "" for row in self.spec.tasks]
            if wrong := [split for split in splits if not isinstance(split, str) or split in ("", TRAIN, VALIDATION)]:
                raise DataError(
                    f"{self.spec.path}: tasks: split: expected a name of its own for each, got {wrong[0]!r}"
                )
            if "task" in self.columns or (named == [TEST] and len(splits) == 1):
                return splits
            if unknown := [name for name in named if name not in splits]:
                raise DataError(
                    f"{self.spec.path}: the rows of {unknown[0]!r} in files are of which task? Expected {TRAIN}, "
                    f"{VALIDATION} or one of {', '.join(splits)}, or a column that says it (columns: task)"
                )
            return splits
        if "task" not in self.columns:
            return named or [TEST]
        names: dict[str, None] = {}
        for _, _, record in self._records():
            with suppress(RowProblem):  # told where rows are read
                names[task_of(record, self.columns)] = None
        if found := [name for name in names if name not in (TRAIN, VALIDATION)]:
            return found
        path = next(iter(self.files.values()))[0].path
        raise DataError(
            f"{path}: its column {self.columns['task']!r} names no task (none but {TRAIN}, {VALIDATION}); fill it in, "
            f"or write in {self.spec.path} which columns count: columns: …"
        )

    def _task(self, split: str, record: Mapping[str, Any]) -> str | None:
        """The task of a row. RowProblem for one that its column does not name."""
        if "task" in self.columns:
            task = task_of(record, self.columns)
            if task not in self.splits:
                expected = ", ".join(self.splits[:8])
                raise RowProblem(
                    "missing_value", f"its {self.columns['task']} is {task[:40]!r}; expected one of {expected}"
                )
            return task
        if split in self.splits:
            return split
        return self.splits[0] if len(self.splits) == 1 else None

    def _records(self) -> Iterator[tuple[str, Table, Mapping[str, Any]]]:
        for split, tables in self.files.items():
            for table in tables:
                for record in table.rows:
                    yield split, table, record

    def _read(self) -> Iterator[FoundRow]:
        counts: Counter[str] = Counter()
        for split, table, record in self._records():
            task = None
            fields: Fields | RowProblem
            try:
                task = self._task(split, record)
                question = self._questions.get(task or "", self._questions.get(""))
                fields = fields_of(record, self.columns, question)
            except RowProblem as problem:
                fields = problem
            part = split if split in (TRAIN, VALIDATION) else task or split
            yield FoundRow(table, part, counts[part], task, fields)
            counts[part] += 1

    def _infer_questions(self) -> None:
        answers: dict[str, Counter[str]] = {split: Counter() for split in self.splits}
        for split, _, record in self._records():
            try:
                answers[self._task(split, record) or ""][str(record.get(self.columns["answer"])).strip()] += 1
            except (RowProblem, KeyError):
                continue  # told where rows are read
        declared = {row["split"]: row.get("answers") for row in self.spec.tasks or ()}
        kind = "video" if "video" in self.columns and "image" not in self.columns else "image"
        self._questions = {
            split: inference.infer_question(declared.get(split) or inference.closed_answers(own), kind)
            for split, own in answers.items()
        }
        texts = set(self._questions.values())
        self.inferred["question"] = texts.pop() if len(texts) == 1 else dict(self._questions)

    def _media_folder(self) -> str:
        said = self.spec.folder
        if said is not None:
            return said
        shown = [row for row in self.rows if isinstance(row.fields, Fields) and row.fields.media]
        if not shown:
            return "."
        paths = [path for row in shown[:20] for path in row.fields.media]  # type: ignore[union-attr]
        folder = inference.infer_folder(self.root, shown[0].table.path, paths)
        if folder != ".":
            self.inferred["folder"] = folder
        return folder

    def _placed(self, row: FoundRow, folder: str) -> FoundRow:
        if isinstance(row.fields, RowProblem) or not row.fields.media:
            return row
        media = tuple(PurePosixPath(folder, path).as_posix() for path in row.fields.media)
        return dataclasses.replace(row, fields=dataclasses.replace(row.fields, media=media))

    def _task_table(self) -> TaskTable:
        """The table of tasks.yaml with what it leaves out filled in."""
        seen = {split: Seen(Counter(), Counter()) for split in self.splits}
        for row in self.rows:
            if row.task is not None and isinstance(row.fields, Fields):
                seen[row.task].kinds[row.fields.source_type] += 1
                seen[row.task].answers[row.fields.answer.strip()] += 1
        said = self.spec.tasks or [{"split": split} for split in self.splits]
        tasks = [inference.infer_task(row, seen[row["split"]]) for row in said]
        if tasks != self.spec.tasks:
            self.inferred["tasks"] = tasks
        known = self.spec.categories or _TITLES
        tasks = [({"category": next(iter(known))} if len(known) == 1 else {}) | row for row in tasks]
        named = {row["category"]: _TITLES.get(row["category"], row["category"]) for row in tasks if "category" in row}
        return table_from({"categories": self.spec.categories or named, "tasks": tasks}, str(self.spec.path))
