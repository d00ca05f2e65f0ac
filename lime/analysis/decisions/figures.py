"""Figures of the study: measures by depth and projection, and what the routing agrees with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lime.analysis.decisions.passes import Setting
from lime.analysis.decisions.tables import Found, depth_of, projection_of
from lime.analysis.study.record import ONE_EXPERT
from lime.experiments.figures.style import COLOURS, look, new_figure, styled
from lime.tuner.settings import ROUTING_NORMS

FIGURES = ("entropy", "busiest", "agreement", "trained")
"""What may be drawn; `trained` where there are runs."""

_SHARE = {"entropy": "entropy / log E", "busiest": "busiest expert's tokens"}
_FACTORS = {
    "constant": "the same for\nevery token",
    "identity": "token\nidentity",
    "position": "position",
    "task": "task",
}


def figures(found: Sequence[Found]) -> dict[str, Figure]:
    """All that the findings allow, by name."""
    frozen = {one.setting: one for one in found if one.setting is not None}
    runs = {one.source: one for one in found if one.setting is None}
    default = Setting()
    entropy = {
        f"gamma_routing = {gamma:g}": {norm: frozen[Setting(norm, gamma_routing=gamma)] for norm in ROUTING_NORMS}
        for gamma in (default.gamma_routing, 0.0)
    }
    sliced = {
        f"{one.feature_slice} {one.num_experts}": of
        for one, of in sorted(frozen.items(), key=lambda pair: pair[0].num_experts)
        if one == Setting(feature_slice=one.feature_slice, num_experts=one.num_experts)
    }
    start = {"frozen": frozen[default]}
    drawn = {
        "entropy": _by_depth("entropy", entropy),
        "busiest": _by_layer(["busiest"], sliced, "features and number of experts"),
        "agreement": _agreement(start | runs),
    }
    if runs:
        drawn["trained"] = _by_layer(["entropy", "busiest"], start | runs, "")
    return drawn


@styled()
def _by_depth(measure: str, rows: Mapping[str, Mapping[str, Found]]) -> Figure:
    """A row of panels for each title, a column for each projection, a line over the blocks for each way to route."""
    columns = next(iter(next(iter(rows.values())).values())).projections
    figure = new_figure(2.3 * len(columns) + 1.6, 2.2 * len(rows) + 0.5)
    panels = figure.subplots(len(rows), len(columns), sharex=True, sharey="row", squeeze=False)
    for (title, lines), of_row in zip(rows.items(), panels, strict=True):
        for projection, axes in zip(columns, of_row, strict=True):
            for index, (label, one) in enumerate(lines.items()):
                depth = [depth_of(key) for key in one.layers if projection_of(key) == projection]
                style = look(index) | {"markersize": 2.5, "linewidth": 1.1}
                axes.plot(depth, one.values(measure, projection), **style, label=label)
        of_row[0].set_ylabel(f"{title}\n{_SHARE[measure]}")
        of_row[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    _label(panels, columns, "block")
    return figure


@styled()
def _by_layer(measures: Sequence[str], ways: Mapping[str, Found], label: str) -> Figure:
    """A row of panels for each measure, a column for each projection; a dot for each layer, a bar for their mean."""
    columns = next(iter(ways.values())).projections
    figure = new_figure(max(2.1, 0.32 * len(ways)) * len(columns) + 0.8, 2.1 * len(measures) + 1.0)
    panels = figure.subplots(len(measures), len(columns), sharex=True, sharey="row", squeeze=False)
    for measure, of_row in zip(measures, panels, strict=True):
        for projection, axes in zip(columns, of_row, strict=True):
            for place, one in enumerate(ways.values()):
                values = one.values(measure, projection)
                across = place + np.linspace(-0.25, 0.25, len(values))  # the first block to the left
                axes.plot(across, values, linestyle="", marker="o", markersize=2.5, color=COLOURS[0], alpha=0.6)
                axes.plot([place - 0.35, place + 0.35], [one.mean(measure, projection)] * 2, color=COLOURS[1])
            axes.set_xticks(range(len(ways)), list(ways), rotation=90, fontsize=7)
            if measure == "busiest":
                axes.axhline(ONE_EXPERT, color="#555555", linestyle=":", linewidth=1.2)
                axes.set_ylim(0, 1.03)
        of_row[0].set_ylabel(_SHARE[measure])
    _label(panels, columns, label)
    return figure


def _label(panels: Any, columns: Sequence[str], label: str) -> None:
    for projection, axes in zip(columns, panels[0], strict=True):
        axes.set_title(projection)
    for axes in panels[-1]:
        axes.set_xlabel(label)


@styled()
def _agreement(found: dict[str, Found]) -> Figure:
    """Bars of the shares of signal and winner, a row of panels for each way to route."""
    figure = new_figure(8.6, 1.35 * len(found) + 0.9)
    panels = figure.subplots(len(found), 2, sharex="col", sharey=True, squeeze=False, width_ratios=(4, 3))
    for (label, one), (signal, winner) in zip(found.items(), panels, strict=True):
        _bars(signal, one, list(_FACTORS), lambda name: name if name == "constant" else f"signal_{name}")
        _bars(winner, one, list(_FACTORS)[1:], lambda name: f"winner_{name}")
        signal.set_ylabel(label.replace("_", "\n", 1))
        signal.set_ylim(min(0.0, *(bar.get_height() for bar in signal.patches)) * 1.1, 1)
    panels[0, 0].set_title("Routing signal")
    panels[0, 1].set_title("Winning expert")
    panels[0, 1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _bars(axes: Axes, one: Found, factors: Sequence[str], measure: Callable[[str], str]) -> None:
    projections = one.projections
    width = 0.8 / len(projections)
    for index, projection in enumerate(projections):
        places = np.arange(len(factors)) + width * (index - (len(projections) - 1) / 2)
        heights = [one.mean(measure(name), projection) for name in factors]
        axes.bar(places, heights, width, color=COLOURS[index % len(COLOURS)], label=projection)
    axes.set_xticks(range(len(factors)), [_FACTORS[name] for name in factors])
    axes.grid(visible=False, axis="x")
