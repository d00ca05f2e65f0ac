"""The analysis of one run, alone or against a second one."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import lime.tuner
from lime.analysis.study import figures as draw
from lime.analysis.study import findings as find
from lime.analysis.study.collecting import Collected, Wanted, collect
from lime.analysis.study.opening import Choice, Opened, SavedRun, check_same_backbone, load_run, saved_run
from lime.analysis.study.record import rows_read, write_record
from lime.experiments.figures.style import save
from lime.jobs.setup import media_errors_as_input_errors, prepare_process

log = logging.getLogger(__name__)

MAPS = 6


@dataclass(frozen=True)
class Study:
    """What to look at.

    Attributes:
        choice: the rows.
        window: tokens of a window of the probes by position.
        threads: CPU threads; torch's own number when absent.
    """

    choice: Choice
    window: int = 3
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.window < 2:
            raise ValueError(f"window: expected at least 2 tokens, got {self.window}")


def study_run(folder: Path, against: Path | None, out: Path, study: Study) -> list[Path]:
    """Analyse a run, and write record and figures into ``out``.

    Args:
        folder: the run's folder, or its adapter's.
        against: a second run on the same backbone to compare with; modulators are fitted to it where it is a MoE-LoRA.

    Returns:
        What was written.

    Raises:
        ValueError, OSError: a run without an adapter, without experts, or on another backbone; missing data.
    """
    run = saved_run(folder)
    other = None if against is None else saved_run(against)
    if other is not None:
        check_same_backbone(run, other)
    with media_errors_as_input_errors():
        prepare_process(0, study.threads)
        opened = load_run(run, study.choice)
        if not lime.tuner.has_routing(opened.model):
            raise ValueError(
                f"{run.name}: its adapter (method {run.method}) has no experts, so there is no routing to analyse; "
                "give a run with experts first, and this one with --against"
            )
        return _Analysis(opened, other, out, study).written()


class _Analysis:
    def __init__(self, opened: Opened, other: SavedRun | None, out: Path, study: Study):
        self.table = opened.data.dataset.table
        self.opened, self.other, self.out, self.study = opened, other, out, study
        wanted = Wanted(states=other is not None, maps=MAPS, window=study.window)
        self.read = collect(opened.model, opened.data.collator, opened.rows, wanted, opened.run.name)
        self.rows = find.labelled(self.read.rows, self.table)
        self.findings: dict[str, Any] = {
            "title": opened.run.name,
            "run": opened.run.described,
            "against": None if other is None else other.described,
            "rows": rows_read(self.rows.labels["task"], len(self.read.rows), study.choice.rows, self.table),
            "data": opened.data.dataset.fingerprint,
        }
        self.figures: dict[str, Figure] = {}

    def written(self) -> list[Path]:
        read, rows, findings = self.read, self.rows, self.findings
        findings["routing"] = find.routing_findings(read, rows)
        self.figures["routing"] = draw.routing_figure(findings["routing"])
        self.figures["tasks"] = draw.tasks_figure(findings["routing"], self.table)
        findings["information"] = find.information_findings(read, rows)
        self.figures["information"] = draw.information_figure(findings["information"])
        findings["maps"], points = find.maps_findings(read)
        if points:
            experts = max(routed.probability_RE.shape[1] for routed in read.routing.values())
            self.figures["maps"] = draw.maps_figure(findings["maps"], points, read.clouds, experts)
        findings["windows"] = find.windows_findings(read, rows, self.study.window)
        if findings["windows"] is not None:
            self.figures["windows"] = draw.windows_figure(findings["windows"])
        if self.other is not None:
            self._against(self.other)
        elif read.moments:
            self._fit(self.opened, read.moments)
        paths = [path for name, figure in self.figures.items() for path in save(figure, self.out, name)]
        return write_record(self.out, findings, list(self.figures), self.table) + paths

    def _against(self, other: SavedRun) -> None:
        data, states = self.opened.data, Wanted(states=True)
        frozen = collect(self.opened.model, data.collator, self.read.rows, states, "frozen backbone", frozen=True)
        second = load_run(other, self.study.choice)
        theirs = collect(second.model, data.collator, self.read.rows, states, other.name)
        self.findings["cka"] = find.cka_findings(self.read, theirs, frozen, self.rows)
        names = (self.opened.run.method, other.method)
        names = names if len(set(names)) == 2 else (self.opened.run.name, other.name)
        self.figures["cka"] = draw.cka_figure(self.findings["cka"], *names)
        if theirs.moments:
            self._fit(second, theirs.moments)
        else:
            log.info("%s is no MoE-LoRA: no modulators are fitted to it", other.name)

    def _fit(self, opened: Opened, moments: dict[str, np.ndarray]) -> None:
        rank = int(opened.run.config["peft"]["r"])
        self.findings["approximation"] = find.approximation_findings(opened.model, moments, rank)
        self.figures["approximation"] = draw.approximation_figure(self.findings["approximation"])


def routing_alone(run: SavedRun, study: Study) -> tuple[Opened, Collected]:
    """The routing of a run on the chosen rows, and nothing else."""
    opened = load_run(run, study.choice)
    return opened, collect(opened.model, opened.data.collator, opened.rows, Wanted(), run.name)
