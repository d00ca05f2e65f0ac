"""Two runs on the same rows: which tasks differ, by how much, and whether it is more than noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from lime.evaluation.clusters import source_media
from lime.evaluation.intervals import Sample, difference, interval_text, sources_of
from lime.evaluation.metrics import metric_of
from lime.evaluation.paired import holm
from lime.evaluation.predictions import Prediction
from lime.evaluation.scoring import Task
from lime.system.tables import terminal_table

LEVEL = 0.05
WIDTHS = {"n": 2, "A": 5, "B": 5, "B-A": 5, "95% CI": 11, "only\nA:B": 4, "p": 5, "Holm\np": 5}
"""Columns of numbers in the terminal; in 80 columns names give way, not numbers."""


@dataclass(frozen=True)
class TaskDifference:
    """One task in both runs; scores and differences (B less A) in points, on the rows that both answered.

    low, high: 95% interval of the difference, paired by row (`lime.evaluation.intervals`). only_a, only_b: rows that
    one run alone answered rightly. p: of the test on the task alone; adjusted: by Holm over all tasks compared.
    """

    split: str
    name: str
    category: str
    n: int
    media: int
    a: float
    b: float
    low: float | None
    high: float | None
    only_a: int
    only_b: int
    p: float
    adjusted: float

    @property
    def difference(self) -> float:
        return self.b - self.a

    @property
    def clear(self) -> bool:
        """Whether the adjusted p-value is below 5%."""
        return self.adjusted < LEVEL


@dataclass(frozen=True)
class GroupDifference:
    """Unweighted mean over tasks in both runs, in points; low, high: 95% interval of the difference, paired by row.

    clear: whether the interval excludes 0.
    """

    name: str
    tasks: int
    a: float
    b: float
    low: float | None
    high: float | None

    @property
    def difference(self) -> float:
        return self.b - self.a

    @property
    def clear(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Comparison:
    """tasks in the order of the task table. left_out: rows that only one of the runs has."""

    tasks: tuple[TaskDifference, ...]
    categories: tuple[GroupDifference, ...]
    macro: GroupDifference
    left_out: int


def compare(
    a: Sequence[Prediction],
    b: Sequence[Prediction],
    tasks: Mapping[str, Task],
) -> Comparison:
    """Compare two runs row by row.

    A task scored by accuracy is tested by McNemar's exact test (mid-p), and where rows share media by flipping the sign
    of whole media's differences; a task scored by correlation by swapping the two runs' answers at random.

    Raises ValueError where the runs share no row, or one row has another question, medium or truth in the other run.
    """
    ours, theirs = ({record.id: record for record in side} for side in (a, b))
    shared = [name for name in ours if name in theirs]
    if not shared:
        raise ValueError("the two runs share no test row; compare runs on the same data")
    for name in shared:
        for field in ("question", "media_path", "truth"):
            if getattr(ours[name], field) != getattr(theirs[name], field):
                raise ValueError(f"row {name}: the runs have another {field}; compare runs on the same data")
    by_split: dict[str, list[str]] = {}
    for name in shared:
        by_split.setdefault(ours[name].split, []).append(name)
    unknown = sorted(set(by_split) - set(tasks))
    if unknown:
        raise ValueError(f"no task has the splits {', '.join(unknown)}")
    differences, samples = [], []
    for split, task in tasks.items():
        if split in by_split:
            names = by_split[split]
            one, sample = _compare_task(task, [ours[n] for n in names], [theirs[n] for n in names])
            differences.append(one)
            samples.append(sample)
    adjusted = holm([task.p for task in differences])
    done = tuple(replace(task, adjusted=value) for task, value in zip(differences, adjusted, strict=True))
    categories = []
    for category in dict.fromkeys(task.category for task in done):
        chosen = [i for i, task in enumerate(done) if task.category == category]
        categories.append(_group(category, [done[i] for i in chosen], [samples[i] for i in chosen]))
    left_out = len(ours) + len(theirs) - 2 * len(shared)
    return Comparison(done, tuple(categories), _group("macro", done, samples), left_out)


def _compare_task(task: Task, a: Sequence[Prediction], b: Sequence[Prediction]) -> tuple[TaskDifference, Sample]:
    """One task in two runs, and what the intervals of its groups are made of."""
    sources = sources_of([source_media(record.media_path) for record in a], task.split, len(a))
    metric, truths = metric_of(task.metric), [record.truth for record in a]
    ours, theirs = (
        metric.read(task.split, [r.extracted for r in side], truths, np.array([r.correct for r in side], dtype=float))
        for side in (a, b)
    )
    only_a, only_b = (
        int((gain_R == 1).sum()) for gain_R in (ours.right_R - theirs.right_R, theirs.right_R - ours.right_R)
    )
    sample = metric.difference([theirs], [ours], sources)
    interval = difference([sample])
    p = metric.p_value(ours, theirs, sources, np.random.default_rng([*task.split.encode()]))
    return TaskDifference(
        split=task.split, name=task.name, category=task.category, n=len(a), media=len(set(sources)),
        a=100 * metric.sample([ours], sources).value, b=100 * metric.sample([theirs], sources).value,
        low=interval.low, high=interval.high, only_a=only_a, only_b=only_b, p=p, adjusted=p,
    ), sample  # fmt: skip


def _group(name: str, tasks: Sequence[TaskDifference], samples: Sequence[Sample]) -> GroupDifference:
    interval = difference(samples)
    a, b = (float(np.mean([getattr(task, side) for task in tasks])) for side in "ab")
    return GroupDifference(name, len(tasks), a, b, interval.low, interval.high)


def comparison_table(comparison: Comparison, names: Mapping[str, str] | None = None) -> RenderableType:
    """The comparison for a terminal of 80 columns or more, with its reading in words below.

    names: display names by category id; {} leaves the categories' rows out.
    """
    table = terminal_table(["task", *WIDTHS], first_width=32)
    table.show_edge = False
    for column, width in zip(table.columns[1:], WIDTHS.values(), strict=True):
        column.min_width = width
    for group in comparison.categories:
        for task in comparison.tasks:
            if task.category == group.name:
                table.add_row(
                    ("*" if task.clear else " ") + task.name,
                    str(task.n), f"{task.a:.1f}", f"{task.b:.1f}", f"{task.difference:+.1f}",
                    interval_text(task.low, task.high, "+", "…"),
                    f"{task.only_a}:{task.only_b}", _p(task.p), _p(task.adjusted),
                    style="bold" if task.clear else "",
                )  # fmt: skip
        if names != {}:
            table.add_row(*_cells(group, (names or {}).get(group.name, group.name)), style="cyan")
        table.add_section()
    table.add_row(*_cells(comparison.macro, "Macro"), style="bold")
    return Group(table, *[Text(line) for line in reading(comparison)])


def reading(comparison: Comparison) -> list[str]:
    """What the comparison says, in words."""
    better = [task.split for task in comparison.tasks if task.clear and task.difference > 0]
    worse = [task.split for task in comparison.tasks if task.clear and task.difference < 0]
    macro = comparison.macro
    size = f"{macro.difference:+.1f} points (95% interval {interval_text(macro.low, macro.high, '+')})"
    verdict = "more than noise among test rows" if macro.clear else "no more than noise among test rows"
    lines = [
        f"Macro score, B less A: {size}: {verdict}.",
        f"Tasks that differ beyond noise (Holm over {len(comparison.tasks)} tasks, 5%): B better in {len(better)}"
        f"{_list(better)}, A better in {len(worse)}{_list(worse)}.",
        "The rows are one source of chance; another training seed is another. Compare several seeds before you claim a "
        "difference of methods.",
    ]
    if comparison.left_out:
        lines.append(f"Rows that only one run has, left out: {comparison.left_out}.")
    return lines


def _list(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""


def _cells(group: GroupDifference, name: str) -> list[str]:
    interval = interval_text(group.low, group.high, "+", "…")
    return [name, "", f"{group.a:.1f}", f"{group.b:.1f}", f"{group.difference:+.1f}", interval, "", "", ""]


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}"
