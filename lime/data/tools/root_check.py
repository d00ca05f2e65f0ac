"""A root's rows against its manifest: how many, which, and whether their answers are among the allowed ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lime.data.rows import COLUMNS, DataError, Rows, read_manifest
from lime.data.tasks import Task
from lime.evaluation.scoring import matches

_SHOWN = 5


class Expected:
    """What the manifest and the tasks say of the rows. `problem`: what is wrong with the manifest, "" for nothing."""

    def __init__(self, root: Path, tasks: Mapping[str, Task]) -> None:
        self._tasks = tasks
        self.problem = ""
        content: dict[str, Any] = {}
        try:
            content = read_manifest(root)
        except DataError as error:
            self.problem = str(error)
        prepared = content.get("prepared", {})
        counted = content.get("rows", {})  # of the embedded benchmark
        if not isinstance(prepared, dict) or not isinstance(counted, dict):
            self.problem = "prepared and rows: expected objects; delete the file or make it again"
            prepared, counted = {}, {}
        splits = prepared.get("splits", {})
        listed = {name: entry.get("rows") for name, entry in splits.items()} if _nested(splits) else {}
        self._rows: dict[str, Any] = {**counted, **listed}
        self._digests: Mapping[str, Any] = prepared.get("digests") or content.get("digests") or {}
        self._allowed: Mapping[str, Sequence[Any]] = content.get("allowed_answers", {}) if not self.problem else {}

    def absent(self, present: Sequence[str]) -> list[str]:
        """Splits of the manifest that are not there."""
        return sorted(set(self._rows) - set(present))

    def rows_problem(self, split: str, count: int, columns: Mapping[str, list[Any]]) -> str | None:
        """How the rows of a split differ from what the manifest says, or None."""
        announced = self._rows.get(split)
        if isinstance(announced, int) and announced != count:
            return f"{count} rows, the manifest says {announced}: cut or replaced; fetch or prepare it again"
        digest = self._digests.get(split)
        if isinstance(digest, str) and digest != _digest(split, columns):
            return "other rows than those the manifest was written for; fetch the split or prepare the root again"
        return None

    def answer_problem(self, split: str, answer: str) -> str | None:
        """Why an answer of a test split can never be right, or None."""
        task = self._tasks.get(split)
        if task is None:
            return None
        allowed = [str(one) for one in self._allowed.get(split) or task.labels or ()]
        if not allowed or any(matches(one, answer, task.answer_type) for one in allowed):
            return None
        shown = ", ".join(allowed[:_SHOWN]) + (", …" if len(allowed) > _SHOWN else "")
        return f"its answer {answer[:40]!r} is none of the allowed ones ({shown})"


def _nested(splits: object) -> bool:
    return isinstance(splits, dict) and all(isinstance(entry, dict) for entry in splits.values())


def _digest(split: str, columns: Mapping[str, list[Any]]) -> str | None:
    """As `Rows.digest`, of raw columns; None where they are not text."""
    try:
        texts = {name: [(value or b"").decode() for value in columns[name]] for name in COLUMNS}
    except (UnicodeDecodeError, AttributeError):
        return None
    return Rows(split, texts).digest()
