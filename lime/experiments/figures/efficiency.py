"""The four published panels (time, throughput, memory, trainable parameters by method), of a benchmark or a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lime.experiments.collection import Sweep
from lime.experiments.figures.style import seeds, styled, unfinished
from lime.experiments.published import published
from lime.method.deltas.table import MIXTURES, is_lime, title_of
from lime.runs.record import Record

PUBLISHED = (
    "lime_prompt_tuning", "lime_slicefine", "lime_lora_fa", "lime_lora", "lime_dora", "mix_lora", "hydra_lora",
    "moe_lora_fa", "moe_lora", "moe_dora",
)  # fmt: skip
"""The methods of the published figure (arXiv 2604.02338, Figure 2), in its order."""

COLOURS = {"LiME": "#0072B2", "MoE baseline": "#E69F00", "loop over experts": "#D55E00", "without experts": "#999999"}
"""Of the palette of Okabe and Ito, which colour-blind readers tell apart."""

REFERENCE = "lime_lora"
"""Other measurements are scaled so that they agree at this method: only their ratios are compared."""


def efficiency_figure(
    rows: Sequence[Mapping[str, Any]], others: Mapping[str, Sequence[float]] | None = None, note: str = ""
) -> Figure:
    """Four bar charts over the methods of a record of `benchmark.py step` or `efficiency`.

    Time has its quartiles as whiskers. Each bar carries its value.

    Args:
        rows: the record's rows, of one dtype and one number of experts.
        others: by method the published time, throughput, memory and parameters, in any units. They are drawn as
            marks, each panel scaled so that :data:`REFERENCE` agrees; without a row of it they are left out.
        note: text under the figure.

    Raises:
        ValueError: no rows, a method twice, or rows that are not of a training step.
    """
    methods = [str(row.get("method")) for row in rows]
    if not rows or any(row.get("peak_mib") is None for row in rows):
        raise ValueError("no training steps to draw: expected rows of a record of `benchmark.py step` or `efficiency`")
    if len(set(methods)) < len(methods):
        raise ValueError("a method appears twice: draw rows of one dtype and one number of experts")
    figure = Figure(figsize=(11.0, 1.6 + 0.3 * len(rows)))
    time, throughput, memory, parameters = figure.subplots(1, 4, sharey=True)
    seconds = [row["milliseconds"]["median"] / 1e3 for row in rows]
    spread = [[row["milliseconds"][key] / 1e3 for row in rows] for key in ("q1", "q3")]
    low = [max(middle - one, 0.0) for middle, one in zip(seconds, spread[0], strict=True)]
    high = [max(one - middle, 0.0) for middle, one in zip(seconds, spread[1], strict=True)]
    _bars(time, rows, seconds, "seconds a step", errors=[low, high])
    _bars(throughput, rows, [row["rows_per_second"] for row in rows], "rows a second")
    _bars(memory, rows, *_scaled([row["peak_mib"] for row in rows], "peak memory, ", 1024, ("MiB", "GiB")))
    sizes = [row["trainable"] / 1e3 for row in rows]
    _bars(parameters, rows, *_scaled(sizes, "trained parameters, ", 1000, ("thousands", "millions")))
    time.set_yticks(range(len(rows)), [label(method) for method in methods])
    time.invert_yaxis()
    kinds = list(dict.fromkeys(map(kind_of, methods)))
    handles: list[Any] = [Patch(color=COLOURS[kind], label=kind) for kind in COLOURS if kind in kinds]
    if others and REFERENCE in methods and REFERENCE in others:
        for index, axes in enumerate(figure.axes):
            handles[len(kinds) :] = [_marks(axes, methods, others, index)]
    figure.legend(
        handles=handles, loc="lower center", ncols=len(handles), frameon=False, bbox_to_anchor=(0.5, _LINE * bool(note))
    )
    figure.text(0.5, 0.01, note, ha="center", fontsize=7, color="#555555")
    figure.tight_layout(rect=(0, 0.06 + _LINE * bool(note), 1, 1))
    return figure


_LINE = 0.035


def _scaled(values: Sequence[float], title: str, step: int, units: tuple[str, str]) -> tuple[list[float], str]:
    """Values and title of a panel, in the larger unit where the largest value reaches it."""
    if max(values) >= step:
        return [value / step for value in values], title + units[1]
    return list(values), title + units[0]


def efficiency(sweep: Sweep) -> Figure:
    """The panels of a sweep: means over each method's runs, the time of a step with its quartiles over them.

    Raises:
        ValueError: no run that was trained.
    """
    rows = [_row(point.label, point.records) for point in sweep.points if point.records]
    note = f"Training of whole runs: means of {seeds(sweep)}, of the time the median with the quartiles over them."
    with styled():
        others = published().efficiency if sweep.table.is_mmt47 else None
        return efficiency_figure(rows, others, note + unfinished(sweep))


def _row(method: str, records: Sequence[Record]) -> dict[str, Any]:
    """The measurements of one method as a row of `benchmark.py efficiency`."""
    trained = [record.training for record in records if record.training is not None and record.training.steps]
    sizes = [record.parameters.trainable for record in records if record.parameters is not None]
    if not trained or not sizes:
        raise ValueError(f"{method}: no finished run was trained; nothing to draw")
    steps = [1e3 * one.seconds / one.steps for one in trained]
    q1, median, q3 = (float(value) for value in np.percentile(steps, [25, 50, 75]))
    return {
        "method": method,
        "milliseconds": {"q1": q1, "median": median, "q3": q3},
        "rows_per_second": float(np.mean([one.samples_per_second for one in trained])),
        "peak_mib": float(np.mean([one.peak_memory_mb for one in trained])) * 1e6 / 2**20,
        "trainable": sizes[0],
    }


def _marks(axes: Axes, methods: Sequence[str], others: Mapping[str, Sequence[float]], panel: int) -> Any:
    """Published values of one panel, scaled to agree with this one's bar of :data:`REFERENCE`."""
    bars: list[Any] = list(axes.patches)
    labels: list[Any] = list(axes.texts)
    scale = bars[methods.index(REFERENCE)].get_width() / others[REFERENCE][panel]
    known = [(others[method][panel] * scale, row) for row, method in enumerate(methods) if method in others]
    (drawn,) = axes.plot(
        *zip(*known, strict=True),
        linestyle="",
        marker="D",
        markersize=5,
        markerfacecolor="none",
        color="black",
        label=f"published, scaled to agree at {label(REFERENCE)}",
    )
    for text, bar in zip(labels, bars, strict=True):  # away from the marks, to the right edge
        text.set(horizontalalignment="right", position=(-2, 0))
        text.xy = (1.0, bar.get_y() + bar.get_height() / 2)
        text.xycoords = axes.get_yaxis_transform()
    drawn_to = max(*(value for value, _ in known), axes.get_xlim()[1] / 1.35)
    axes.set_xlim(0, 1.4 * drawn_to)
    return drawn


def label(method: str) -> str:
    """A method's name as it is written: `lime_lora_fa` is LiME LoRA-FA."""
    name, _, form = method.partition(":")
    return title_of(name) + (f" ({form})" if form else "")


def kind_of(method: str) -> str:
    """The colour group of a method: one of :data:`COLOURS`."""
    if method.endswith(":loop"):
        return "loop over experts"
    if is_lime(method):
        return "LiME"
    return "MoE baseline" if method in MIXTURES else "without experts"


def _bars(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    values: Sequence[float],
    title: str,
    errors: Sequence[Sequence[float]] | None = None,
) -> None:
    colours = [COLOURS[kind_of(str(row["method"]))] for row in rows]
    bars = axes.barh(range(len(rows)), values, color=colours, xerr=errors, error_kw={"elinewidth": 0.8, "capsize": 2})
    axes.bar_label(
        bars, [f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" for value in values], padding=4, fontsize=8
    )
    axes.set_xlabel(title)
    longest = [value + (errors[1][row] if errors is not None else 0.0) for row, value in enumerate(values)]
    axes.set_xlim(0, 1.35 * (max(longest) or 1.0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", visible=False)
    axes.locator_params(axis="x", nbins=4)
    axes.tick_params(labelsize=9)
