"""The record of a run: status, environment, configuration and, at its end, everything that was measured.

Written so that a crash leaves whole files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import os
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import yaml

from lime.config.identity import config_hash
from lime.data.rows import MMTDataset
from lime.data.tasks import keep_table
from lime.evaluation.aggregation import Evaluation
from lime.evaluation.clusters import source_media
from lime.evaluation.metrics import metric_of
from lime.evaluation.predictions import Prediction
from lime.evaluation.report import csv_rows
from lime.runs.adapter import adapter_digest
from lime.runs.code import code_version
from lime.runs.folders import RESERVE
from lime.runs.record import (
    Answering,
    Identity,
    Items,
    LayerRouting,
    Parameters,
    Record,
    RunError,
    Training,
    write_record,
)
from lime.system import interrupts
from lime.system.atomic import remove, write_bytes, write_json, write_text
from lime.system.nested import plain

RESERVED = 2**17
"""Bytes kept free for the record of a run's end."""

log = logging.getLogger(__name__)


def write_config(path: Path, config: dict[str, Any]) -> None:
    """The resolved configuration as YAML, in the order of the schema."""
    write_text(path, yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True))


class RunStatus:
    """``status.json`` of a run: ``running``, then ``finished``, ``diverged``, ``interrupted`` or ``failed``.

    With the error, or the signal. Some room on the disk is kept for it, so that a full one leaves a status too. One of
    several processes ``writes``.
    """

    def __init__(self, folder: Path, writes: bool = True):
        self._writes = writes
        self._path = folder / "status.json"
        self._reserve = folder / RESERVE
        self._started = time.time()
        self._outcome = "finished"

    def diverged(self) -> None:
        """The run will have ended with a loss or parameters that are not finite."""
        self._outcome = "diverged"

    def __enter__(self) -> Self:
        self._write("running")
        with suppress(OSError):
            if self._writes:
                write_bytes(self._reserve, os.urandom(RESERVED))
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if not self._writes:
            return
        with interrupts.deferred():
            with suppress(OSError):
                remove(self._reserve)
            try:
                self._write_end(error)
            except OSError as other:
                log.error("%s: the end of the run could not be written: %s", self._path, other)
                if error is None:
                    with suppress(OSError):
                        self._write("failed", {"type": "OSError", "message": str(other), "traceback": ""})
                    raise

    def _write_end(self, error: BaseException | None) -> None:
        if error is None:
            self._write(self._outcome)
            return
        status = "interrupted" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "failed"
        name = error.signal.name if isinstance(error, interrupts.Interrupted) else type(error).__name__
        said = "".join(traceback.format_exception(error))
        self._write(status, {"type": name, "message": str(error), "traceback": said})

    def _write(self, status: str, error: dict[str, str] | None = None) -> None:
        if not self._writes:
            return
        content: dict[str, Any] = {"status": status, "started": _iso(self._started)}
        if status != "running":
            content |= {"ended": _iso(time.time()), "seconds": round(time.time() - self._started, 3)}
        self._save(content | ({"error": error} if error else {}))

    def _save(self, content: dict[str, Any]) -> None:
        write_json(self._path, content)


class RunRecord(RunStatus):
    """``record.json`` beside ``status.json``: written when the run begins and when it ends, however it ends.

    Args:
        folder: the run's folder.
        config: the resolved configuration.
        overrides: what the command line set.
    """

    def __init__(self, folder: Path, config: dict[str, Any], overrides: Sequence[str], writes: bool = True):
        super().__init__(folder, writes)
        self._folder = folder
        self._record = Record(
            name=config["name"],
            seed=config["seed"],
            identity=Identity(config=config_hash(config), code=code_version()),
            overrides=list(overrides),
            config=plain(config),
        )

    def environment(self, info: dict[str, Any], data: MMTDataset, epoch_rows: dict[str, int]) -> None:
        """Versions, commit, hardware and fingerprints, the tasks, and how many rows of each an epoch has."""
        self._record.environment, self._record.epoch_rows = info, epoch_rows
        self._record.identity.data = data.fingerprint
        self._record.tasks = None if data.table.is_mmt47 else data.table.content()
        self._record.identity.threads = info["hardware"]["threads"]
        if self._writes:
            write_json(self._folder / "environment.json", info)
            keep_table(self._folder, data.table)
            write_record(self._folder, self._record)

    def trained(self, parameters: Parameters, training: Training, routing: dict[str, LayerRouting]) -> None:
        """What was adapted and how training went."""
        self._record.parameters, self._record.training = parameters, training
        self._record.routing = {name: dataclasses.asdict(layer) for name, layer in routing.items()}

    def saved(self, adapter: Path) -> None:
        """Size of the saved adapter's tensors, and the hash of its files."""
        if not self._writes:
            return
        self._record.adapter_sha256 = adapter_digest(adapter)
        self._record.adapter_bytes = sum(path.stat().st_size for path in adapter.glob("*.safetensors"))

    @property
    def adapter_bytes(self) -> int:
        """Size of the saved adapter's tensors; 0 before it is saved."""
        return self._record.adapter_bytes or 0

    def answered(
        self, seconds: float, evaluation: Evaluation, predictions: Sequence[Prediction], left_out: dict[str, Any]
    ) -> None:
        """Scores and per-item results."""
        self._record.answering = Answering(
            seconds=round(seconds, 3),
            rows=len(predictions),
            cut=sum(prediction.cut for prediction in predictions),
            too_long=sum(prediction.too_long for prediction in predictions),
        )
        self._record.scores = csv_rows(evaluation)
        metrics = {score.split: score.metric for score in evaluation.splits}
        self._record.items = {
            split: dataclasses.asdict(items_of([p for p in predictions if p.split == split], metric))
            for split, metric in metrics.items()
        }
        self._record.rows_left_out = left_out

    def _save(self, content: dict[str, Any]) -> None:
        for key in ("status", "started", "ended", "seconds"):
            setattr(self._record, key, content.get(key))
        self._record.error = RunError(**content["error"]) if "error" in content else None
        super()._save(content)
        write_record(self._folder, self._record)


def items_of(predictions: Sequence[Prediction], metric: str) -> Items:
    """Per-item results of one split, for the record."""
    items = Items(
        rows=[int(p.id.rpartition("/")[2]) for p in predictions],
        correct="".join("1" if p.correct else "0" for p in predictions),
        clusters=[_cluster(p) for p in predictions] if any(p.media_path for p in predictions) else None,
    )
    right_R = np.array([p.correct for p in predictions], dtype=float)
    rows = metric_of(metric).read(
        predictions[0].split, [p.extracted for p in predictions], [p.truth for p in predictions], right_R
    )
    if rows.values_R is not None:
        items.values = [None if math.isnan(value) else value for value in rows.values_R.tolist()]
    if rows.truths_R is not None:
        items.truths = rows.truths_R.tolist()
    return items


def _cluster(prediction: Prediction) -> int:
    """A number for the source of a row, the same in every split and run: its medium, or itself where it has none."""
    name = source_media(prediction.media_path) or f"\0{prediction.id}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")


def _iso(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="seconds")
