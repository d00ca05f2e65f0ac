"""Sweeps that resume: a finished run is not repeated, a failed or interrupted one runs again.

A run is finished if its record says so for the same configuration, data and code (see ``reuse``). The record may lie in
the run's own folder or, since grids share points, in that of another sweep beside it; it is then copied. A lock, which
the system releases however a process ends, tells a run that is under way from one that was killed.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lime.atomic import remove
from lime.config.schema import TrainConfig
from lime.config.sweeps import Plan
from lime.experiments.code import code_version
from lime.experiments.folders import claim_run_folder
from lime.experiments.records import RECORD_FILE, Record, RecordError, RunError, read_record, write_record

log = logging.getLogger(__name__)

LOCK_FILE = ".lock"
LEFTOVERS = (
    "adapter", "checkpoints", "wandb", "routing.jsonl", "metrics.csv", "predictions.jsonl", "results.json",
    "results.csv", "results.md", "environment.json",
)  # fmt: skip


def state(folder: Path) -> tuple[str, Record | None]:
    """How the run in ``folder`` stands: ``missing``, or its record's status; a dead ``running`` one is ``interrupted``.

    Raises:
        RecordError: a damaged record.
    """
    if not (folder / RECORD_FILE).is_file():
        return "missing", None
    record = read_record(folder)
    if record.status == "running" and not _is_locked(folder):
        record.status = "interrupted"
        record.error = RunError("Killed", "the process ended without a word (killed, out of memory, or power lost)")
    return record.status, record


class ResumingSweep:
    """What train.py does in a sweep beside training (see :class:`lime.config.cli.Sweep`)."""

    def run(self, task: Callable[[], None], config: TrainConfig, folder: Path, overrides: list[str]) -> None:
        """Call ``task`` unless the result is there already or another process is at it."""
        with _claimed(folder, patience=2.0) as mine:  # longer than a reader looks whether somebody is at it
            if not mine:
                log.info("skipped: another process is running it in %s", folder)
                return
            claim_run_folder(folder, "run")
            found = finished(config, folder)
            if found is None:
                if not _resumable(folder):
                    _clear(folder)
                task()
            elif found == folder:
                log.info("skipped: finished before, %s", folder / RECORD_FILE)
            else:
                record = read_record(found)
                record.name, record.overrides = config.name, overrides
                record.reused_from = str(found)
                write_record(folder, record)
                log.info("skipped: finished before in %s; its record is copied", found)

    def summary(self, plan: Plan) -> int:
        """Say in the log how the runs of the plan stand; the number that failed."""
        counts = Counter(state(plan.folder / planned.run)[0] for planned in plan.runs)
        said = ", ".join(f"{count} {status}" for status, count in counts.most_common())
        log.info("sweep of %d runs in %s: %s", len(plan.runs), plan.folder, said)
        if counts["finished"]:
            log.info("table: python scripts/collect.py %s", plan.folder)
        return counts["failed"]


def finished(config: TrainConfig, folder: Path) -> Path | None:
    """The folder of a finished run like this one: its own, or the same point of another sweep; None where none is."""
    if config.reuse == "never":
        return None
    others = sorted(path.parent for path in folder.parent.parent.glob(f"*/{folder.name}/{RECORD_FILE}"))
    for candidate in [folder, *(other for other in others if other != folder)]:
        try:
            status, record = state(candidate)
        except RecordError as error:
            log.warning("%s", error)
            continue
        if status != "finished" or record is None:
            continue
        if config.reuse == "exact" and record.identity.code != code_version():
            continue
        if record.identity.data == data_fingerprint(config):
            return candidate
    return None


def data_fingerprint(config: TrainConfig) -> str:
    """Fingerprint of the rows of the run's data, read once per process. The embedded benchmark is generated first."""
    mini = config.data.mini
    key = (mini.seed, mini.train_per_task, mini.test_per_task) if config.data.name == "mmt47_mini" else None
    return _fingerprint(str(config.data.root), key, mini.workers)


@functools.cache
def _fingerprint(root: str, mini: tuple[int, int, int] | None, workers: int) -> str:
    from lime.data.rows import MMTDataset

    if mini is not None:
        from lime.data.mini import ensure

        ensure(Path(root), seed=mini[0], train_per_task=mini[1], test_per_task=mini[2], workers=workers)
    return MMTDataset(root).fingerprint


def _resumable(folder: Path) -> bool:
    """Whether an interrupted attempt left a checkpoint that this code wrote, to go on from (``ckpt_path=auto``)."""
    from lime.training.checkpoints import newest_checkpoint  # imports the model libraries, as the run will anyway

    if newest_checkpoint(folder) is None:
        return False
    if not (folder / RECORD_FILE).is_file():
        return False
    record = read_record(folder)  # "running": this process holds the lock, so whoever wrote that is dead
    return record.status in ("running", "interrupted") and record.identity.code == code_version()


def _clear(folder: Path) -> None:
    """Remove what an earlier attempt left, so that nothing of it is taken for a part of this one. The log stays."""
    for name in (RECORD_FILE, "status.json", *LEFTOVERS):
        remove(folder / name)


@contextmanager
def _claimed(folder: Path, patience: float) -> Iterator[bool]:
    """Whether this process may run in ``folder``: one at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _is_locked(folder: Path) -> bool:
    with _claimed(folder, patience=0.0) as free:
        return not free
