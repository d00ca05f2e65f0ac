"""Made-up sweeps: whole records with the scores that a test wants."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lime.config.sweeps import Plan, PlannedRun
from lime.data.tasks import TASKS
from lime.runs.record import (
    Identity,
    Items,
    LayerRouting,
    Parameters,
    Record,
    RunError,
    Training,
    write_record,
)

SST2, CHARTQA, STSB = "glue_test_sst2", "image_test_chartqa", "glue_test_stsb"


def record(seed: int = 42, correct: Mapping[str, str] | None = None, **changes: Any) -> Record:
    """A finished run; ``correct`` gives each split's marks, one character a row."""
    correct = {SST2: "1100", CHARTQA: "1110"} if correct is None else correct
    items = {split: dataclasses.asdict(Items(list(range(len(c))), c)) for split, c in correct.items()}
    categories = dict.fromkeys(TASKS[split].category for split in correct)
    scores = [{"level": "category", "name": name} for name in categories]
    values: dict[str, Any] = {
        "status": "finished",
        "name": "made",
        "seed": seed,
        "identity": Identity(config=f"run{seed}", code="code", data="data"),
        "config": {"seed": seed, "model": {"name": "tiny"}},
        "started": "2026-01-01T00:00:00+00:00",
        "ended": "2026-01-01T00:01:00+00:00",
        "seconds": 60.0,
        "environment": {"python": "3.11"},
        "parameters": Parameters(1000, 100_000, 4),
        "training": Training(
            30.0, steps=5, rows=40, tokens=400, samples_per_second=1.5, peak_memory_mb=512.0, loss=1.0
        ),
        "routing": {"layer": dataclasses.asdict(LayerRouting([0.5, 0.5], 0.69, 1.5))},
        "scores": scores,
        "items": items,
    }
    return Record(**(values | changes))


def failed(seed: int) -> Record:
    return record(seed, {}, status="failed", error=RunError("RuntimeError", "no memory"), training=None)


def sweep(folder: Path, points: Sequence[tuple[dict[str, Any], Mapping[int, Record | None]]]) -> Path:
    """A sweep's folder: for each point its records by seed, None for a run that is missing."""
    runs = []
    for settings, by_seed in points:
        for seed, made in by_seed.items():
            point = {**settings, "seed": seed}
            name = "-".join(str(value) for value in point.values())
            runs.append(PlannedRun(name, point))
            if made is not None:
                write_record(folder / name, made)
    Plan(folder, ("+experiment=made",), tuple(runs)).write()
    assert json.loads((folder / "sweep.json").read_text())["schema"] == "lime-sweep/1"
    return folder
