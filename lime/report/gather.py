"""What a report shows of a run: read from the files in its folder, whatever of them is there."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from lime.data.files import BOUNDS, Bounds
from lime.data.tasks import TaskTable, table_of
from lime.evaluation.aggregation import Evaluation
from lime.evaluation.authors import AuthorsScores
from lime.evaluation.authors_report import read_authors_scores
from lime.evaluation.predictions import Prediction, read_predictions
from lime.evaluation.report import read_results
from lime.report.charts import Line
from lime.report.media import pictures
from lime.runs.folders import is_own_run_folder

CURVES = {
    "Task loss per answer token (nats)": ("loss/task", "val/loss"),
    "Balance losses": ("loss/importance", "loss/kl"),
    "Routing entropy (nats)": ("routing/entropy",),
    "Experts that carry weight, per token": ("routing/experts_active",),
    "Learning rate": ("lr/*",),
    "Gradient norm": ("grad_norm",),
    "Samples per second": ("samples_per_second",),
}

NOT_OWN = (
    "not shown: the configuration is not one that a run of yours wrote; name the folder of the data with --data-root"
)


@dataclass(frozen=True)
class Sample:
    """One test row as shown: the prediction, its pictures as data URIs, and a note where they could not be read."""

    prediction: Prediction
    pictures: list[str]
    note: str


@dataclass(frozen=True)
class RunData:
    """A run's folder as far as it goes; evaluation and the rest are None or empty where their files are missing."""

    folder: Path
    status: dict[str, Any]
    config: dict[str, Any]
    environment: dict[str, Any]
    evaluation: Evaluation | None
    info: dict[str, Any]
    authors: AuthorsScores | None
    curves: dict[str, list[Line]]
    usage: dict[str, dict[str, list[float]]]
    samples: dict[str, list[Sample]]
    table: TaskTable

    @property
    def title(self) -> str:
        return str(self.config.get("name", self.folder.name))


def is_run(folder: Path) -> bool:
    """Whether this is the folder of a run (of train.py or eval.py)."""
    return (folder / "config.yaml").is_file() or (folder / "results.json").is_file()


def runs_of(folder: Path) -> list[Path]:
    """The runs of a sweep: folders below `folder`, at most three deep, in natural order of their names."""
    folders = {path.parent for depth in range(1, 4) for path in folder.glob("/".join(["*"] * depth) + "/config.yaml")}
    folders = {path for path in folders if not path.name.startswith(".")}  # .hydra
    return sorted(folders, key=lambda path: [(len(p), p) if p.isdigit() else (0, p) for p in path.parts])


def read_run_folder(folder: Path, samples_per_task: int = 2, data_root: Path | None = None) -> RunData:
    """Read a run for its report.

    Args:
        folder: the run's folder.
        samples_per_task: predictions shown of each task, wrong and right ones in turn; 0 shows none.
        data_root: where the media lie, in place of the run's `data.root`, which is read for runs of one's own alone.

    Raises:
        ValueError: the folder is not a run's, or one of its files cannot be read.
    """
    if not is_run(folder):
        raise ValueError(f"{folder}: not the folder of a run: it has neither config.yaml nor results.json")
    evaluation, info = None, {}
    if (folder / "results.json").is_file():
        evaluation, record = read_results(folder)
        info = record.get("info", {})
    config = _yaml(folder / "config.yaml") or info.get("config", {})
    samples: dict[str, list[Sample]] = {}
    table = table_of(folder)
    if samples_per_task and (folder / "predictions.jsonl").is_file():
        data = config.get("data") or info.get("config", {}).get("data") or {}
        root = data_root or (Path(data["root"]) if data.get("root") and is_own_run_folder(folder) else None)
        bounds = Bounds(data.get("max_pixels", BOUNDS.pixels), data.get("max_seconds", BOUNDS.seconds))
        reading = (data.get("video_backend", "pyav"), bounds)
        samples = _samples(read_predictions(folder), table, samples_per_task, root, reading)
    return RunData(
        folder=folder,
        status=_json(folder / "status.json"),
        config=config,
        environment=_json(folder / "environment.json") or info.get("environment", {}),
        evaluation=evaluation,
        info=info,
        authors=read_authors_scores(folder),
        curves=_curves(folder / "metrics.csv"),
        usage=_usage(folder / "routing.jsonl"),
        samples=samples,
        table=table,
    )


def _samples(
    predictions: Sequence[Prediction],
    table: TaskTable,
    per_task: int,
    root: Path | None,
    reading: tuple[str, Bounds],
) -> dict[str, list[Sample]]:
    by_split: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        by_split.setdefault(prediction.split, []).append(prediction)
    shown: dict[str, list[Sample]] = {}
    for split, task in table.tasks.items():
        records = by_split.get(split, [])
        sides = [[r for r in records if r.correct], [r for r in records if not r.correct]]
        turns = [side[i] for i in range(per_task) for side in sides if i < len(side)][:per_task]
        for record in turns:
            shown_media: tuple[list[str], str] = ([], "")
            if record.media_path and task.modality != "text":
                shown_media = pictures(root, record.media_path, task.modality, *reading) if root else ([], NOT_OWN)
            shown.setdefault(split, []).append(Sample(record, *shown_media))
    return shown


def _curves(path: Path) -> dict[str, list[Line]]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    curves = {}
    for title, columns in CURVES.items():
        lines = []
        for column in [name for name in (rows[0] if rows else ()) if any(fnmatch(name, one) for one in columns)]:
            points = tuple((float(row["step"]), float(row[column])) for row in rows if row.get(column))
            if points:
                lines.append(Line(column, points))
        if lines:
            curves[title] = lines
    return curves


def _usage(path: Path) -> dict[str, dict[str, list[float]]]:
    """Expert usage by layer at the first and the last logged step, by title."""
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    chosen = {f"step {line['step']}": line["usage"] for line in ([lines[-1], lines[0]] if len(lines) > 1 else lines)}
    return {title: {name.removesuffix(":default"): shares for name, shares in u.items()} for title, u in chosen.items()}


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _yaml(path: Path) -> dict[str, Any]:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}
