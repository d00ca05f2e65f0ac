"""Choose a setting for each method by the validation loss of a search's runs, never by a test row."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from lime.config.searched import SEARCH_SCHEMA
from lime.experiments.collection import Sweep
from lime.runs.record import objective_of
from lime.system.atomic import write_text
from lime.system.ownership import MADE_BY

METHOD, RATE = "method", "optim.peft_lr"


@dataclass(frozen=True)
class Choice:
    """The rate of the lowest validation loss of one method. ``at_edge``: it is the smallest or largest one tried."""

    method: str
    rate: float
    loss: float
    losses: dict[float, float | None]
    at_edge: bool


def choose(sweep: Sweep) -> list[Choice]:
    """For each method the rate whose last validation loss, averaged over the seeds, is lowest.

    Every method must have tried the same rates with the same number of seeds, or the comparison would not be fair. A
    rate whose runs failed or diverged is not chosen.

    Raises:
        ValueError: an unfair, unfinished or empty search; says which runs to repeat.
    """
    if set(sweep.axes) != {METHOD, RATE}:
        raise ValueError(f"{sweep.folder}: expected a sweep over {METHOD} and {RATE}, got {', '.join(sweep.axes)}")
    losses: dict[str, dict[float, float | None]] = {}
    budgets: dict[str, list[tuple[float, int]]] = {}
    for point in sweep.points:
        waiting = [run for run in point.runs if run.status in ("missing", "running", "interrupted")]
        if waiting:
            raise ValueError(f"{sweep.folder}: {point.label} is unfinished ({point.unfinished}); start it again")
        method, rate = str(point.settings[METHOD]), float(point.settings[RATE])
        losses.setdefault(method, {})[rate] = _loss(point)
        budgets.setdefault(method, []).append((rate, len(point.runs)))
    if len({tuple(sorted(budget)) for budget in budgets.values()}) > 1:
        raise ValueError(f"{sweep.folder}: the methods did not try the same rates and seeds: {budgets}")
    choices = []
    for method, tried in losses.items():
        known = {rate: loss for rate, loss in tried.items() if loss is not None}
        if not known:
            raise ValueError(f"{sweep.folder}: no run of {method} has a validation loss; see its records")
        rate = min(known, key=lambda r: (known[r], r))
        choices.append(Choice(method, rate, known[rate], tried, rate in (min(tried), max(tried))))
    return choices


def _loss(point: Any) -> float | None:
    losses = [loss for record in point.records if (loss := objective_of(record, "validation_loss")) is not None]
    whole = len(losses) == len(point.runs) and all(map(math.isfinite, losses))
    return statistics.fmean(losses) if whole else None


def write_choices(path: Path, sweep: Sweep, choices: list[Choice]) -> None:
    """Write the file that ``${searched:…}`` reads, with what the choice rests on."""
    records = [record for point in sweep.points for record in point.records]
    content: Mapping[str, Any] = {
        "schema": SEARCH_SCHEMA,
        "search": sweep.name,
        "chosen_by": "lowest loss per answer token on the validation part of the training rows",
        "date": datetime.now(UTC).date().isoformat(),
        "model": sorted({str(record.config["model"]["name"]) for record in records}),
        "data": sorted({str(record.identity.data) for record in records}),
        "code": sorted({record.identity.code for record in records}),
        "seeds": sorted({record.seed for record in records}),
        "seconds": round(sum(record.seconds or 0.0 for record in records)),
        "chosen": {choice.method: choice.rate for choice in choices},
        "at_the_edge_of_the_grid": [choice.method for choice in choices if choice.at_edge],
        "losses": {
            choice.method: {rate: None if loss is None else round(loss, 5) for rate, loss in choice.losses.items()}
            for choice in choices
        },
    }
    text = f"# {MADE_BY}: scripts/collect.py --select; do not edit.\n" + yaml.safe_dump(dict(content), sort_keys=False)
    write_text(path, text)
