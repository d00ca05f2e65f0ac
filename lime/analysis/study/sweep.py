"""Task information against the number of experts, over the runs of a sweep (the paper's first theorem: more experts
never lose any)."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import lime.tuner
from lime.analysis.information import Routing, information
from lime.analysis.study.collecting import Collected
from lime.analysis.study.figures import experts_figure
from lime.analysis.study.findings import (
    Labelled,
    in_shares,
    information_findings,
    labelled,
    routings,
    task_from_profile,
)
from lime.analysis.study.opening import SavedRun, saved_run
from lime.analysis.study.record import rows_read, write_record
from lime.analysis.study.run import Study, routing_alone
from lime.evaluation.intervals import difference, mean_sample, share
from lime.experiments.collection import Point, Run, read_sweep, shown
from lime.experiments.figures.style import save
from lime.jobs.setup import media_errors_as_input_errors, prepare_process

log = logging.getLogger(__name__)

AXIS = "lime.num_experts"
Findings = dict[str, Any]


def is_sweep(folder: Path) -> bool:
    """Whether a folder holds runs and is none."""
    holds_runs = any(True for _ in folder.glob("*/record.json"))
    return (folder / "sweep.json").is_file() or (holds_runs and not (folder / "record.json").is_file())


def study_sweep(folder: Path, out: Path, study: Study) -> list[Path]:
    """Analyse the finished runs of a sweep over the number of experts, and write record and figure into ``out``.

    Raises:
        ValueError, OSError: a sweep over something else, without a finished run that has an adapter, or of several
            backbones or data sets; missing data.
    """
    sweep = read_sweep(folder)
    if AXIS not in sweep.axes:
        raise ValueError(f"{folder}: expected a sweep over {AXIS}, this one is over {', '.join(sweep.axes) or 'seeds'}")
    notes = [*sweep.notes, *(f"Not finished: {p.label} ({p.unfinished})." for p in sweep.points if p.unfinished)]
    with media_errors_as_input_errors():
        prepare_process(0, study.threads)
        runs = [
            (point, run, saved_run(adapter))
            for point in sweep.points
            for run in point.runs
            if run.status == "finished" and (adapter := _adapter(run)) is not None
        ]
        if not runs:
            raise ValueError(f"{folder}: no finished run with an adapter to analyse")
        if len({saved.backbone["fingerprint"] for _, _, saved in runs}) > 1:
            raise ValueError(f"{folder}: its runs adapted several backbones; information compares on one")
        rows, measured = _measured(runs, study)
    points = _points([point for point in sweep.points if any(point is p for p, _ in measured)], measured, rows)
    findings: Findings = {
        "title": f"the sweep {sweep.name}",
        "rows": rows_read(rows.labels["task"], len(rows.clusters), study.choice.rows, sweep.table),
        "sweep": {"points": points, "notes": notes},
    }
    paths = save(experts_figure(findings["sweep"]), out, "experts")
    return write_record(out, findings, ["experts"], sweep.table) + paths


def _adapter(run: Run) -> Path | None:
    """The adapter of a run, or of the one whose record it repeats."""
    repeated = None if run.record is None or run.record.reused_from is None else Path(run.record.reused_from)
    beside = run.folder.resolve().parent.parent.glob(f"*/{run.folder.name}")
    for folder in (run.folder, *([] if repeated is None else [repeated, *beside])):
        if (folder / "adapter" / "adapter_config.json").is_file():
            return folder
    log.warning("%s: finished, but its adapter is gone; left out", run.folder.name)
    return None


def _measured(
    runs: Sequence[tuple[Point, Run, SavedRun]], study: Study
) -> tuple[Labelled, list[tuple[Point, Findings]]]:
    """What each run's routing tells of the task; all of them on the same rows."""
    first: list[str] | None = None
    measured: list[tuple[Point, Findings]] = []
    for point, run, saved in runs:
        opened, read = routing_alone(saved, study)
        ids = [row.id for row in read.rows]
        if first is not None and first != ids:
            raise ValueError(
                f"{run.folder.name}: its data holds other test rows than the first run's; compare on the same"
            )
        if not lime.tuner.has_routing(opened.model):
            raise ValueError(f"{run.folder.name}: its adapter (method {saved.method}) has no experts")
        first, rows = ids, labelled(read.rows, opened.data.dataset.table)
        measured.append((point, {"run": saved.name, "seed": run.seed, **_of_run(read, rows)}))
        log.info("%s, seed %s: information %.4f nats", point.label, run.seed, measured[-1][1]["information"]["value"])
    return rows, measured


def _of_run(read: Collected, rows: Labelled) -> Findings:
    measured, probed = information_findings(read, rows), task_from_profile(read, rows)
    return {
        "information": measured["mean"]["task"],
        "task_from_profile": measured["task_from_profile"],
        "correct": None if probed is None else probed.correct,
        "routings": routings(read, 1 / len(read.routing)),
    }


def _points(order: Sequence[Point], measured: Sequence[tuple[Point, Findings]], rows: Labelled) -> list[Findings]:
    """Means over the seeds of each point, and the difference to the next smaller number of experts on the same rows."""
    points: list[Findings] = []
    before: dict[str, tuple[list[Routing], np.ndarray | None]] = {}
    for point in sorted(order, key=lambda one: int(one.settings[AXIS])):
        runs = [one for of, one in measured if of is point]
        others = {key: value for key, value in point.settings.items() if key != AXIS}
        series = ", ".join(f"{key.rpartition('.')[2]}={shown(value)}" for key, value in others.items())
        routed = [_weighted(routing, 1 / len(runs)) for one in runs for routing in one["routings"]]
        here: Findings = {
            "series": series,
            "num_experts": int(point.settings[AXIS]),
            "information": _estimated(routed, rows) | {"bound": runs[0]["information"]["bound"]},
            "step": None,
            "task_from_profile": None,
            "profile_step": None,
        }
        correct_R = None
        if runs[0]["correct"] is not None:
            correct_R = np.mean([one["correct"] for one in runs], axis=0)
            read = in_shares(share([mean_sample(correct_R, rows.clusters)]))
            here["task_from_profile"] = read | {"chance": runs[0]["task_from_profile"]["chance"]}
        if series in before:
            fewer, fewer_R = before[series]
            here["step"] = _estimated([*routed, *(_weighted(one, -1.0) for one in fewer)], rows)
            if correct_R is not None and fewer_R is not None:
                here["profile_step"] = in_shares(difference([mean_sample(correct_R - fewer_R, rows.clusters)]))
        here["runs"] = [{key: one[key] for key in one if key not in ("correct", "routings")} for one in runs]
        before[series] = routed, correct_R
        points.append(here)
    return points


def _weighted(routing: Routing, factor: float) -> Routing:
    return dataclasses.replace(routing, weight=factor * routing.weight)


def _estimated(routed: Sequence[Routing], rows: Labelled) -> Findings:
    estimate = information(routed, rows.labels["task"], rows.clusters)
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}
