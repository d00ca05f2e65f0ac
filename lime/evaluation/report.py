"""Files of an evaluation: results.json (everything, versioned), results.csv (one line per split, category and
macro), predictions.jsonl. Each has a reader."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lime.evaluation.aggregation import Evaluation, GroupScore
from lime.evaluation.intervals import Estimate
from lime.evaluation.predictions import PREDICTIONS_FILE, Allowed, Prediction, write_predictions
from lime.evaluation.scoring import SplitScore
from lime.system.atomic import write_text
from lime.system.tables import csv_text

SCHEMA = "lime-results/2"
RESULTS_JSON = "results.json"
RESULTS_CSV = "results.csv"
CSV_COLUMNS = (
    "level", "name", "category", "metric", "n", "score", "low", "high", "exact_match", "exact_low", "exact_high",
    "chance", "majority", "majority_exact", "frozen", "frozen_exact", "pearson", "spearman",
)  # fmt: skip


class ResultsError(ValueError):
    """A results file that cannot be read; the message names the file and what was expected."""


def write_report(
    folder: str | Path,
    evaluation: Evaluation,
    predictions: Sequence[Prediction],
    *,
    allowed: Allowed,
    info: Mapping[str, Any] | None = None,
) -> dict[str, Path]:
    """Write the three files into `folder` (made where absent) and return their paths by file name.

    allowed: the closed answer sets by split, kept in results.json so that predictions can be scored again
    without the data. info: what else is to be kept with the results (configuration, versions, seed); JSON
    values.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / name for name in (RESULTS_JSON, RESULTS_CSV, PREDICTIONS_FILE)}
    record = {
        **results_record(evaluation),
        "allowed_answers": {
            score.split: list(choices)
            for score in evaluation.splits
            if (choices := allowed.get(score.split)) is not None
        },
        "info": dict(info or {}),
    }
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(paths[RESULTS_JSON], text + "\n")
    write_text(paths[RESULTS_CSV], csv_text(CSV_COLUMNS, csv_rows(evaluation)))
    write_predictions(paths[PREDICTIONS_FILE], predictions)
    return paths


def results_record(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as JSON values. Scores and intervals in points (per cent, 100 x correlation)."""
    return {"schema": SCHEMA, "unit": "points", **dataclasses.asdict(evaluation)}


def read_results(path: str | Path) -> tuple[Evaluation, dict[str, Any]]:
    """(evaluation, whole record) of a results.json or of a run's folder.

    Raises ResultsError for a missing file, another schema, or a record that lacks something.
    """
    path = Path(path)
    if path.is_dir():
        path = path / RESULTS_JSON
    if not path.is_file():
        raise ResultsError(f"{path}: no such file; expected the {RESULTS_JSON} of a run, or its folder")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ResultsError(f"{path}: not JSON ({error})") from error
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise ResultsError(f"{path}: schema {schema!r}, expected {SCHEMA!r}; evaluate again with this version")
    try:
        evaluation = Evaluation(
            splits=tuple(
                SplitScore(**{**values, "notes": tuple(values.get("notes", ()))}) for values in record["splits"]
            ),
            categories=tuple(_group(values) for values in record["categories"]),
            macro=_group(record["macro"]),
            absent=tuple(record["absent"]),
        )
    except (KeyError, TypeError) as error:
        raise ResultsError(f"{path}: not a complete {SCHEMA} record ({error})") from error
    return evaluation, record


def stored_allowed_answers(predictions_path: str | Path) -> dict[str, list[str]] | None:
    """The closed answer sets kept beside a predictions file, or None where no results.json lies there."""
    path = Path(predictions_path)
    path = (path if path.is_dir() else path.parent) / RESULTS_JSON
    return read_results(path)[1]["allowed_answers"] if path.is_file() else None


def stored_metrics(predictions_path: str | Path) -> dict[str, str]:
    """The metric of each split by the results beside a predictions file; empty where no readable results lie there."""
    path = Path(predictions_path)
    try:
        evaluation, _ = read_results(path if path.is_dir() else path.parent)
    except ResultsError:  # of another version, which had the tasks' own metrics alone
        return {}
    return {score.split: score.metric for score in evaluation.splits}


def _group(values: dict[str, Any]) -> GroupScore:
    estimates = {
        name: Estimate(**value)
        for name in ("score", "exact_match", "over_majority", "over_frozen")
        if (value := values.get(name)) is not None
    }
    return GroupScore(**{**values, **estimates})


def csv_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The lines of results.csv, None where a column does not apply."""
    levels: list[tuple[str, SplitScore | GroupScore]] = [("split", score) for score in evaluation.splits]
    levels += [("category", group) for group in evaluation.categories] + [("macro", evaluation.macro)]
    rows = []
    for level, scored in levels:
        values = {column: getattr(scored, column, None) for column in CSV_COLUMNS} | {"level": level}
        if isinstance(scored, SplitScore):
            values |= {"name": scored.split, "score": scored.value}
        else:
            score, exact = scored.score, scored.exact_match
            values |= {"category": scored.name if level == "category" else None, "metric": "mean"}
            values |= {"score": score.value, "low": score.low, "high": score.high}
            values |= {"exact_match": exact.value, "exact_low": exact.low, "exact_high": exact.high}
        rows.append(values)
    return rows
