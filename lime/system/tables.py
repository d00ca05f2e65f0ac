"""Text tables: one look for the terminal (rich), and one writer each for Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Container, Iterable, Mapping, Sequence

from rich import box
from rich.table import Table

from lime.system.printing import csv_cell

NONE = "–"
"""Where there is no value."""


def points(value: float | None, sign: str = "") -> str:
    """A score in points with one decimal; sign: ``+`` to show the sign."""
    return NONE if value is None else f"{value:{sign}.1f}"


def terminal_table(headings: Sequence[str], first_width: int | None = None) -> Table:
    """An empty table for the terminal: names on the left, cut after ``first_width`` characters, numbers on the
    right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column(headings[0], no_wrap=True, overflow="ellipsis", max_width=first_width)
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def plain_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns in line: the first to the left, the others to the right; integers with separators."""
    cells = [list(headings)]
    cells += [[f"{value:,}" if isinstance(value, int) else str(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in cells)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: Container[int] = (0,)) -> str:
    """A table in Markdown. Cells are Markdown already (`lime.system.printing.markdown`); `left` are the columns of
    words."""
    rule = "".join("|---" if place in left else "|---:" for place in range(len(headings))) + "|"
    lines = ["| " + " | ".join(headings) + " |", rule]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def latex_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A booktabs table. Cells are LaTeX already (`lime.system.printing.latex`)."""
    lines = [r"\begin{tabular}{l" + "r" * (len(headings) - 1) + "}", r"\toprule"]
    lines += [" & ".join(headings) + r" \\", r"\midrule"]
    lines += [" & ".join(cell.replace(NONE, "--") for cell in row) + r" \\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """CSV with a line per mapping: floats with four decimals, an empty cell where a value is None or lacking."""
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()}
        writer.writerow({key: csv_cell(value) for key, value in cells.items()})
    return file.getvalue()
