"""Expert usage by layer as a heat map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def usage_figure(usage: Mapping[str, Sequence[float]]) -> Figure:
    """Heat map of mean routing probabilities in per cent: one row per adapted layer, one column per expert.

    The colour scale is centred on the uniform share 1 / E, so that white is balanced.

    Args:
        usage: layer name to the mean routing probability of each of its experts.

    Raises:
        ValueError: without a layer.
    """
    from matplotlib.figure import Figure

    if not usage:
        raise ValueError("no expert usage to draw: expected at least one adapted layer with experts")
    experts = max(len(shares) for shares in usage.values())
    uniform = 1.0 / experts
    rows = [[*shares, *[float("nan")] * (experts - len(shares))] for shares in usage.values()]
    labels = _without_common_parts(list(usage))
    figure = Figure(figsize=(2.5 + 0.55 * experts + 0.055 * max(map(len, labels)), 1.4 + 0.2 * len(rows)))
    axes = figure.subplots()
    spread = max(abs(share - uniform) for row in rows for share in row if share == share) or uniform
    image = axes.imshow(rows, aspect="auto", cmap="RdBu_r", vmin=uniform - spread, vmax=uniform + spread)
    for place, row in enumerate(rows):
        for expert, share in enumerate(row):
            colour = "white" if abs(share - uniform) > 0.7 * spread else "black"
            axes.text(expert, place, f"{100 * share:.1f}", ha="center", va="center", fontsize=6, color=colour)
    axes.set_xticks(range(experts), [str(index) for index in range(experts)])
    axes.set_yticks(range(len(labels)), labels, fontsize=6)
    axes.set_xlabel("expert")
    axes.set_title(f"Mean routing probability (uniform: {uniform:.2f})", fontsize=9)
    figure.colorbar(image, ax=axes)
    figure.tight_layout()
    return figure


def _without_common_parts(names: list[str]) -> list[str]:
    """Dotted names without the leading parts that all of them share."""
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(p) > shared + 1 for p in parts) and len({p[shared] for p in parts}) == 1:
        shared += 1
    return [".".join(p[shared:]) for p in parts]
