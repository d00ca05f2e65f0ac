"""The runs below a folder: method, backbone, seed, score and state of each, for `lime runs`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from lime.config.sweeps import read_plan
from lime.evaluation.aggregation import MACRO
from lime.runs.lock import is_locked
from lime.runs.record import RECORD_FILE, Record, RecordError, read_record
from lime.system.printing import plain

WAITING = "not begun"
DEPTH = 4  # folders between the one that is given and a run: outputs/NAME/DATE/TIME


@dataclass(frozen=True)
class Run:
    """A run as the table shows it. ``state``: that of its record; ``stopped`` where it says running and nobody runs."""

    folder: Path
    state: str
    record: Record | None = None
    error: str = ""


def runs_below(root: Path) -> list[Run]:
    """The runs in ``root`` and up to four folders below it, by the time they started.

    Raises:
        ValueError: no such folder, or no run in it.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; expected that of a sweep, or one with runs below it")
    found = [_run(folder) for folder in _folders(root, DEPTH)] + _waiting(root)
    if not found:
        raise ValueError(f"{root}: no run in it; expected folders with a {RECORD_FILE}")
    return sorted(found, key=lambda run: (run.state == WAITING, run.record.started if run.record else ""))


def runs_table(runs: list[Run], root: Path) -> Table:
    """One row a run. Method, model and seed stand in the title where all runs have the same."""
    rows = [_described(run) for run in runs]
    known = [row for row, run in zip(rows, runs, strict=True) if run.record is not None]
    same = {
        column for column in ("method", "model", "seed") if len(runs) > 1 and len({row[column] for row in known}) == 1
    }
    title = [f"{len(runs)} run{'s' if len(runs) > 1 else ''} in {root}"]
    title += [known[0][column] if column != "seed" else f"seed {known[0][column]}" for column in sorted(same)]
    table = Table(title=plain(", ".join(text for text in title if text)))
    shown = ["run", *(column for column in ("method", "model", "seed") if column not in same), "state"]
    for column in shown:
        table.add_column(column, overflow="fold")
    table.add_column("score (95%)", justify="right", overflow="fold")
    for run, row in zip(runs, rows, strict=True):
        row["run"] = run.folder.relative_to(root).as_posix() if run.folder != root else run.folder.name
        table.add_row(*(plain(row[column]) for column in (*shown, "score")))
    return table


def _described(run: Run) -> dict[str, str]:
    if run.record is None:
        return {"method": "", "model": "", "seed": "", "state": run.state, "score": run.error}
    config, score = run.record.config, run.record.score("macro", MACRO)
    between = "" if score is None or score.low is None else f" ({score.low:.1f}–{score.high:.1f})"
    return {
        "method": str(config.get("method", "")),
        "model": str(config.get("model", {}).get("name", "")),
        "seed": str(run.record.seed),
        "state": run.state,
        "score": "" if score is None else f"{score.score:.1f}{between}",
    }


def _folders(root: Path, depth: int) -> Iterator[Path]:
    if (root / RECORD_FILE).is_file():
        yield root
        return
    if depth:
        for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.is_symlink()):
            if not folder.name.startswith("."):
                yield from _folders(folder, depth - 1)


def _waiting(root: Path) -> list[Run]:
    """The runs of a sweep's plan that have not begun."""
    plan = read_plan(root)
    planned = [root / run.run for run in plan.runs] if plan is not None else []
    return [Run(folder, WAITING) for folder in planned if not (folder / RECORD_FILE).is_file()]


def _run(folder: Path) -> Run:
    try:
        record = read_record(folder)
    except RecordError as error:
        return Run(folder, "unreadable", error=str(error))
    state = str(record.status)
    if state == "running":
        state = _progress(folder) if is_locked(folder) else "stopped"
    elif record.reused_from:
        state = f"{state} (as {Path(record.reused_from).name})"
    return Run(folder, state, record)


def _progress(folder: Path) -> str:
    """How far a live run is, by its last logged step."""
    try:
        steps = [line.partition(",")[0] for line in (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return "running"
    last = steps[-1] if len(steps) > 1 else ""
    return f"running, step {int(last)}" if last.isdecimal() else "running"
