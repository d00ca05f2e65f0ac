"""Score over trainable parameters, a line for each method, with the frontier."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from lime.evaluation.aggregation import MACRO
from lime.experiments.collection import Point, Sweep, shown
from lime.experiments.estimates import SeedMean, seed_mean
from lime.experiments.figures.efficiency import COLOURS, kind_of, label
from lime.experiments.figures.style import MARKERS, footnote, new_figure, seeds, styled

SIZES = ("peft.r", "peft.num_virtual_tokens")
"""Keys that set how large a method is."""

Measured = tuple[int, SeedMean, Point]
"""Trainable parameters, score, and the point they belong to."""


@styled()
def pareto(sweep: Sweep) -> Figure:
    """Mean score over trainable parameters: methods that meet at equal parameters are compared there.

    Each mark carries the method's size (its rank, or its virtual tokens). The frontier joins the points above which no
    smaller one lies.

    Raises:
        ValueError: no finished run was scored.
    """
    measured = [one for point in sweep.points if (one := _measured(point)) is not None]
    if not measured:
        raise ValueError(f"{sweep.folder}: its runs were not evaluated, so that there are no scores to draw")
    figure = new_figure(8.6, 5.2)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    used: dict[str, int] = {}
    methods = dict.fromkeys(str(point.settings["method"]) for _, _, point in measured)
    for method in sorted(methods, key=lambda method: [*COLOURS].index(kind_of(method))):
        series = sorted((one for one in measured if one[2].settings["method"] == method), key=lambda one: one[0])
        kind = kind_of(method)
        index = used[kind] = used.get(kind, -1) + 1
        style: dict[str, Any] = {"color": COLOURS[kind], "marker": MARKERS[index % len(MARKERS)]}
        style |= {"markerfacecolor": "none"} if index >= len(MARKERS) else {}
        sizes, means = [one[0] for one in series], [one[1].value for one in series]
        sides = [
            [mean.value - (mean.low or mean.value), (mean.high or mean.value) - mean.value] for _, mean, _ in series
        ]
        axes.errorbar(
            sizes, means, yerr=[*zip(*sides, strict=True)], label=label(method), **style,
            markersize=5, linewidth=0.9, elinewidth=0.5, alpha=0.85,
        )  # fmt: skip
        key = max(SIZES, key=lambda key: len({point.settings[key] for _, _, point in series if key in point.settings}))
        for size, mean, point in series:
            name = shown(point.settings.get(key, ""))  # of a method with one size, nothing
            axes.annotate(name, (size, mean.value), (3, 3), textcoords="offset points", fontsize=6, color="#555555")
    front = frontier(measured)
    axes.plot(*zip(*((size, mean.value) for size, mean, _ in front), strict=True), color="black", linewidth=1.6,
              linestyle=":", drawstyle="steps-post", label="frontier", zorder=5)  # fmt: skip
    axes.set(xlabel="trainable parameters", ylabel="score (points)", title="All tasks")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    footnote(
        figure,
        sweep,
        f"Mean of {seeds(sweep)}. Number at a mark: rank, or virtual tokens. Bars: 95% interval over test items.",
    )
    return figure


def frontier(measured: list[Measured]) -> list[Measured]:
    """The points that no point of as few parameters is above, by size."""
    front: list[Measured] = []
    for one in sorted(measured, key=lambda one: (one[0], -one[1].value)):
        if not front or one[1].value > front[-1][1].value:
            front.append(one)
    return front


def _measured(point: Point) -> Measured | None:
    mean = seed_mean(point.records, MACRO)
    counts = {record.parameters.trainable for record in point.records if record.parameters is not None}
    return None if mean is None or len(counts) != 1 else (counts.pop(), mean, point)
