"""Both scorers side by side: authors_scorer.json, a table for the terminal, a Markdown section."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from lime.evaluation.authors import AuthorsScores, AuthorsSplit
from lime.system.atomic import write_text
from lime.system.printing import markdown as md
from lime.system.tables import markdown_table, points, terminal_table

SCHEMA = "lime-authors-scorer/1"
AUTHORS_JSON = "authors_scorer.json"
CAUTION = (
    "The authors' scorer sees the truth while it extracts, and counts an empty answer as correct; "
    "it stands here only beside published numbers."
)


def write_authors_scores(folder: str | Path, scores: AuthorsScores) -> Path:
    """Write authors_scorer.json into `folder`; scores in points."""
    path = Path(folder) / AUTHORS_JSON
    record = {"schema": SCHEMA, "unit": "points", "caution": CAUTION, **dataclasses.asdict(scores)}
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def read_authors_scores(folder: str | Path) -> AuthorsScores | None:
    """The scores beside a run's results, or None where the run was not scored so.

    Raises ValueError for another schema.
    """
    path = Path(folder) / AUTHORS_JSON
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if record.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema {record.get('schema')!r}, expected {SCHEMA!r}; evaluate again")
    return AuthorsScores(
        splits=tuple(AuthorsSplit(**values) for values in record["splits"]),
        categories={name: (values[0], values[1]) for name, values in record["categories"].items()},
        macro=(record["macro"][0], record["macro"][1]),
    )


def rows(scores: AuthorsScores, names: Mapping[str, str] | None = None) -> list[tuple[str, float, float, int | None]]:
    """(name, authors, blind, empty answers called correct) of every split, category and the macro score; without
    categories where names is {}."""
    lines: list[tuple[str, float, float, int | None]] = []
    for category, (authors, blind) in scores.categories.items():
        for split in scores.splits:
            if split.category == category:
                lines.append((split.split, split.authors, split.blind, split.empty))
        if names != {}:
            lines.append(((names or {}).get(category, category), authors, blind, None))
    lines.append(("Macro", *scores.macro, sum(split.empty for split in scores.splits)))
    return lines


def authors_table(scores: AuthorsScores, names: Mapping[str, str] | None = None) -> Table:
    """Both scorers and their difference, for the terminal."""
    table = terminal_table(["task", "authors'", "blind", "diff.", "empty"])
    table.caption = CAUTION
    for name, authors, blind, empty in rows(scores, names):
        style = "cyan" if empty is None else ("bold" if name == "Macro" else "")
        counted = "" if empty is None else str(empty)
        table.add_row(name, points(authors), points(blind), points(authors - blind, "+"), counted, style=style)
    return table


def authors_markdown(scores: AuthorsScores, names: Mapping[str, str] | None = None) -> str:
    """Categories and the macro score by both scorers as a Markdown section."""
    categories = scores.categories if names != {} else {}
    named = {md((names or {}).get(category, category)): value for category, value in categories.items()}
    cells = [
        [name, points(authors), points(blind), points(authors - blind, "+")]
        for name, (authors, blind) in (named | {"**All tasks (macro)**": scores.macro}).items()
    ]
    table = markdown_table(["Category", "authors' scorer", "blind", "difference"], cells)
    return f"## By the authors' scorer\n\n{CAUTION}\n\n{table}\n"
