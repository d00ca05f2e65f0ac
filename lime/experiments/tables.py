"""Tables of a sweep from its records: Markdown, CSV and LaTeX. Runs without a result stay in them, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lime.evaluation.aggregation import MACRO
from lime.evaluation.metrics import score_in_words
from lime.experiments.collection import Point, Sweep, shown
from lime.experiments.estimates import Difference, SeedMean, difference, metric_name, seed_mean
from lime.experiments.published import published
from lime.runs.record import Record, Training
from lime.system import tables
from lime.system.printing import latex as tex
from lime.system.printing import markdown as md
from lime.system.tables import NONE, points

COSTS: dict[str, tuple[str, Callable[[Training], float | None]]] = {
    "validation_loss": (
        "validation loss",
        lambda training: training.validation[-1]["loss"] if training.validation else None,
    ),
    "step_seconds": ("seconds a step", lambda training: training.seconds / training.steps),
    "rows_per_second": ("rows a second", lambda training: training.samples_per_second),
    "peak_memory_gb": ("peak memory, GB", lambda training: training.peak_memory_mb / 1e3),
}
"""Column, its heading, and its value for one run."""
CSV_COLUMNS = (
    "point", "group", "metric", "seeds", "unfinished", "trainable_parameters", "mean", "low", "high",
    "deviation_over_seeds", "difference", "difference_low", "difference_high", "baseline", "published", *COSTS,
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One point of a sweep: its estimates by group (category id or ``macro``), None where there is no result."""

    point: Point
    label: str
    parameters: tuple[int, ...]
    means: dict[str, SeedMean | None]
    differences: dict[str, Difference | None]


@dataclass(frozen=True)
class SweepTable:
    """The rows of a table and what it needs to be read. ``baseline`` is the label of the row compared with, if any."""

    sweep: Sweep
    measure: str
    groups: tuple[str, ...]
    rows: tuple[Row, ...]
    baseline: str | None

    @property
    def scored(self) -> bool:
        """Whether any run was evaluated; where none was, the tables show what training took."""
        return any(mean is not None for row in self.rows for mean in row.means.values())

    @property
    def costs(self) -> list[str]:
        """Which of :data:`COSTS` any row has; all but the loss of a validation that did not take place."""
        known = [_costs_of(row.point.records) for row in self.rows]
        return [column for column in COSTS if column != "validation_loss" or any(column in one for one in known)]

    @property
    def score_in_words(self) -> str:
        """What the score is: the metrics of the tasks."""
        records = [record for row in self.rows for record in row.point.records]
        scored = {split: metric_name(record, split) for record in records for split in record.items}
        return score_in_words({self.sweep.table.tasks[split].name: metric for split, metric in scored.items()}, ", ")

    def title(self, group: str) -> str:
        """Heading of a group's column."""
        return self.sweep.table.groups.get(group, "All tasks (macro)")

    def places(self, group: str) -> dict[str, int]:
        """1 for the rows with the best mean of a column, 2 for those with the second best, as printed (ties share a
        place); empty where all are alike."""
        known = {row.label: round(mean.value, 1) for row in self.rows if (mean := row.means[group]) is not None}
        values = sorted(set(known.values()), reverse=True)
        if len(values) < 2:
            return {}
        return {label: values.index(value) + 1 for label, value in known.items() if value >= values[1]}

    def published(self, row: Row, group: str) -> float | None:
        """The paper's value for a row of Table 2, where it has one."""
        if self.sweep.axes != ["method"] or not self.sweep.table.is_mmt47:
            return None
        return published().table2.get(row.label, {}).get(group)


def make_table(sweep: Sweep, measure: str = "score", baseline: str | None = None) -> SweepTable:
    """Estimates for every point of a sweep.

    Args:
        measure: one of :data:`lime.experiments.estimates.MEASURES`.
        baseline: label of the point that the others are compared with; None takes ``lime_lora`` or ``…=reference``,
            where one is there.

    Raises:
        ValueError: a baseline that is no point of the sweep, or runs that cannot be compared.
    """
    labels = [point.label for point in sweep.points]
    if baseline is None:
        baseline = next((label for label in labels if label == "lime_lora" or label.endswith("=reference")), None)
    if baseline is not None and baseline not in labels:
        raise ValueError(f"{sweep.folder}: no point {baseline!r} to compare with; it has {', '.join(labels)}")
    base = sweep.points[labels.index(baseline)].records if baseline is not None else []
    finished = [record for point in sweep.points for record in point.records]
    categories = {score["name"] for record in finished for score in record.scores if score["level"] == "category"}
    groups = (*(name for name in sweep.table.groups if name in categories), MACRO)
    rows = []
    for point, label in zip(sweep.points, labels, strict=True):
        records = point.records
        counts = sorted({record.parameters.trainable for record in records if record.parameters is not None})
        means = {group: seed_mean(records, group, measure) for group in groups}
        compared = {
            group: difference(records, base, group, measure) if label != baseline and base else None for group in groups
        }
        rows.append(Row(point, label, tuple(counts), means, compared))
    return SweepTable(sweep, measure, groups, tuple(rows), baseline)


def markdown(table: SweepTable) -> str:
    """Means and standard deviations over seeds, paired differences, published values, and notes."""
    names = [md(_heading(table)), *(md(table.title(group)) for group in table.groups)]
    measure = f"score ({table.score_in_words})" if table.measure == "score" else "exact match"
    means = [[*_named(row), *_marked(table, row, _mean, ("**{}**", "_{}_"))] for row in table.rows]
    parts = [
        f"{_capital(measure)} in points: mean over seeds ± standard deviation over seeds. **Best** and _second best_ "
        "of a column by its mean, whether or not the difference is more than noise.",
        tables.markdown_table([names[0], "seeds", "parameters", *names[1:]], means),
    ]
    if not table.scored:
        columns = table.costs
        heads = [names[0], "seeds", "parameters", *(COSTS[column][0] for column in columns)]
        costs = [[*_named(row), *_costs(row, columns)] for row in table.rows]
        parts = ["What training came to, means over seeds; no run was evaluated.", tables.markdown_table(heads, costs)]
    elif table.baseline is not None:
        others = [row for row in table.rows if row.label != table.baseline]
        differences = [[md(row.label), *(_difference(row.differences[g]) for g in table.groups)] for row in others]
        parts += [
            f"Difference to {md(table.baseline)} in points with its 95% interval (paired by seed and test item; not "
            "corrected for the number of comparisons). * the interval excludes 0: more than these test "
            "items' noise. What other seeds would give is not in it; see the deviations above.",
            tables.markdown_table(names, differences),
        ]
    cells = [[md(row.label), *(points(table.published(row, group)) for group in table.groups)] for row in table.rows]
    if quoted := [row for row in cells if any(value != NONE for value in row[1:])]:
        parts += [
            f"Published ({published().source}; LLaVA-OneVision-Qwen2-7B on the full MMT-47: another backbone and other "
            "data, so only the order of the methods compares).",
            tables.markdown_table(names, quoted),
        ]
    notes = [f"- {md(row.label)}: {md(row.point.unfinished)}" for row in table.rows if row.point.unfinished]
    notes += [f"- {md(note)}" for note in table.sweep.notes]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])]) + "\n"


def csv_text(table: SweepTable) -> str:
    """One line per point and group, empty cells where nothing is known."""
    rows = []
    for row in table.rows:
        for group in table.groups:
            mean, compared = row.means[group], row.differences[group]
            values = {
                "point": row.label,
                "group": group,
                "metric": table.measure,
                "seeds": len(row.point.records),
                "unfinished": row.point.unfinished,
                "trainable_parameters": " ".join(map(str, row.parameters)),
                "baseline": table.baseline or "",
                "published": table.published(row, group),
                **_costs_of(row.point.records),
            }
            if mean is not None:
                values |= {"mean": mean.value, "low": mean.low, "high": mean.high}
                values |= {"deviation_over_seeds": mean.deviation}
            if compared is not None:
                values |= {"difference": compared.value}
                values |= {"difference_low": compared.low, "difference_high": compared.high}
            rows.append(values)
    return tables.csv_text(CSV_COLUMNS, rows)


def latex(table: SweepTable) -> str:
    """A booktabs table of the means; the best of a column bold, the second best underlined. Of a sweep without
    scores, what training took."""

    def mean(value: SeedMean | None) -> str:
        return _mean(value).replace(" ± ", r"\,$\pm$\,")

    costs, scored = table.costs, table.scored
    columns = map(table.title, table.groups) if scored else (_capital(COSTS[column][0]) for column in costs)
    heads = [_heading(table), "Seeds", "Parameters", *columns]
    rows = []
    for row in table.rows:
        marks = (r"\textbf{{{}}}", r"\underline{{{}}}")
        values = _marked(table, row, mean, marks) if scored else _costs(row, costs)
        rows.append([tex(_label(row)), tex(_seeds(row)), tex(_parameters(row)), *values])
    return tables.latex_table([tex(head) for head in heads], rows)


WRITERS: dict[str, Callable[[SweepTable], str]] = {"md": markdown, "csv": csv_text, "tex": latex}
"""Formats of a table by file suffix."""


def _costs_of(records: Sequence[Record]) -> dict[str, float]:
    """Mean of each of :data:`COSTS` that all trained runs have; empty where none was trained."""
    trained = [record.training for record in records if record.training is not None and record.training.steps]
    if not trained:
        return {}
    values = {column: [of(one) for one in trained] for column, (_, of) in COSTS.items()}
    return {column: float(np.mean(every)) for column, every in values.items() if None not in every}  # type: ignore[arg-type]


def _marked(
    table: SweepTable, row: Row, written: Callable[[SeedMean | None], str], marks: tuple[str, str]
) -> list[str]:
    """A row's means; the best of each column and the second best are put into ``marks``."""
    cells = []
    for group in table.groups:
        text, place = written(row.means[group]), table.places(group).get(row.label)
        cells.append(text if place is None else marks[place - 1].format(text))
    return cells


def _heading(table: SweepTable) -> str:
    return ", ".join(axis.rpartition(".")[2] for axis in table.sweep.axes) or "run"


def _label(row: Row) -> str:
    values = [shown(value) for value in row.point.settings.values()]
    return ", ".join(values) or row.label


def _seeds(row: Row) -> str:
    done, planned = len(row.point.records), len(row.point.runs)
    return str(done) if done == planned else f"{done} of {planned} ({row.point.unfinished})"


def _named(row: Row) -> list[str]:
    return [md(_label(row)), md(_seeds(row)), _parameters(row)]


def _parameters(row: Row) -> str:
    return " or ".join(f"{count:,}" for count in row.parameters) or NONE


def _costs(row: Row, columns: Sequence[str]) -> list[str]:
    known = _costs_of(row.point.records)
    return [f"{known[column]:.4g}" if column in known else NONE for column in columns]


def _mean(mean: SeedMean | None) -> str:
    if mean is None:
        return NONE
    return points(mean.value) + ("" if mean.deviation is None else f" ± {mean.deviation:.1f}")


def _difference(compared: Difference | None) -> str:
    return NONE if compared is None else compared.text("+") + ("*" if compared.clear else "")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
