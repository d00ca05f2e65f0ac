"""One look for every figure: colours that colour-blind readers tell apart; markers and dashes say the same again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lime.experiments.collection import Sweep
from lime.experiments.published import published
from lime.system.atomic import replacing
from lime.system.ownership import MADE_BY

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito (2008), without yellow, which is too light for lines."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), "-")
HEAT = "cividis"
PUBLISHED = "#7F7F7F"
SUFFIXES = ("png", "pdf")

_RC: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "svg.hashsalt": "lime",
}


@contextmanager
def styled(changes: Mapping[str, Any] | None = None) -> Iterator[None]:
    """The style, for what is drawn and saved within; ``changes`` go over it."""
    settings: Any = _RC | dict(changes or {})
    with mpl.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches that lays itself out."""
    return Figure(figsize=(width, height), layout="constrained")


def look(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of the n-th series; markers are open from the eighth on."""
    n = index % len(COLOURS)
    filled = {} if index < len(COLOURS) else {"markerfacecolor": "none"}
    return {"color": COLOURS[n], "marker": MARKERS[n], "linestyle": DASHES[n], **filled}


def footnote(figure: Figure, sweep: Sweep, text: str | None = None) -> None:
    """Under the figure: what the marks mean, how many seeds, and which runs are not in it."""
    text = text or f"Mean of {seeds(sweep)} (small dots: each). Bars: 95% interval over test items."
    figure.supxlabel(text + unfinished(sweep), fontsize=7, color="#555555")


def seeds(sweep: Sweep) -> str:
    """How many finished seeds the points have, in words: ``3 seeds``, ``1 to 3 seeds``."""
    counts = sorted({len(point.records) for point in sweep.points})
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{number} seed{'' if counts == [1] else 's'}"


def unfinished(sweep: Sweep) -> str:
    """A line about the runs that a figure lacks; empty where none is lacking."""
    lacking = [f"{point.label}: {point.unfinished}" for point in sweep.points if point.unfinished]
    more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
    return f"\nNot finished: {'; '.join(lacking[:3])}{more}." if lacking else ""


def mark_published(axes: Axes, name: str, key: str) -> None:
    """Shade the range that the paper names as best; where it names none, the setting of its runs, if they have one.

    Args:
        name: of the range, e.g. ``n_gram_text``.
        key: the setting's dotted key.
    """
    best, used = published().best, published().used
    if name in best:
        low, high = best[name]
    elif key in used:
        low = high = used[key]
    else:
        return
    extent = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    ticks = axes.get_xlim()
    margin = 0.012 * (ticks[1] - ticks[0])
    label = f"published {'best' if name in best else 'setting'}: {extent}"
    axes.axvspan(low - margin, high + margin, color=PUBLISHED, alpha=0.25, linewidth=0, zorder=0, label=label)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write ``name`` as PNG and PDF, the same bytes for the same content."""
    paths = figure_files(folder, name)
    with styled():
        for path in paths:
            save_figure(figure, path)
    return paths


def figure_files(folder: Path, name: str) -> list[Path]:
    """The files that :func:`save` writes."""
    return [folder / f"{name}.{suffix}" for suffix in SUFFIXES]


def save_figure(figure: Figure, path: Path, **options: Any) -> None:
    """Write one file in one piece, in the format of its suffix, without a date; it says that this program made it."""
    form = path.suffix.removeprefix(".").lower()
    metadata = {"png": {"Software": MADE_BY}, "pdf": {"Creator": MADE_BY, "CreationDate": None},
            "svg": {"Creator": MADE_BY, "Date": None}}  # fmt: skip
    with replacing(path) as temporary:
        figure.savefig(temporary, format=form, metadata=metadata.get(form), **options)


def numeric(values: Sequence[Any]) -> bool:
    """Whether all values are numbers (true and false are not)."""
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
