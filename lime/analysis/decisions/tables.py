"""What was found, as CSV and Markdown."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from lime.analysis.decisions.measures import MEASURES
from lime.analysis.decisions.passes import Setting
from lime.analysis.study.record import ONE_EXPERT
from lime.runs.environment import environment
from lime.system.atomic import write_text
from lime.system.ownership import MADE_BY
from lime.system.printing import markdown as md
from lime.system.tables import NONE, csv_text, markdown_table

_INTEGER = re.compile(r"(?<=\.)\d+(?=\.)")
_DECIDED = ("entropy", "deviation", "weight_deviation", "experts", "busiest")
_FOLLOWS = ("constant", "signal_identity", "signal_position", "signal_task")
_HEAD = [*(MEASURES[name] for name in _DECIDED), "n of m", *(MEASURES[name] for name in _FOLLOWS)]
_WINNER = ("winner_identity", "winner_position", "winner_task", "moved")


@dataclass(frozen=True)
class Found:
    """One way to route on one set of rows.

    Attributes:
        source: `frozen`, or the name of a run.
        setting: of the frozen backbone.
        layers: the measures of each layer.
        half_widths: of the 95% intervals of the measures' means over layers.
    """

    source: str
    setting: Setting | None
    layers: dict[str, dict[str, float]]
    half_widths: dict[str, float]

    @property
    def label(self) -> str:
        return self.source if self.setting is None else str(self.setting)

    def values(self, measure: str, projection: str | None = None) -> np.ndarray:
        """Of the layers in order, all or those of one projection."""
        names = [key for key in self.layers if projection in (None, projection_of(key))]
        return np.array([self.layers[key][measure] for key in names])

    def mean(self, measure: str, projection: str | None = None) -> float:
        """Of the layers where there is something to measure; NaN where there is none."""
        values = self.values(measure, projection)
        return math.nan if np.isnan(values).all() else float(np.nanmean(values))

    def collapsed(self, projection: str | None = None) -> int:
        """Layers that give one expert over nine tenths of the tokens."""
        return int((self.values("busiest", projection) > ONE_EXPERT).sum())

    @property
    def projections(self) -> list[str]:
        return list(dict.fromkeys(map(projection_of, self.layers)))


def projection_of(key: str) -> str:
    """Last part of a layer's name: `q_proj`."""
    return key.rpartition(".")[2]


def depth_of(key: str) -> int:
    """Number of a layer's block; 0 where its name has none."""
    found = _INTEGER.search(key)
    return 0 if found is None else int(found[0])


def write_tables(path: Path, found: Sequence[Found], about: Mapping[str, Any]) -> list[Path]:
    """The Markdown at `path`, and beside it the CSV: a line for each way to route and projection."""
    options = [one.name for one in fields(Setting)]
    lines = [
        {"source": one.source, **({} if one.setting is None else vars(one.setting)), "projection": projection or "all"}
        | {"layers": len(one.values("busiest", projection)), "layers_of_one_expert": one.collapsed(projection)}
        | {name: _or_none(one.mean(name, projection)) for name in MEASURES}
        | ({f"{name}_half_width": one.half_widths.get(name) for name in MEASURES} if projection is None else {})
        for one in found
        for projection in (None, *one.projections)
    ]
    columns = ["source", *options, "projection", "layers", "layers_of_one_expert", *MEASURES]
    csv_path = path.with_suffix(".csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, markdown(found, about))
    write_text(csv_path, csv_text([*columns, *(f"{name}_half_width" for name in MEASURES)], lines))
    return [path, csv_path]


def markdown(found: Sequence[Found], about: Mapping[str, Any]) -> str:
    """Tables of the means over layers, and by projection of the norms' defaults and of the runs."""
    commit = environment(0)["commit"]["id"]
    head = ", ".join(f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}" for key, value in about.items())
    made = f"{datetime.datetime.now(datetime.UTC).date()}, commit {(commit or 'unknown')[:8]}"
    frozen, runs = ([one for one in found if (one.setting is None) == of_run] for of_run in (False, True))
    short = [one for one in found if one.setting is None or not one.setting.changes()]
    parts = [
        f"# Routing of {about['backbone']}",
        f"{head}. {made}.",
        "Means over layers, ± half of their 95% interval over rows; n of m: layers in which one expert wins over "
        f"{100 * ONE_EXPERT:.0f}% of the tokens. Shares by identity, position and task are of what varies, corrected "
        "for chance; they overlap.",
        f"## Frozen, before training\n\n{_of_means(frozen)}",
        *([f"## Trained runs\n\n{_of_means(runs)}"] if runs else []),
        f"## The winning expert\n\n{_of_winners(short)}",
        f"## By projection\n\n{_by_projection(short)}",
        f"<!-- {MADE_BY} -->",
    ]
    return "\n\n".join(parts) + "\n"


def _of_means(found: Sequence[Found]) -> str:
    rows = [
        [md(one.label), *(_with_interval(one, name) for name in _DECIDED)]
        + [f"{one.collapsed()} of {len(one.layers)}", *(_with_interval(one, name) for name in _FOLLOWS)]
        for one in found
    ]
    return markdown_table(["routing", *_HEAD], rows)


def _of_winners(found: Sequence[Found]) -> str:
    rows = [[md(one.label), *(_with_interval(one, name) for name in _WINNER)] for one in found]
    return markdown_table(["routing", *(MEASURES[name] for name in _WINNER)], rows)


def _by_projection(found: Sequence[Found]) -> str:
    rows = [
        [md(one.label), md(projection), *(_number(one.mean(name, projection)) for name in _DECIDED)]
        + [f"{one.collapsed(projection)} of {len(one.values('busiest', projection))}"]
        + [_number(one.mean(name, projection)) for name in _FOLLOWS]
        for one in found
        for projection in one.projections
    ]
    return markdown_table(["routing", "projection", *_HEAD], rows, (0, 1))


def _with_interval(one: Found, measure: str) -> str:
    half = one.half_widths.get(measure)
    value = _number(one.mean(measure))
    return value if half is None or value == NONE else f"{value} ±{half:.3f}"


def _number(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:.3f}"


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
