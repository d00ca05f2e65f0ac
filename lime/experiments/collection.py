"""The runs of a sweep, gathered from their records: planned ones that are missing included."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lime.config.identity import WITHOUT_EFFECT
from lime.config.sweeps import read_plan
from lime.data.tasks import TaskTable, mmt47
from lime.experiments.resume import state
from lime.method.deltas.table import METHODS
from lime.runs.record import RECORD_FILE, Record
from lime.system.nested import differing, flattened

SEED = "seed"


@dataclass(frozen=True)
class Run:
    """One run of a sweep: its place in the grid, its status (``missing`` too) and its record, where there is one."""

    folder: Path
    point: dict[str, Any]
    seed: int | None
    status: str
    record: Record | None


@dataclass(frozen=True)
class Point:
    """The runs of one point of the grid, one per seed."""

    settings: dict[str, Any]
    runs: tuple[Run, ...]

    @property
    def records(self) -> list[Record]:
        """Records of the finished runs, by seed."""
        finished = [run.record for run in self.runs if run.status == "finished" and run.record is not None]
        return sorted(finished, key=lambda record: record.seed)

    @property
    def label(self) -> str:
        """The point in words: ``num_experts=4``, or the method's name alone."""
        if set(self.settings) == {"method"}:
            return str(self.settings["method"])
        return ", ".join(f"{name.rpartition('.')[2]}={shown(value)}" for name, value in self.settings.items()) or "all"

    @property
    def unfinished(self) -> str:
        """Runs without a result, in words: ``1 failed, 2 missing``."""
        counts: dict[str, int] = {}
        for run in self.runs:
            if run.status != "finished":
                counts[run.status] = counts.get(run.status, 0) + 1
        return ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))


@dataclass(frozen=True)
class Sweep:
    """A sweep's points, in the order of its plan, and what a reader must know about them."""

    name: str
    folder: Path
    points: tuple[Point, ...]
    notes: tuple[str, ...] = ()

    @property
    def table(self) -> TaskTable:
        """The tasks of its runs, which are the same in all."""
        return next((table for _, table in _tables(run for point in self.points for run in point.runs)), mmt47())

    @property
    def axes(self) -> list[str]:
        """Swept keys without the seed, in order."""
        return list(dict.fromkeys(key for point in self.points for key in point.settings))


def read_sweep(folder: str | Path, everything: bool = False) -> Sweep:
    """The runs in a sweep's folder.

    Args:
        everything: take every record in the folder, also of other commands than the last one. Their points are then
            told by all keys in which they differ, each method's by those in which its own runs differ.

    Raises:
        ValueError: no such folder, no run in it, a damaged record, or runs of different tasks; names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected that of a sweep, multirun/NAME")
    plan = read_plan(folder)
    present = sorted(path.parent for path in folder.glob(f"*/{RECORD_FILE}"))
    if plan is not None and not everything:
        runs = [_run(folder / planned.run, planned.point) for planned in plan.runs]
        others = len([path for path in present if path.name not in {planned.run for planned in plan.runs}])
        notes = [f"{others} runs of other commands in {folder} are left out (--all takes them)"] if others else []
    else:
        if not present:
            raise ValueError(f"{folder}: holds no {RECORD_FILE}; expected the folder of a sweep, multirun/NAME")
        runs, notes = _by_differences([_run(path, {}) for path in present]), []
    _check_tables(folder, runs)
    return Sweep(folder.resolve().name, folder, tuple(_points(runs)), tuple(notes + _versions(runs)))


def shown(value: Any) -> str:
    """A setting's value as it is written on the command line."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _run(folder: Path, point: Mapping[str, Any]) -> Run:
    status, record = state(folder)
    seed = point.get(SEED, record.seed if record is not None else None)
    return Run(folder, {key: value for key, value in point.items() if key != SEED}, seed, status, record)


def _tables(runs: Iterable[Run]) -> Iterator[tuple[str, TaskTable]]:
    """Name and tasks of the runs that came as far as their data."""
    for run in runs:
        if run.record is not None and run.record.identity.data is not None:
            yield run.folder.name, run.record.table


def _check_tables(folder: Path, runs: Sequence[Run]) -> None:
    """Raise ValueError where a mean over all tasks would mean another thing in one run than in the next."""
    known = list(_tables(runs))
    other = next((name for name, table in known if table != known[0][1]), None)
    if other is not None:
        raise ValueError(
            f"{folder}: its runs {known[0][0]} and {other} have different tables of tasks, whose means do not compare; "
            "move the runs of each table into a folder of their own (two runs compare on the tasks that they share: "
            "python scripts/compare.py RUN_A RUN_B)"
        )


def _points(runs: Sequence[Run]) -> Iterator[Point]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(run.point, sort_keys=True, default=str), []).append(run)
    for members in groups.values():
        yield Point(members[0].point, tuple(members))


def _by_differences(runs: Sequence[Run]) -> list[Run]:
    configs = [run.record.config if run.record is not None else {} for run in runs]
    keys = [key for key in differing(configs) if key != SEED and not _without_effect(key)]
    flat = [flattened(config) for config in configs]
    own = {config.get("method"): [one for one in flat if one.get("method") == config.get("method")] for config in flat}
    points = [
        {key: config.get(key) for key in keys if key == "method" or _varies(key, own[config.get("method")])}
        for config in flat
    ]
    return sorted((replace(run, point=point) for run, point in zip(runs, points, strict=True)), key=_place)


def _place(run: Run) -> list[tuple[bool, float, str]]:
    """Where a run stands among others: by method in the order of their table, then by its other settings."""
    place = []
    for key, value in run.point.items():
        if key == "method" and value in METHODS:
            value = list(METHODS).index(value)
        number = isinstance(value, int | float)
        place.append((not number, float(value) if number else 0.0, str(value)))
    return place


def _varies(key: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    return any(one.get(key) != settings[0].get(key) for one in settings)


def _without_effect(key: str) -> bool:
    return any(key == dropped or key.startswith(f"{dropped}.") for dropped in WITHOUT_EFFECT)


def _versions(runs: Sequence[Run]) -> list[str]:
    """Notes where the runs do not share code or data."""
    records = [run.record for run in runs if run.record is not None]
    parts: list[tuple[str, Callable[[Record], str | None]]] = [
        ("versions of the code", lambda record: record.identity.code),
        ("data sets", lambda record: record.identity.data),
        ("numbers of threads", lambda record: str(record.identity.threads) if record.identity.threads else None),
    ]
    notes = []
    for title, of in parts:
        versions = sorted({value for record in records if (value := of(record)) is not None})
        if len(versions) > 1:
            notes.append(f"the runs come from {len(versions)} {title}: {', '.join(value[:12] for value in versions)}")
    return notes
