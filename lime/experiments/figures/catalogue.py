"""Which figure a sweep has: the one whose axes and results it has, whatever it is called.

Where several fit, the one of the sweep's name is taken; where none does, the kind that its axes suggest.
"""

from __future__ import annotations

from functools import partial

from matplotlib.figure import Figure

from lime.evaluation.aggregation import MACRO
from lime.experiments.collection import Sweep
from lime.experiments.figures.efficiency import efficiency
from lime.experiments.figures.kinds import (
    BY_CATEGORY,
    BY_TASK,
    LEAST_OF_A_RADAR,
    Draw,
    differences,
    dots,
    heat,
    lines,
    methods,
    radar,
    tasks_of_all,
)
from lime.experiments.figures.pareto import SIZES, pareto
from lime.experiments.figures.style import numeric
from lime.runs.record import Record

_MODALITIES = ("text", "vision")

FIGURES: dict[str, Draw] = {
    "num_experts": partial(lines, x="lime.num_experts", groups=(MACRO, *_MODALITIES), label="number of experts"),
    "top_k": partial(lines, x="lime.top_k", label="experts per token (top-k)"),
    "auto_topk": partial(radar, axis="lime.selection", title="Auto Top-K (auto) and fixed top-2 (topk)"),
    "threshold": partial(lines, x="lime.auto_topk_threshold", label="threshold of Auto Top-K", experts=True),
    "n_gram": partial(lines, x="lime.n_gram", groups=_MODALITIES, label="tokens per window (n-gram)"),
    "gamma_routing": partial(lines, x="lime.gamma_routing", groups=_MODALITIES, label="share of the update in routing"),
    "feature_slice": partial(dots, axis="lime.feature_slice", groups=BY_CATEGORY, title="Features that route"),
    "router": partial(dots, axis="lime.router", groups=BY_TASK, title="Zero-parameter and learned router"),
    "temperature": partial(lines, x="lime.temperature", label="temperature of the routing softmax", experts=True),
    "balance": partial(heat, x="lime.balance.alpha", y="lime.balance.beta"),
    "shared_modulator": partial(
        dots, axis="lime.shared_modulator", groups=BY_CATEGORY, title="With and without the shared modulator"
    ),
    "peft_type": methods,
    "rank": partial(lines, x="peft.r", by="method", label="rank", logarithmic=True),
    "jitter": partial(lines, x="lime.jitter_noise", label="routing noise"),
    "routing_norm": partial(dots, axis="lime.routing_norm", groups=BY_CATEGORY, title="Divisor of the routing signal"),
    "window_anchor": partial(
        dots, axis="lime.window_anchor", groups=BY_CATEGORY, title="Token that decides for a window"
    ),
    "experts_by_data": partial(
        lines, x="lime.num_experts", by="data.train_rows", label="number of experts", logarithmic=True
    ),
    "causes": partial(differences, axis="causes", title="One change at a time"),
    "table2": methods,
    "pareto": pareto,
    "efficiency": efficiency,
}


def draw(sweep: Sweep) -> Figure:
    """The figure of a sweep.

    Raises:
        ValueError: no finished run, runs without scores, or axes that no kind of figure fits.
    """
    if not any(point.records for point in sweep.points):
        raise ValueError(f"{sweep.folder}: no finished run to draw")
    fitting = {name: drawer for name, drawer in FIGURES.items() if _fits(sweep, drawer)}
    if fitting:
        return fitting.get(sweep.name, next(iter(fitting.values())))(sweep)
    axes = sweep.axes
    if not _scored(sweep):
        raise ValueError(f"{sweep.folder}: its runs were not evaluated, so that there are no scores to draw")
    numbers = [key for key in axes if numeric([point.settings.get(key) for point in sweep.points])]
    if len(axes) == 1:
        if axes == ["method"]:
            return methods(sweep)
        return lines(sweep, axes[0]) if numbers else dots(sweep, axes[0], BY_CATEGORY, sweep.name)
    if len(axes) == 2 and numbers:
        other = next(key for key in axes if key != numbers[-1])
        return lines(sweep, numbers[-1], by=other)
    raise ValueError(f"{sweep.folder}: no figure for a sweep over {', '.join(axes) or 'seeds alone'}; see its table")


def _fits(sweep: Sweep, drawer: Draw) -> bool:
    """Whether the sweep has the axes and the results that a figure of the catalogue needs."""
    if drawer is pareto:
        return _scored(sweep) and {"method"} < set(sweep.axes) <= {"method", *SIZES}
    named = getattr(drawer, "keywords", {"axis": "method"})
    needed = {named[key] for key in ("x", "y", "axis", "by") if named.get(key)}
    if needed != set(sweep.axes):
        return False
    numbers = [named[key] for key in ("x", "y") if named.get(key)]
    if not all(numeric([point.settings.get(key) for point in sweep.points]) for key in numbers):
        return False
    if drawer is efficiency:
        return all(_measured(record) for point in sweep.points for record in point.records)
    if not _scored(sweep):
        return False
    return getattr(drawer, "func", None) is not radar or len(tasks_of_all(sweep)) >= LEAST_OF_A_RADAR


def _scored(sweep: Sweep) -> bool:
    return any(record.items for point in sweep.points for record in point.records)


def _measured(record: Record) -> bool:
    return record.training is not None and record.training.steps > 0 and record.parameters is not None
