"""Draws docs/method.svg, the data flow of one adapted layer: python scripts/draw_method.py [FILE]"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lime.config.scripts import errors_in_one_line, run_script, script_parser
from lime.experiments.figures.style import save_figure
from lime.system.ownership import check_output
from lime.system.printing import print

FROZEN, TRAINED, COMPUTED, INK = "#dbe4ee", "#fde2c4", "#ffffff", "#22303c"
TARGET = Path(__file__).parent.parent / "docs" / "method.svg"

# name: (centre x, centre y, width, height, fill, text)
BOXES = {
    "x": (0.8, 3.0, 0.9, 0.7, COMPUTED, "$x$"),
    "base": (3.1, 4.6, 2.3, 0.9, FROZEN, "frozen layer\n$z = W_0\\, x + b_0$"),
    "delta": (3.1, 1.4, 2.3, 0.9, TRAINED, "shared update\n" + r"$\hat z = s\,B A\,x$"),
    "logits": (6.6, 3.0, 3.1, 1.2, COMPUTED, "$E$ features, normed:\n"
               + r"$(1-g)\,z_S + g\,\hat z_S$" + "\n(no parameters)"),
    "softmax": (9.4, 3.0, 1.6, 0.9, COMPUTED, r"softmax$(\cdot\,/\,\tau)$"),
    "window": (11.5, 3.0, 1.6, 0.9, COMPUTED, "windows of\n$n$ tokens"),
    "select": (14.0, 3.0, 1.6, 0.9, COMPUTED, "selection"),
    "experts": (14.0, 1.4, 2.5, 0.9, TRAINED,
                r"$\tilde w_1 p_1 + \cdots + \tilde w_E p_E$" + "\n" + r"$+\,\gamma\,p_s$"),
    "times": (16.6, 1.4, 0.7, 0.7, COMPUTED, r"$\odot$"),
    "plus": (16.6, 4.6, 0.7, 0.7, COMPUTED, "$+$"),
    "out": (18.2, 4.6, 0.9, 0.7, COMPUTED, "out"),
    "balance": (12.75, 5.6, 3.0, 0.7, COMPUTED, r"balance losses $L_{imp}$, $L_{KL}$"),
}  # fmt: skip
# a path of corners; the last piece carries the arrow's head
ARROWS = [
    [(1.25, 3.15), (1.6, 3.15), (1.6, 4.6), (1.95, 4.6)],
    [(1.25, 2.85), (1.6, 2.85), (1.6, 1.4), (1.95, 1.4)],
    [(4.25, 4.6), (16.25, 4.6)],
    [(4.6, 4.6), (4.6, 3.25), (5.05, 3.25)],
    [(4.6, 1.4), (4.6, 2.75), (5.05, 2.75)],
    [(8.15, 3.0), (8.6, 3.0)],
    [(10.2, 3.0), (10.7, 3.0)],
    [(12.3, 3.0), (13.2, 3.0)],
    [(14.0, 2.55), (14.0, 1.85)],
    [(15.25, 1.4), (16.25, 1.4)],
    [(16.6, 1.75), (16.6, 4.25)],
    [(16.95, 4.6), (17.75, 4.6)],
    [(12.75, 3.0), (12.75, 5.25)],
    [(4.25, 1.4), (4.6, 1.4), (4.6, 0.5), (16.6, 0.5), (16.6, 1.05)],
]
LABELS = {
    (15.6, 4.8): "$z$", (9.9, 0.68): r"$\hat z$", (4.82, 3.85): "$z$", (4.82, 2.1): r"$\hat z$",
    (10.45, 3.2): "$w$", (12.55, 3.2): "$w$", (14.25, 2.2): r"$\tilde w$",
}  # fmt: skip


def draw() -> plt.Figure:
    figure, axes = plt.subplots(figsize=(13, 4.3))
    axes.set(xlim=(0.2, 18.8), ylim=(0.2, 6.2), aspect="equal")
    axes.axis("off")
    for path in ARROWS:
        for start, end in pairwise(path[:-1]):
            axes.plot(*zip(start, end, strict=True), color=INK, lw=1.3, solid_capstyle="round", zorder=1)
        axes.annotate(
            "", xy=path[-1], xytext=path[-2], zorder=1,
            arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.3, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip
    for x, y, width, height, fill, text in BOXES.values():
        box = matplotlib.patches.FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=fill, edgecolor=INK, lw=1.2, zorder=2,
        )  # fmt: skip
        axes.add_patch(box)
        axes.text(x, y, text, ha="center", va="center", fontsize=9, color=INK, zorder=3, linespacing=1.35)
    for (x, y), text in LABELS.items():
        axes.text(x, y, text, ha="center", va="center", fontsize=10, color=INK)
    for x, fill, text in ((0.5, FROZEN, "frozen"), (2.2, TRAINED, "trained"), (4.0, COMPUTED, "computed")):
        axes.add_patch(matplotlib.patches.Rectangle((x, 5.75), 0.3, 0.25, facecolor=fill, edgecolor=INK, lw=1))
        axes.text(x + 0.42, 5.87, text, va="center", fontsize=9, color=INK)
    return figure


@errors_in_one_line()
def main(arguments: list[str]) -> int:
    parser = script_parser(__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=TARGET, help="SVG, PNG or PDF (default: docs/method.svg)")
    options = parser.parse_args(arguments)
    plt.rcParams["svg.hashsalt"] = "lime"  # the same file at every run
    check_output(options.file, overwrite=options.overwrite)
    save_figure(draw(), options.file, bbox_inches="tight", facecolor="white", dpi=110)
    print(f"wrote {options.file}")
    return 0


if __name__ == "__main__":
    run_script(main)
