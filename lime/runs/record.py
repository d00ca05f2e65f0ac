"""The record of a run, ``record.json``: everything that tables and figures are made from, in one file.

docs/records.md describes every key. Reading checks it: a wrong, lacking or unknown key is an error that names file and
key. A change that older readers would misunderstand raises the number in :data:`SCHEMA`.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lime.config.check import ConfigError, build
from lime.data.tasks import TaskTable, mmt47, table_from
from lime.system.atomic import write_text

SCHEMA = "lime-record/1"
RECORD_FILE = "record.json"
Status = Literal["running", "finished", "diverged", "failed", "interrupted"]


class RecordError(ValueError):
    """A record that cannot be used; the message names the file and the keys."""


@dataclass
class Identity:
    """What makes a run the same run: hashes of its configuration, its data (rows and media) and the code.

    ``data`` is None in a run that ended before its data was read. ``threads``, the CPU threads of one process, do not
    make another run, but change sums, and with them losses, in their last digits.
    """

    config: str = ""
    code: str = ""
    data: str | None = None
    threads: int | None = None


@dataclass
class RunError:
    """Why a run failed or was interrupted."""

    type: str = ""
    message: str = ""
    traceback: str = ""


@dataclass
class Parameters:
    """Trainable parameters, all parameters with the adapter, and the number of adapted layers."""

    trainable: int = 0
    total: int = 0
    adapted_layers: int = 0


@dataclass
class Validation:
    """Loss per answer token (nats) on the held-out part of the training rows, after ``step`` optimiser steps; None
    where it was not finite."""

    step: int = 0
    loss: float | None = None


@dataclass
class Training:
    """What the training loop measured. Times in seconds without validation; rows and tokens per second over all steps.

    ``peak_memory_mb``: during training, of the GPU where one is used, else of the process's resident set. ``loss``:
    task loss per answer token (nats) over the last logged steps. ``weights_step``: the step whose weights were saved
    and evaluated, where those are the best by validation loss; None for the last. ``stopped_early``: by a validation
    loss that fell no more.
    """

    seconds: float = 0.0
    steps: int = 0
    rows: int = 0
    tokens: int = 0
    samples_per_second: float = 0.0
    tokens_per_second: float = 0.0
    peak_memory_mb: float = 0.0
    loss: float | None = None
    validation: list[dict[str, Any]] = field(default_factory=list)
    weights_step: int | None = None
    stopped_early: bool = False


@dataclass
class LayerRouting:
    """Routing of one adapted layer over the last logged training steps, per token.

    ``usage``: mean routing probability of each expert, before selection. ``entropy`` (nats) of the probabilities.
    ``experts_per_token``: experts that carry weight after selection.
    """

    usage: list[float | None] = field(default_factory=list)
    entropy: float | None = None
    experts_per_token: float | None = None


@dataclass
class Answering:
    """How long answering the test rows took, in seconds.

    ``cut``: answers that had not ended at evaluation.max_new_tokens. ``too_long``: truths longer than that.
    """

    seconds: float = 0.0
    rows: int = 0
    cut: int = 0
    too_long: int = 0


@dataclass
class Score:
    """One line of results.csv: a split, a category or the macro score, in points, with 95% intervals and counts."""

    level: Literal["split", "category", "macro"] = "split"
    name: str = ""
    category: str | None = None
    metric: str = ""
    n: int = 0
    score: float = 0.0
    low: float | None = None
    high: float | None = None
    exact_match: float = 0.0
    exact_low: float | None = None
    exact_high: float | None = None
    chance: float | None = None
    majority: float | None = None
    majority_exact: float | None = None
    frozen: float | None = None
    frozen_exact: float | None = None
    pearson: float | None = None
    spearman: float | None = None


@dataclass
class Items:
    """Per-item results of one split, in row order.

    ``rows``: index of each row in its split's file. ``correct``: one character a row, 1 or 0. ``clusters``: rows with
    the same number come from one image or one source clip, in whatever split they lie; None for text. ``values``: what
    the split's metric reads from each answer, None where it reads nothing; ``truths``: the numbers that a correlation
    expects. Both are None where the metric needs ``correct`` alone.
    """

    rows: list[int] = field(default_factory=list)
    correct: str = ""
    clusters: list[int] | None = None
    values: list[float | None] | None = None
    truths: list[float] | None = None


@dataclass
class Record:
    """A run. Sections that a run did not reach are None or empty; ``reused_from`` names the run that it repeats.
    ``tasks``: the run's table of tasks where it is not MMT-47's."""

    schema: str = SCHEMA
    status: Status = "running"
    name: str = ""
    seed: int = 0
    identity: Identity = field(default_factory=Identity)
    overrides: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    ended: str | None = None
    seconds: float | None = None
    error: RunError | None = None
    reused_from: str | None = None
    environment: dict[str, Any] | None = None
    tasks: dict[str, Any] | None = None
    parameters: Parameters | None = None
    adapter_bytes: int | None = None
    adapter_sha256: str | None = None
    training: Training | None = None
    routing: dict[str, Any] = field(default_factory=dict)
    answering: Answering | None = None
    rows_left_out: dict[str, Any] = field(default_factory=dict)
    epoch_rows: dict[str, int] = field(default_factory=dict)
    scores: list[dict[str, Any]] = field(default_factory=list)
    items: dict[str, Any] = field(default_factory=dict)

    def errors(self) -> list[str]:
        """What a record of its status must hold and does not."""
        if self.schema != SCHEMA:
            return [f"schema: expected {SCHEMA}, got {self.schema!r}; read it with the version that wrote it"]
        lacking = [name for name in ("name", "started", "config") if not getattr(self, name)]
        lacking += [f"identity.{name}" for name in ("config", "code") if not getattr(self.identity, name)]
        if self.status in ("finished", "diverged"):
            sections = ("environment", "parameters", "training", "ended", "seconds")
            lacking += [name for name in sections if getattr(self, name) is None]
            lacking += ["identity.data"] if self.identity.data is None else []
        if self.status == "failed" and self.error is None:
            lacking.append("error")
        problems = [f"{key}: lacking in a record of a {self.status} run" for key in lacking]
        return problems + list(self._entry_errors())

    def _entry_errors(self) -> Sequence[str]:
        parts: list[tuple[str, type, Any]] = [(f"scores.{i}", Score, entry) for i, entry in enumerate(self.scores)]
        parts += [(f"items.{split}", Items, entry) for split, entry in self.items.items()]
        parts += [(f"routing.{layer}", LayerRouting, entry) for layer, entry in self.routing.items()]
        if self.training is not None:
            parts += [(f"training.validation.{i}", Validation, e) for i, e in enumerate(self.training.validation)]
        problems = []
        try:
            lacking = sorted(self.items.keys() - self.table.tasks.keys())
            problems += [f"items.{split}: no task has this split" for split in lacking]
        except (ValueError, TypeError) as error:
            problems.append(str(error))
        for key, schema, entry in parts:
            try:
                made: Any = build(schema, entry if isinstance(entry, Mapping) else {"": entry})
            except ConfigError as error:
                problems += [f"{key}.{problem}" for problem in error.problems]
                continue
            if isinstance(made, Items) and not _whole(made):
                problems.append(f"{key}: rows, correct, clusters, values and truths must have one entry per row")
        return problems

    @functools.cached_property
    def table(self) -> TaskTable:
        """The run's tasks."""
        return mmt47() if self.tasks is None else table_from(self.tasks, "tasks")

    def score(self, level: str, name: str) -> Score | None:
        """One line of the scores; None where the run has none of that name."""
        for entry in self.scores:
            if (entry["level"], entry["name"]) == (level, name):
                return build(Score, entry)
        return None

    def split_items(self) -> dict[str, Items]:
        """Per-item results by split."""
        return {split: build(Items, entry) for split, entry in self.items.items()}


def objective_of(record: Record, name: str) -> float | None:
    """What a search looks at: ``validation_loss``, of the weights that were saved, or ``macro``, the macro score over
    the test rows; None where the run does not have it, or it is not finite."""
    if name == "macro":
        score = record.score("macro", "macro")
        return None if score is None else score.score
    training = record.training
    losses = training.validation if training is not None else []
    if training is not None and training.weights_step is not None:
        losses = [entry for entry in losses if entry["step"] == training.weights_step]
    return losses[-1]["loss"] if losses else None


def read_record(path: str | Path) -> Record:
    """The record at ``path``, or in that run folder, checked.

    Raises:
        RecordError: a missing or damaged file, another schema, or wrong keys; names file and keys.
    """
    path = Path(path)
    path = path / RECORD_FILE if path.is_dir() else path
    if not path.is_file():
        raise RecordError(f"{path}: no such file; expected the {RECORD_FILE} of a run, or its folder")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: not JSON ({error}); run it again") from error
    if not isinstance(values, dict):
        raise RecordError(f"{path}: expected an object, found {type(values).__name__}")
    if values.get("schema") != SCHEMA:  # keys of another version mean something else: say no more about them
        raise RecordError(f"{path}: schema: expected {SCHEMA}, got {values.get('schema')!r}")
    try:
        return build(Record, values)
    except ConfigError as error:
        raise RecordError(f"{path}: " + "; ".join(error.problems)) from error


def write_record(folder: Path, record: Record) -> Path:
    """Write ``record.json`` into ``folder``, one line per key, so that a reader sees the old file or the new one.

    Numbers that are not finite (the loss of a run that diverged) become null.
    """
    values = _finite(asdict(record))
    lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    path = folder / RECORD_FILE
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _whole(items: Items) -> bool:
    columns = (items.correct, items.clusters, items.values, items.truths)
    same = all(column is None or len(column) == len(items.rows) for column in columns)
    return same and set(items.correct) <= {"0", "1"}
