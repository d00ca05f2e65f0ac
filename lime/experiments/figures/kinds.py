"""The kinds of figures: lines over a number, dots by choice, differences to one of them, a radar over tasks, a heat map
of two numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lime.evaluation.aggregation import MACRO
from lime.experiments.collection import Point, Sweep, shown
from lime.experiments.estimates import SeedMean, difference, seed_mean
from lime.experiments.figures.style import HEAT, footnote, look, mark_published, new_figure, seeds, styled
from lime.experiments.published import published
from lime.method.deltas.table import is_lime

TITLES = {MACRO: "All tasks", "text": "Text tasks", "image": "Image tasks", "video": "Video tasks"}
TITLES |= {"vision": "Image and video tasks"}
BY_CATEGORY, BY_TASK = "category", "task"
SCORE = "score (points)"


@styled()
def lines(
    sweep: Sweep,
    x: str,
    groups: Sequence[str] = (MACRO,),
    by: str | None = None,
    experts: bool = False,
    label: str | None = None,
    logarithmic: bool = False,
) -> Figure:
    """Score against a number: one panel per group, one line per value of ``by``.

    Args:
        x: swept key on the horizontal axis; numbers.
        by: another swept key, one line per value.
        experts: a further panel with the number of experts that carry weight, from the routing in the records.
    """
    present = [g for g in groups if any(seed_mean(point.records, g) is not None for point in sweep.points)]
    groups = present or [MACRO]
    figure = new_figure(3.3 * (len(groups) + experts) + (1.5 if by else 0.6), 3.1)
    panels = figure.subplots(1, len(groups) + experts, squeeze=False)[0]
    label = label or x.rpartition(".")[2].replace("_", " ")
    for axes, group in zip(panels, groups, strict=False):
        series = _series(sweep, by)
        for index, (name, points) in enumerate(series):
            aside = (index - (len(series) - 1) / 2) * 0.03
            _line(axes, points, x, group, look(index), name, aside, logarithmic)
        axes.set(title=_title(sweep, group), xlabel=label, ylabel=SCORE)
        if logarithmic:
            axes.set_xscale("log", base=2)
        _ticks(axes, sweep, x)
        key = x.rpartition(".")[2]
        if by is None and sweep.table.is_mmt47:
            mark_published(axes, key if group == MACRO else f"{key}_{group}", x)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(**({"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if by else {}))
    if experts:
        _experts_panel(panels[-1], sweep, x, label)
    footnote(figure, sweep)
    return figure


@styled()
def dots(sweep: Sweep, axis: str, groups: str, title: str) -> Figure:
    """Scores of a few choices: one row per category or task (`groups`) and one for all tasks, one mark per choice."""
    points = sweep.points
    rows = tasks_shown(sweep) if groups == BY_TASK else sweep.table.groups
    present = [group for group in (MACRO, *rows) if any(seed_mean(p.records, group) is not None for p in points)]
    figure = new_figure(6.4, 1.5 + 0.13 * max(len(present), 2) * (1 + len(points) / 2))
    axes = figure.subplots()
    for index, point in enumerate(points):
        offset = (index - (len(points) - 1) / 2) * 0.7 / len(points)
        style = {**look(index), "linestyle": ""}
        for row, group in enumerate(present):
            mean = seed_mean(point.records, group)
            if mean is not None:
                name = shown(point.settings[axis]) if row == 0 else None
                _errorbar(axes, mean.value, row + offset, mean, style, name, horizontal=True)
    axes.set_yticks(range(len(present)), [_title(sweep, group) for group in present])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel=SCORE, title=title)
    axes.legend(title=axis.rpartition(".")[2].replace("_", " "), loc="center left", bbox_to_anchor=(1.0, 0.5))
    footnote(figure, sweep)
    return figure


@styled()
def differences(sweep: Sweep, axis: str, title: str, reference: str = "reference") -> Figure:
    """One row per point: its paired difference to the point ``reference`` over all tasks, and its parameters."""
    base = next((point.records for point in sweep.points if point.settings[axis] == reference), [])
    figure = new_figure(7.2, 1.4 + 0.24 * len(sweep.points))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.2, 1))
    left.axvline(0, color="#555555", linewidth=1)
    for row, point in enumerate(sweep.points):
        found = difference(point.records, base, MACRO) if point.records and base else None
        if point.settings[axis] != reference and found is not None:
            style = look(0 if found.clear else 1) | {"linestyle": ""}
            left.plot(found.value, row, **style, markersize=5)
            if found.low is not None and found.high is not None:
                left.hlines(row, found.low, found.high, color=style["color"], linewidth=1)
        if sizes := _sizes(point):
            right.plot(sizes[0], row, **look(0), markersize=5)
    left.set_yticks(range(len(sweep.points)), [shown(point.settings[axis]) for point in sweep.points])
    left.set(title=title, xlabel=f"points over {reference}", ylim=(len(sweep.points) - 0.5, -0.5))
    right.set(title="Trainable parameters", xlabel="parameters")
    right.set_xlim(0, 1.08 * right.get_xlim()[1])
    footnote(figure, sweep, f"All tasks, paired by item; {seeds(sweep)}. Lines: 95% interval; circles: it excludes 0.")
    return figure


@styled()
def radar(sweep: Sweep, axis: str, title: str) -> Figure:
    """Mean score of each choice on the tasks of :func:`tasks_shown`, as far as the records have them."""
    splits, lowest = tasks_of_all(sweep), 0.0
    figure = new_figure(5.4, 4.9)
    axes: Any = figure.subplots(subplot_kw={"projection": "polar"})
    angles = [2 * math.pi * i / max(len(splits), 1) for i in range(len(splits))]
    for index, point in enumerate(sweep.points):
        if not point.records:
            continue
        means = [seed_mean(point.records, split) for split in splits]
        values = [mean.value for mean in means if mean is not None]
        lowest = min(lowest, *values)
        name = f"{axis.rpartition('.')[2]}={shown(point.settings[axis])}"
        axes.plot([*angles, *angles[:1]], [*values, *values[:1]], label=name, markersize=4, **look(index))
    axes.set_xticks(angles, [_title(sweep, split) for split in splits])
    axes.tick_params(axis="x", pad=10)
    low = 25 * math.floor(lowest / 25)  # a correlation may be negative: the centre is then below 0
    rings = range(low + 25 if low else 25, 101, 25)
    axes.set_ylim(low, 100)
    axes.set_yticks(rings, [str(ring) for ring in rings], color="#555555")
    if low:
        circle = np.linspace(0, 2 * math.pi, 200)
        axes.plot(circle, np.zeros(200), color="#555555", linewidth=1.2, zorder=1)
    axes.set_title(title, pad=16)
    axes.legend(loc="upper right", bbox_to_anchor=(1.32, 1.1))
    text = f"Mean score of {seeds(sweep)}; intervals by category are in the table."
    text += f" The centre is {low}, the darker ring 0." if low else ""
    footnote(figure, sweep, text)
    return figure


LEAST_OF_A_RADAR = 3
"""Tasks that a radar needs to be a shape."""


def tasks_of_all(sweep: Sweep) -> list[str]:
    """The tasks to show of which every finished point has scores, by split."""
    return [
        s for s in tasks_shown(sweep) if all(seed_mean(p.records, s) is not None for p in sweep.points if p.records)
    ]


@styled()
def heat(sweep: Sweep, x: str, y: str, group: str = MACRO) -> Figure:
    """Mean score by two numbers; in each cell the mean and half the width of its interval."""
    columns, rows = (list(dict.fromkeys(point.settings[key] for point in sweep.points)) for key in (x, y))
    values, texts = np.full((len(rows), len(columns)), np.nan), {}
    for point in sweep.points:
        place = rows.index(point.settings[y]), columns.index(point.settings[x])
        mean = seed_mean(point.records, group)
        texts[place] = point.unfinished or "–"
        if mean is not None:
            values[place] = mean.value
            texts[place] = f"{mean.value:.1f}"
            if mean.low is not None and mean.high is not None:
                texts[place] += f"\n±{(mean.high - mean.low) / 2:.1f}"
    figure = new_figure(1.9 + 0.95 * len(columns), 1.6 + 0.68 * len(rows))
    axes = figure.subplots()
    image = axes.imshow(values, cmap=HEAT, aspect="auto")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2 if np.isfinite(values).any() else 0.0
    for (row, column), text in texts.items():
        value = values[row, column]
        colour = "black" if not value < middle else "white"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(columns)), [shown(value) for value in columns])
    axes.set_yticks(range(len(rows)), [shown(value) for value in rows])
    axes.grid(visible=False)
    axes.set(xlabel=_key(x), ylabel=_key(y), title=_title(sweep, group))
    figure.colorbar(image, ax=axes, label=SCORE)
    used = [published().used.get(key) if sweep.table.is_mmt47 else None for key in (x, y)]
    text = f"Mean of {seeds(sweep)} ± half the 95% interval over test items."
    if used[0] in columns and used[1] in rows:
        corner = columns.index(used[0]) - 0.46, rows.index(used[1]) - 0.46
        axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor="#D55E00", linewidth=2))
        text += " Framed: the published setting."
    footnote(figure, sweep, text)
    return figure


@styled()
def methods(sweep: Sweep) -> Figure:
    """One row per method: its score, the published score where there is one, and its trainable parameters."""
    figure = new_figure(9.2, 1.5 + 0.27 * len(sweep.points))
    ours, theirs, sizes = figure.subplots(1, 3, sharey=True, width_ratios=(1.5, 1, 1))
    quoted = published().table2 if sweep.table.is_mmt47 else {}
    for row, point in enumerate(sweep.points):
        style = {**look(0 if is_lime(point.label) else 1), "linestyle": ""}
        mean, counts, paper = seed_mean(point.records, MACRO), _sizes(point), quoted.get(point.label)
        if mean is not None:
            _errorbar(ours, mean.value, row, mean, style, None, horizontal=True)
        if counts:
            sizes.plot(counts[0], row, **style)
        if paper is not None:
            theirs.plot(paper[MACRO], row, **style, markerfacecolor="none")
            sizes.plot(paper["parameters"], row, **style, markerfacecolor="none")
    for index, name in enumerate(("LiME", "others")):
        ours.plot([], [], label=name, **{**look(index), "linestyle": ""})
    ours.set_yticks(range(len(sweep.points)), [point.label for point in sweep.points])
    ours.invert_yaxis()
    ours.set(title="These runs: all tasks", xlabel=SCORE)
    figure.legend(*ours.get_legend_handles_labels(), loc="outside right upper")
    theirs.set(title="Published\n(7B backbone, full data)", xlabel=SCORE)
    sizes.set(title="Trainable parameters\n(open: published)", xscale="log", xlabel="parameters")
    footnote(figure, sweep)
    return figure


def tasks_shown(sweep: Sweep) -> list[str]:
    """The tasks of figures by task: those of the paper's ablation figures; of another table than MMT-47's all."""
    named = {task.name: split for split, task in sweep.table.tasks.items()}
    return [named[name] for name in published().tasks] if sweep.table.is_mmt47 else [*named.values()]


def _title(sweep: Sweep, group: str) -> str:
    return sweep.table.names.get(group) or TITLES.get(group, group)


def _series(sweep: Sweep, by: str | None) -> list[tuple[str | None, list[Point]]]:
    if by is None:
        return [(None, list(sweep.points))]
    values = list(dict.fromkeys(point.settings[by] for point in sweep.points))
    return [
        (f"{_key(by)}={shown(value)}" if by != "method" else shown(value), points)
        for value in values
        if (points := [point for point in sweep.points if point.settings[by] == value])
    ]


def _line(
    axes: Axes,
    points: Sequence[Point],
    x: str,
    group: str,
    style: dict[str, Any],
    name: str | None,
    aside: float,
    logarithmic: bool,
) -> None:
    """A line with intervals; ``aside`` moves it by a share of a step, so that intervals of several lines are seen."""
    known = [(point.settings[x], mean) for point in points if (mean := seed_mean(point.records, group)) is not None]
    known.sort(key=lambda pair: pair[0])
    steps = [b[0] - a[0] for a, b in itertools.pairwise(known)]
    places = [at * 2**aside if logarithmic else at + aside * min(steps, default=1) for at, _ in known]
    axes.plot(places, [mean.value for _, mean in known], **style, markersize=5, label=name)
    for place, (_, mean) in zip(places, known, strict=True):
        _errorbar(axes, place, mean.value, mean, {**style, "marker": "", "linestyle": ""}, None)


def _errorbar(
    axes: Axes, x: float, y: float, mean: SeedMean, style: dict[str, Any], name: str | None, horizontal: bool = False
) -> None:
    sides: dict[str, Any] = {}
    if mean.low is not None and mean.high is not None:
        sides["xerr" if horizontal else "yerr"] = [[mean.value - mean.low], [mean.high - mean.value]]
    axes.errorbar(x, y, **sides, **style, markersize=5, capsize=2, elinewidth=1, label=name)
    if len(mean.by_seed) > 1:
        at = (mean.by_seed, [y] * len(mean.by_seed)) if horizontal else ([x] * len(mean.by_seed), mean.by_seed)
        axes.plot(*at, linestyle="", marker=".", markersize=2.5, color="black", alpha=0.55, zorder=4)


def _experts_panel(axes: Axes, sweep: Sweep, x: str, label: str) -> None:
    known = [(point.settings[x], value) for point in sweep.points if (value := _experts_per_token(point)) is not None]
    known.sort()
    axes.plot([at for at, _ in known], [value for _, value in known], **look(2))
    axes.set(title="Experts per token", xlabel=label, ylabel="experts that carry weight")
    axes.set_ylim(0, 1.15 * max((value for _, value in known), default=1))
    _ticks(axes, sweep, x)


def _experts_per_token(point: Point) -> float | None:
    """Mean over layers and seeds at the end of training."""
    layers = [
        layer["experts_per_token"]
        for record in point.records
        for layer in record.routing.values()
        if layer["experts_per_token"] is not None
    ]
    return float(np.mean(layers)) if layers else None


def _ticks(axes: Axes, sweep: Sweep, x: str) -> None:
    values = sorted({point.settings[x] for point in sweep.points})
    if len(values) <= 11:
        gap = min((b - a for a, b in itertools.pairwise(values)), default=1) / ((values[-1] - values[0]) or 1)
        close = gap < 0.09 and axes.get_xscale() == "linear"
        axes.set_xticks(values, [shown(value) for value in values], rotation=60 if close else 0)
        axes.minorticks_off()


def _sizes(point: Point) -> list[int]:
    return [record.parameters.trainable for record in point.records if record.parameters is not None]


def _key(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ")


Draw = Callable[[Sweep], Figure]
