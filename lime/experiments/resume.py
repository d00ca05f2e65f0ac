"""Sweeps that resume: a finished run is not repeated, a failed or interrupted one runs again.

A run is finished if its record says so for the same configuration, data (media included), backbone and code (see
``reuse``). The record may lie in the run's own folder or, since grids share points, in that of another sweep beside it;
it is then copied. A lock, which the system releases however a process ends, tells a run that is under way from one that
was killed.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from lime.config.schema import TrainConfig
from lime.config.sweeps import Plan, read_plan
from lime.experiments.inputs import same_inputs
from lime.runs.code import code_version
from lime.runs.folders import claim_run_folder
from lime.runs.lock import BusyError, is_locked, run_lock
from lime.runs.quiet import warnings_alone
from lime.runs.record import RECORD_FILE, Record, RecordError, RunError, read_record, write_record
from lime.system import interrupts
from lime.system.atomic import move, remove

log = logging.getLogger(__name__)

LEFTOVERS = (
    "adapter", "checkpoints", "wandb", "tensorboard", "routing.jsonl", "metrics.csv", "predictions.jsonl",
    "results.json", "results.csv", "results.md", "tasks.yaml", "environment.json",
)  # fmt: skip


def state(folder: Path) -> tuple[str, Record | None]:
    """How the run in ``folder`` stands: ``missing``, or its record's status; a dead ``running`` one is ``interrupted``.

    Raises:
        RecordError: a damaged record.
    """
    if not (folder / RECORD_FILE).is_file():
        return "missing", None
    record = read_record(folder)
    if record.status == "running" and not is_locked(folder):
        record.status = "interrupted"
        record.error = RunError("Killed", "the process ended without a word (killed, out of memory, or power lost)")
    return record.status, record


class ResumingSweep:
    """What train.py does in a sweep beside training (see :class:`lime.jobs.command_line.Sweep`)."""

    def __init__(self, report: Callable[[Path], Path] | None = None) -> None:
        """``report`` writes a page about a sweep's folder, at its end."""
        self._report = report
        self._seconds: list[float] = []  # of the runs that this process made

    def run(self, task: Callable[[], None], config: TrainConfig, folder: Path, overrides: list[str]) -> None:
        """Call ``task`` unless the result is there already or another process is at it."""
        where = self._place(folder)
        try:
            with run_lock(folder):
                self._run(task, config, folder, overrides, where)
        except BusyError as error:
            log.info("%sskipped: another process is running it: %s", where, error)

    def _run(
        self, task: Callable[[], None], config: TrainConfig, folder: Path, overrides: list[str], where: str
    ) -> None:
        claim_run_folder(folder, "run")
        done_in = finished(config, folder)
        if done_in is None:
            if not _resumable(folder, config):
                _clear(folder)
            started = time.monotonic()
            log.info("%s%s", where, folder.name)
            with warnings_alone():
                task()
            self._seconds.append(time.monotonic() - started)
            log.info("%s", _outcome(folder))
        elif done_in == folder:
            log.info("%sskipped: finished before%s, %s", where, _threads(read_record(done_in)), folder / RECORD_FILE)
        else:
            record = read_record(done_in)
            record.name, record.overrides = config.name, overrides
            record.reused_from = str(done_in)
            write_record(folder, record)
            log.info("%sskipped: finished before%s in %s; its record is copied", where, _threads(record), done_in)

    def _place(self, folder: Path) -> str:
        """``run 3 of 50 (about 12 min left): seed=1, ``; the time is that of this and the later runs, one by one."""
        plan = read_plan(folder.parent)
        points = {planned.run: planned.point for planned in plan.runs} if plan is not None else {}
        if folder.name not in points:
            return ""
        names = list(points)
        number = names.index(folder.name) + 1
        left = ""
        if self._seconds:
            waiting = sum(not _is_finished(folder.parent / name) for name in names[number - 1 :])
            left = f" (about {_duration(waiting * sum(self._seconds) / len(self._seconds))} left)"
        point = " ".join(f"{key}={value}" for key, value in points[folder.name].items())
        return f"run {number} of {len(names)}{left}: {point}{', ' if point else ''}"

    def summary(self, plan: Plan) -> int:
        """Say in the log how the runs of the plan stand; the number that failed or diverged."""
        counts = Counter(_status(plan.folder / planned.run) for planned in plan.runs)
        counted = ", ".join(f"{count} {status}" for status, count in counts.most_common())
        log.info("sweep of %d runs in %s: %s", len(plan.runs), plan.folder, counted)
        if counts["finished"]:
            log.info("table: python scripts/collect.py %s", plan.folder)
            self._write_report(plan.folder)
        return counts["failed"] + counts["diverged"] + counts["damaged"]

    def _write_report(self, folder: Path) -> None:
        """Whatever goes wrong with it, the runs are there: it is said, and costs the sweep nothing."""
        if self._report is None or interrupts.received() is not None:
            return
        try:
            log.info("report: %s", self._report(folder))
        except Exception as error:  # noqa: BLE001
            log.warning("report: not written (%s: %s)", type(error).__name__, " ".join(str(error).split()))


def _status(folder: Path) -> str:
    try:
        return state(folder)[0]
    except RecordError as error:
        log.warning("%s", error)
        return "damaged"


def _is_finished(folder: Path) -> bool:
    try:
        return read_record(folder).status == "finished"
    except RecordError:
        return False


def _outcome(folder: Path) -> str:
    """How the run ended, in a line."""
    record = read_record(folder)
    macro = record.score("macro", "macro")
    loss = record.training.loss if record.training is not None else None
    parts = [f"{record.status} in {_duration(record.seconds or 0.0)}"]
    parts += [f"loss {loss:.4f}"] if loss is not None else []
    parts += [f"macro {macro.score:.1f}"] if macro is not None else []
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


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
        if same_inputs(config, record):
            return candidate
    return None


def _threads(record: Record) -> str:
    count = record.identity.threads
    return f" (with {count} thread{'s' if count > 1 else ''})" if count else ""


def _resumable(folder: Path, config: TrainConfig) -> bool:
    """Whether an unfinished attempt left a checkpoint that this code wrote, to go on from (``ckpt_path=auto``).

    A failed attempt counts: its disk was full, its machine had no memory left. One that diverged does not.
    """
    from lime.runs.checkpoints import newest_checkpoint  # imports the model libraries, as the run will anyway

    if newest_checkpoint(folder) is None or not (folder / RECORD_FILE).is_file():
        return False
    try:
        record = read_record(folder)  # "running": this process holds the lock, so whoever wrote that is dead
    except RecordError as error:
        log.warning("%s", error)
        return False
    if record.status not in ("running", "interrupted", "failed"):
        return False
    if config.reuse != "any_code" and record.identity.code != code_version():
        return False
    return record.identity.data is None or same_inputs(config, record)


def _clear(folder: Path) -> None:
    """Remove what an earlier attempt left, so that nothing of it is taken for a part of this one. The log stays, and
    checkpoints that this attempt cannot go on from are put aside in ``checkpoints.before``."""
    checkpoints = folder / "checkpoints"
    if checkpoints.is_dir() and any(checkpoints.iterdir()):
        aside = folder / "checkpoints.before"
        remove(aside)
        move(checkpoints, aside)
        log.warning(
            "%s: nothing can go on from its checkpoints (other code, other data, diverged or damaged): put aside in %s",
            folder,
            aside,
        )
    for name in (RECORD_FILE, "status.json", *LEFTOVERS):
        remove(folder / name)
