"""Charts of a page: matplotlib's SVG, inline, in the colours of the style sheet, which follow light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from lime.experiments.figures.style import new_figure, styled
from lime.loggers.usage import usage_figure

_STYLE_OF = {
    "#0b5fa5": "--accent", "#b45309": "--second", "#6d28d9": "--third", "#047857": "--fourth", "#52606d": "--soft",
    "#d5dbe1": "--rule",
}  # fmt: skip
"""What is drawn in a colour takes that variable of the style sheet."""
_LINES = tuple(zip(_STYLE_OF, ("-", "--", ":", "-."), strict=False))
_SOFT, _RULE = list(_STYLE_OF)[-2:]
_RC: dict[str, Any] = {
    "text.color": _SOFT, "axes.labelcolor": _SOFT, "xtick.color": _SOFT, "ytick.color": _SOFT, "axes.edgecolor": _RULE,
    "grid.color": _RULE, "legend.labelcolor": _SOFT, "svg.fonttype": "none", "font.family": "sans-serif",
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One curve: its name and its points (x, y)."""

    name: str
    points: tuple[tuple[float, float], ...]


def line_chart(title: str, lines: Sequence[Line], x_label: str = "step") -> Markup:
    """Curves over a shared axis, told apart by dashes as well as by colour; a gap where a value is not finite.

    Raises ValueError without a point.
    """
    if not any(np.isfinite(y) for line in lines for _, y in line.points):
        raise ValueError(f"{title}: nothing to draw")
    with styled(_RC):
        figure = new_figure(3.7, 2.2)
        axes = figure.subplots()
        for index, line in enumerate(lines):
            x, y = np.array(line.points, dtype=float).T
            finite = np.isfinite(y)
            alone = finite & ~np.append(finite[1:], False) & ~np.append(False, finite[:-1])  # one point makes no line
            colour, dashes = _LINES[index % len(_LINES)]
            axes.plot(x, y, color=colour, linestyle=dashes, marker="o", markersize=3, markevery=alone, label=line.name)
        axes.set_xlabel(x_label)
        if len(lines) > 1:
            axes.legend()
        ends = "; ".join(f"{line.name} ends at {line.points[-1][1]:.4g}" for line in lines if line.points)
        return _chart(title, figure, f"{title}: {ends}")


def usage_chart(title: str, usage: Mapping[str, Sequence[float]]) -> Markup:
    """The heat map of expert usage by layer, in per cent."""
    with styled(_RC | {"axes.grid": False}):
        return _chart(title, usage_figure(usage), f"{title}, in per cent by layer and expert")


def _chart(title: str, figure: Figure, label: str) -> Markup:
    file = io.StringIO()
    without: Any = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=without)
    drawn = re.sub(r'xmlns(:\w+)?="[^"]*"', "", file.getvalue().partition("<svg ")[2])
    for colour, name in _STYLE_OF.items():
        drawn = drawn.replace(colour, f"var({name})")
    return Markup(
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg role="img" aria-label="{escape(label)}" {drawn}</figure>'
    )


def interval_bar(
    value: float, low: float | None, high: float | None, marks: Sequence[tuple[str, float | None]] = ()
) -> Markup:
    """A score in points with its interval on an axis from 0 to 100; `marks` are (class, value) of baselines."""

    def place(points: float) -> float:
        return min(max(points, 0.0), 100.0)

    drawn = "".join(
        f'<line class="{name}" x1="{place(mark):.2f}" x2="{place(mark):.2f}" y1="1" y2="11"/>'
        for name, mark in marks
        if mark is not None
    )
    whisker = ""
    if low is not None and high is not None:
        whisker = f'<line class="whisker" x1="{place(low):.2f}" x2="{place(high):.2f}" y1="6" y2="6"/>'
    return Markup(
        '<svg class="bar" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="100" height="12"/><rect class="fill" width="{place(value):.2f}" y="3" height="6"/>'
        f"{whisker}{drawn}</svg>"
    )
