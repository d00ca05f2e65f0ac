"""A folder of one's own as a data set: rows in any table, tasks in `tasks.yaml` (lime.data.own.spec) or inferred."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lime.data.fingerprint import media_fingerprint
from lime.data.own.folder import Folder, FoundRow
from lime.data.own.records import Fields, RowProblem
from lime.data.own.spec import SPEC
from lime.data.rows import COLUMNS, MORE_COLUMNS, TRAIN, VALIDATION, DataError, MMTDataset, Rows, content_hash

log = logging.getLogger(__name__)


class OwnDataset(MMTDataset):
    """A folder of one's own, opened; what `MMTDataset` offers.

    Without test rows of their own, `test_fraction` of the training rows of each task are held out as such, chosen by a
    hash of question and media, apart from the choice of validation rows.

    Raises DataError naming the file and the row, line, key or column that cannot be used.
    """

    def __init__(self, root: str | Path, test_fraction: float = 0.2) -> None:
        folder = Folder(Path(root))
        self.root, self.table, self.unknown = folder.root, folder.tasks, []
        self.manifest: dict[str, Any] = {}
        for row in folder.rows:
            if isinstance(row.fields, RowProblem):
                raise DataError(f"{row.table.path}: row {row.part}/{row.index}: {row.fields}")
        parts: dict[str, list[FoundRow]] = {}
        for row in folder.rows:
            parts.setdefault(row.part, []).append(row)
        self._tasks = {part: [row.task for row in found] for part, found in parts.items()}
        self._train = _rows(TRAIN, parts[TRAIN]) if TRAIN in parts else None
        self.validation = _rows(VALIDATION, parts[VALIDATION]) if VALIDATION in parts else None
        self.tests = {split: _rows(split, parts[split]) for split in self.table.tasks if split in parts}
        self.held_out = not self.tests and self._train is not None and test_fraction > 0
        if self.held_out:
            self._hold_out(parts[TRAIN], test_fraction)
        self.absent = [split for split in self.table.tasks if split not in self.tests]
        self._tell(folder)

    def _hold_out(self, found: Sequence[FoundRow], fraction: float) -> None:
        assert self._train is not None
        rows = self._train
        hashes = [_test_hash(rows, position) for position in range(len(rows))]
        owns = {split: [at for at, row in enumerate(found) if row.task == split] for split in self.table.tasks}
        asked: set[bytes] = set()  # by a test row of any task: what several tasks ask alike is on one side in all
        for own in owns.values():
            order = sorted({hashes[at] for at in own})
            asked.update(order[: round(fraction * len(order))])
        held: set[int] = set()
        for split, own in owns.items():
            if chosen := [at for at in own if hashes[at] in asked]:
                self.tests[split] = rows.take(chosen).named(split)
                held.update(chosen)
        self._train = rows.take([position for position in range(len(rows)) if position not in held])

    def _tell(self, folder: Folder) -> None:
        if folder.inferred:
            text = yaml.safe_dump(
                folder.inferred, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110
            )
            log.info(
                "%s says nothing of the following, which was inferred (`python scripts/data.py infer %s` writes it "
                "there):\n%s", folder.root / SPEC, folder.root, text.rstrip(),
            )  # fmt: skip
        counts = {split: len(rows) for split, rows in self.splits.items()}
        log.info("%s: %s rows", self.root, ", ".join(f"{count} {split}" for split, count in counts.items()))
        if self.held_out:
            log.info(
                "no test file: the rows of %s were held out of training (data.test_fraction)", ", ".join(self.tests)
            )

    @functools.cached_property
    def row_tasks(self) -> dict[str, Sequence[str | None]]:
        """As the column `task` says it, or the one task that there is."""
        return {part: tasks for part, tasks in self._tasks.items() if any(tasks)}

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all that can change a number: rows, media, and the table of tasks."""
        media = media_fingerprint(self.root, self.media_paths())
        return hashlib.sha256(f"{self.rows_fingerprint} {media} {self.table}".encode()).hexdigest()


def _rows(split: str, found: Sequence[FoundRow]) -> Rows:
    columns: dict[str, list[Any]] = {name: [] for name in (*COLUMNS, *MORE_COLUMNS)}
    for row in found:
        fields = row.fields
        assert isinstance(fields, Fields)
        first, *more = fields.media or ("",)
        values = (fields.source_type, first, fields.question, fields.answer, tuple(more), fields.turns)
        for name, value in zip(columns, values, strict=True):
            columns[name].append(value)
    for name in MORE_COLUMNS:
        if not any(columns[name]):
            del columns[name]
    return Rows(split, columns)


def _test_hash(rows: Rows, position: int) -> bytes:
    return hashlib.sha256(f"test {content_hash(rows[position])}".encode()).digest()
