"""Figures of a run's analysis, in the style of all figures, from what `lime.analysis.study.findings` found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lime.analysis.study.collecting import Cloud
from lime.analysis.study.names import short_names
from lime.data.tasks import TaskTable
from lime.experiments.figures.style import HEAT, look, new_figure, styled

DIVERGING, GREY = "RdBu_r", "#555555"
DOTTED: dict[str, Any] = {"color": GREY, "linestyle": ":", "linewidth": 1.2}
_ROW = 0.19  # inches of a row of a tall figure


@styled()
def routing_figure(routing: Mapping[str, Any]) -> Figure:
    """Usage of the experts by layer; entropy, number of experts and the busiest expert's share of the tokens."""
    layers = routing["layers"]
    labels, experts = short_names(list(layers)), max(len(one["usage"]) for one in layers.values())
    figure = new_figure(11.2, 1.6 + _ROW * max(len(layers), 8))
    heat, entropy, counts, won = figure.subplots(1, 4, sharey=True, width_ratios=(1.1, 1, 1, 1))
    shares = [[*one["usage"], *[math.nan] * (experts - len(one["usage"]))] for one in layers.values()]
    image = heat.imshow(shares, aspect="auto", cmap=HEAT, vmin=0)
    heat.set_xticks(range(experts), [str(expert) for expert in range(experts)])
    _rows(heat, labels)
    heat.grid(visible=False)
    heat.set(title="Mean routing probability", xlabel="expert")
    figure.colorbar(image, ax=heat)
    places = range(len(layers))
    entropy.plot([one["entropy"] for one in layers.values()], places, **_dots(0), label="mean of tokens")
    most = [math.log(len(one["usage"])) for one in layers.values()]
    entropy.plot(most, places, **DOTTED, label="most possible, log E")
    entropy.set(title="Entropy of routing", xlabel="nats", xlim=(0, max(*most, 0.1) * 1.06))
    counts.plot([one["experts_per_token"] for one in layers.values()], places, **_dots(0), label="for a token")
    counts.plot([one["experts_realised"] for one in layers.values()], places, **_dots(1), label="realised")
    counts.set(title="Experts that take part", xlabel="number", xlim=(0.8, experts + 0.2))
    counts.set_xticks(range(1, experts + 1))
    won.plot([100 * one["busiest"] for one in layers.values()], places, **_dots(0), label="busiest expert")
    won.plot([100 / len(one["usage"]) for one in layers.values()], places, **DOTTED, label="all alike, 1 / E")
    won.set(title="Tokens that one expert wins", xlabel="% of tokens", xlim=(0, 103))
    for axes in (entropy, counts, won):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.45 / (_ROW * max(len(layers), 8))), ncols=1)
    return figure


@styled()
def tasks_figure(routing: Mapping[str, Any], table: TaskTable) -> Figure:
    """How far each task's mean routing lies from the mean of its layer, expert by expert; tasks by category."""
    by_task, layers = routing["by"]["task"], routing["layers"]
    tasks = [split for split in table.tasks if split in by_task]
    labels = short_names(list(layers))
    columns = [len(one["usage"]) for one in layers.values()]
    rest = np.stack([_less_mean(by_task[task], layers) for task in tasks])
    tall = 1.4 + 0.055 * max(map(len, labels)) + 0.15 * max(len(tasks), 12)
    figure = new_figure(max(6.0, 2.6 + 0.085 * sum(columns)), tall)
    axes = figure.subplots()
    spread = float(np.nanmax(np.abs(rest))) or 1.0
    image = axes.imshow(rest, aspect="auto", cmap=DIVERGING, vmin=-spread, vmax=spread)
    starts = np.cumsum([0, *columns])
    axes.set_xticks((starts[:-1] + starts[1:] - 1) / 2, labels, rotation=90, fontsize=6)
    axes.set_yticks(range(len(tasks)), [table.tasks[task].name for task in tasks], fontsize=6)
    for start in starts[1:-1]:
        axes.axvline(start - 0.5, color="black", linewidth=0.4)
    categories = [table.tasks[task].category for task in tasks]
    for row in range(1, len(tasks)):
        if categories[row] != categories[row - 1]:
            axes.axhline(row - 0.5, color="black", linewidth=0.8)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    title = "Routing of each task, less the mean of all rows"
    axes.set(title=title, xlabel="layer, and in it the experts in order")
    figure.colorbar(image, ax=axes, label="difference of probability", fraction=0.04, pad=0.01)
    return figure


@styled()
def information_figure(information: Mapping[str, Any]) -> Figure:
    """What a token's expert tells of its row, in nats, by layer."""
    layers = information["layers"]
    figure = new_figure(6.2, 1.5 + _ROW * max(len(layers), 8))
    axes = figure.subplots()
    for index, name in enumerate(("task", "category", "modality")):
        for row, one in enumerate(layers.values()):
            _interval(axes, one[name], row + 0.22 * (index - 1), index, name if row == 0 else None)
    axes.axvline(0, color=GREY, linewidth=0.8)
    _rows(axes, short_names(list(layers)))
    axes.set_ylim(len(layers) - 0.4, -0.6)
    bound = min(one["task"]["bound"] for one in layers.values())
    title = "Mutual information with the expert of a token"
    axes.set(title=title, xlabel=f"nats (at most {bound:.2f} for the task)")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    _note(figure, "Corrected for the number of rows. Bars: 95% interval over rows.")
    return figure


@styled()
def maps_figure(
    maps: Mapping[str, Any], points: Mapping[str, np.ndarray], clouds: Mapping[str, Cloud], experts: int
) -> Figure:
    """Modulated updates of some layers on their first two principal components, by the expert of largest weight."""
    names = dict(zip(points, short_names(list(points)), strict=True))
    wide = min(3, len(points))
    tall = math.ceil(len(points) / wide)
    figure = new_figure(3.1 * wide + 0.9, 2.9 * tall + 0.3)
    panels = figure.subplots(tall, wide, squeeze=False).ravel()
    for axes, (key, points_N2) in zip(panels, points.items(), strict=False):
        dominant_N = clouds[key].dominant_N
        for expert in range(experts):
            chosen = dominant_N == expert
            style = {**look(expert), "linestyle": ""}
            axes.plot(*points_N2[chosen].T, **style, markersize=2.6, alpha=0.6, markeredgewidth=0.3)
        first, second = (100 * share for share in maps[key]["explained"])
        axes.set(xlabel=f"{first:.0f}% of variance", ylabel=f"{second:.0f}% of variance", xticks=[], yticks=[])
        axes.set_title(f"{names[key]}: expert explains {100 * maps[key]['value']:.0f}%", fontsize=9)
        axes.grid(visible=False)
    for axes in panels[len(points) :]:
        axes.set_visible(False)
    for expert in range(experts):
        panels[0].plot([], [], **{**look(expert), "linestyle": ""}, label=f"expert {expert}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    text = "A point is the update of one token. Percentage in the title: variance between the experts' means."
    _note(figure, text)
    return figure


@styled()
def windows_figure(windows: Mapping[str, Any]) -> Figure:
    """Accuracy of reading the task off each position of windows, and the last position's gain over the first."""
    blocks, positions = windows["blocks"], np.arange(1, windows["window"] + 1)
    names = ["embedding" if one["block"] == 0 else f"block {one['block']}" for one in blocks]
    figure = new_figure(8.6, 3.3)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    for index, one in enumerate(blocks):
        aside = (index - (len(blocks) - 1) / 2) * 0.03
        _errorbar(left, positions + aside, one["positions"], index, names[index])
    left.axhline(blocks[0]["positions"][0]["chance"], **DOTTED)
    left.set(title="Task read off one position", xlabel="position in the window", xticks=positions)
    left.set_ylabel("accuracy of a linear probe")
    left.set_ylim(bottom=0)
    left.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    for row, one in enumerate(blocks):
        _interval(right, one["last_over_first"], row, row, None)
    right.axvline(0, color=GREY, linewidth=0.8)
    _rows(right, names)
    right.set(title="Last position less first", xlabel="difference of accuracy, paired by row")
    right.set_ylim(len(blocks) - 0.5, -0.5)
    right.xaxis.set_major_locator(MaxNLocator(5))
    text = f"{windows['windows']} windows of {windows['window']} tokens in {windows['rows']} rows."
    _note(figure, f"{text} Dotted: most frequent task. Bars: 95% interval over rows.")
    return figure


@styled()
def cka_figure(cka: Mapping[str, Any], run: str, against: str) -> Figure:
    """How alike two runs represent the same rows: blocks by blocks, block by block, and the updates by layer."""
    titles = {
        "runs": f"{run} and {against}",
        "run_frozen": f"{run} and frozen",
        "against_frozen": f"{against} and frozen",
    }
    updates, blocks = cka["updates"], [one["block"] for one in cka["blocks"]]
    figure = new_figure(11.4 if updates else 8, max(3.6, 1.6 + _ROW * len(updates)))
    panels = figure.subplots(1, 3 if updates else 2, width_ratios=(1, 1.15, 1)[: 3 if updates else 2])
    values = np.array([[math.nan if v is None else v for v in row] for row in cka["matrix"]])
    image = panels[0].imshow(values, cmap=HEAT, vmin=min(0.0, float(np.nanmin(values))), vmax=1, origin="lower")
    if len(blocks) <= 8:
        for (a, b), value in np.ndenumerate(values):
            colour = "white" if value < 0.5 else "black"
            panels[0].text(b, a, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    panels[0].set_xticks(range(len(blocks)), [str(b) for b in blocks])
    panels[0].set_yticks(range(len(blocks)), [str(b) for b in blocks])
    panels[0].grid(visible=False)
    panels[0].set(title="CKA of hidden states", xlabel=f"block of {against}", ylabel=f"block of {run}")
    figure.colorbar(image, ax=panels[0], shrink=0.75)
    for index, (pair, label) in enumerate(titles.items()):
        known = [one for one in cka["blocks"] if one[pair] is not None]
        at = [one["block"] + 0.04 * (index - 1) for one in known]
        _errorbar(panels[1], at, [one[pair] for one in known], index, label)
    panels[1].set(title="The same block", xlabel="block", ylabel="CKA", xticks=blocks)
    panels[1].set_ylim(min(0, panels[1].get_ylim()[0]), 1.03)
    panels[1].legend(loc="best")
    if updates:
        for row, one in enumerate(updates.values()):
            if one is not None:
                _interval(panels[2], one, row, 0, None)
        _rows(panels[2], short_names(list(updates)))
        panels[2].set(title="Updates of the same layer", xlabel="CKA", xlim=(min(0, panels[2].get_xlim()[0]), 1.03))
        panels[2].set_ylim(len(updates) - 0.5, -0.5)
    text = "At the last prompt token. Bars: 95% interval over rows (jackknife). No dot: nothing varies there."
    _note(figure, text)
    return figure


@styled()
def approximation_figure(approximation: Mapping[str, Any]) -> Figure:
    """Relative error of modulators fitted to a MoE-LoRA's experts, by layer."""
    layers, rank = approximation["layers"], approximation["rank"]
    kinds = {
        "mean_only": "one update, no modulators",
        "of_rank": f"modulators over rank {rank}",
        "unrelated_of_rank": f"rank {rank}, unrelated experts",
        "any_rank": "modulators over any rank",
        "unrelated": "any rank, unrelated experts",
    }
    titles = {"alone": "Routed experts alone", "with_always_on": "With the always-on expert"}
    figure = new_figure(9.6, 1.5 + _ROW * max(len(layers), 8))
    for axes, (form, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        for index, (kind, label) in enumerate(kinds.items()):
            style = _dots(index) | ({"markerfacecolor": "none"} if kind.startswith("unrelated") else {})
            axes.plot([one[form][kind] for one in layers.values()], range(len(layers)), **style, label=label)
        axes.set(title=title, xlabel="relative error on the layer's inputs", xlim=(0, 1))
    axes.set_ylim(len(layers) - 0.5, -0.5)
    _rows(figure.axes[0], short_names(list(layers)))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return figure


@styled()
def experts_figure(sweep: Mapping[str, Any]) -> Figure:
    """Task information against the number of experts, in the mean of layers and read off the whole routing."""
    points = sweep["points"]
    series = list(dict.fromkeys(one["series"] for one in points))
    figure = new_figure(8.6 if len(series) == 1 else 10.2, 3.4)
    left, right = figure.subplots(1, 2)
    for axes, quantity in ((left, "information"), (right, "task_from_profile")):
        for index, name in enumerate(series):
            members = [one for one in points if one["series"] == name and one[quantity] is not None]
            at = [one["num_experts"] for one in members]
            _errorbar(axes, at, [one[quantity] for one in members], index, name or None, size=5)
            for one in members:
                seeds = [run[quantity]["value"] for run in one["runs"] if run[quantity] is not None]
                if len(seeds) > 1:
                    dots = {"linestyle": "", "marker": ".", "markersize": 2.5, "color": "black", "alpha": 0.55}
                    axes.plot([one["num_experts"]] * len(seeds), seeds, **dots, zorder=4)
        axes.set_xticks(sorted({one["num_experts"] for one in points}))
        axes.set(xlabel="number of experts")
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    left.set(title="Expert of a token and task", ylabel="mutual information (nats), mean of layers")
    right.set(title="Task read off the mean routing of all layers", ylabel="accuracy of a linear probe")
    if known := [one["task_from_profile"]["chance"] for one in points if one["task_from_profile"] is not None]:
        right.axhline(known[0], **DOTTED)
    if len(series) > 1:
        right.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    counts = sorted({len(one["runs"]) for one in points})
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    means = f"Mean of {number} seed{'' if counts == [1] else 's'} (small dots: each)"
    _note(figure, f"{means}. Dotted: most frequent task. Bars: 95% interval over rows.")
    return figure


def _less_mean(of_task: Mapping[str, Any], layers: Mapping[str, Any]) -> np.ndarray:
    """Usage of each expert by a task less that by all rows, all layers in a row; unknown in a layer that the task's
    rows do not reach."""
    parts = [np.subtract(of_task.get(key, {"usage": math.nan})["usage"], one["usage"]) for key, one in layers.items()]
    return np.concatenate(parts)


def _errorbar(
    axes: Axes, at: Any, estimates: Sequence[Mapping[str, Any]], index: int, label: str | None, size: int = 4
) -> None:
    """Values with their intervals, where they have one."""
    values = [one["value"] for one in estimates]
    ends = [[0.0 if one[end] is None else abs(one["value"] - one[end]) for one in estimates] for end in ("low", "high")]
    axes.errorbar(at, values, yerr=ends, **look(index), markersize=size, capsize=2, label=label)


def _interval(axes: Axes, one: Mapping[str, float], row: float, index: int, label: str | None) -> None:
    error = None
    if one["low"] is not None:
        error = [[max(0.0, one["value"] - one["low"])], [max(0.0, one["high"] - one["value"])]]
    style = {**look(index), "linestyle": ""}
    axes.errorbar(one["value"], row, xerr=error, **style, markersize=4, capsize=2, elinewidth=1, label=label)


def _dots(index: int) -> dict[str, Any]:
    return {**look(index), "linestyle": "", "markersize": 5}


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels, fontsize=8 if len(labels) <= 30 else 6)


def _note(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize=7, color=GREY)
