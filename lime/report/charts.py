"""Charts as inline SVG: colours come from the page's style sheet, so that they follow light and dark."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 30


@dataclass(frozen=True)
class Line:
    """One curve: its name and its points (x, y)."""

    name: str
    points: tuple[tuple[float, float], ...]


def line_chart(title: str, lines: Sequence[Line], x_label: str = "step") -> Markup:
    """Curves over a shared axis; the first curve is solid, the others dashed, so that colour is not needed.

    Raises ValueError without a point.
    """
    points = [point for line in lines for point in line.points if math.isfinite(point[1])]
    if not points:
        raise ValueError(f"{title}: nothing to draw")
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    ticks = nice_ticks(min(y for _, y in points), max(y for _, y in points))
    y_low, y_high = ticks[0], ticks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = (y - y_low) / ((y_high - y_low) or 1.0)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks:
        _, y = at(x_low, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{tick:g}</text>')
    for x, anchor in ((x_low, "start"), (x_high, "end")) if x_high > x_low else ((x_low, "middle"),):
        place, _ = at(x, y_low)
        parts.append(f'<text class="tick" x="{place:.1f}" y="{HEIGHT - 14}" text-anchor="{anchor}">{x:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    for index, line in enumerate(lines):
        for piece in _pieces(line.points):
            if len(piece) > 1:
                drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in piece))
                parts.append(f'<polyline class="line line{index % 4}" points="{drawn}"/>')
                continue
            x, y = at(*piece[0])  # one point makes no line
            parts.append(f'<circle class="point point{index % 4}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
    ends = "; ".join(f"{line.name} ends at {line.points[-1][1]:.4g}" for line in lines if line.points)
    legend = "".join(
        f'<span class="key"><svg width="22" height="8" aria-hidden="true">'
        f'<line class="line line{i % 4}" x1="0" x2="22" '
        f'y1="4" y2="4"/></svg>{escape(line.name)}</span>'
        for i, line in enumerate(lines)
    )
    return Markup(
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}: {escape(ends)}">'
        f'{"".join(parts)}</svg><div class="legend">{legend if len(lines) > 1 else ""}</div></figure>'
    )


def _pieces(points: Sequence[tuple[float, float]]) -> Iterator[list[tuple[float, float]]]:
    """The stretches of a curve between values that are not finite."""
    for finite, piece in itertools.groupby(points, lambda point: math.isfinite(point[1])):
        if finite:
            yield list(piece)


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about `count` steps."""
    if high <= low:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


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


def heat_style(share: float, uniform: float, spread: float) -> str:
    """Style of a heat map cell: mixed towards one colour above the uniform share and towards another below."""
    strength = min(abs(share - uniform) / (spread or 1.0), 1.0)
    colour = "var(--more)" if share >= uniform else "var(--less)"
    return f"background: color-mix(in srgb, {colour} {100 * strength:.0f}%, var(--card))"
