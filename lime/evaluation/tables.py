"""Result tables: for the terminal (rich) and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lime.evaluation.aggregation import Evaluation, GroupScore
from lime.evaluation.intervals import interval_text
from lime.evaluation.scoring import SplitScore
from lime.system.printing import markdown as md

WORST = 8  # tasks named in the lines on rows without an answer and on absent splits
_NONE = "–"


def results_table(evaluation: Evaluation, categories: Mapping[str, str] | None = None) -> RenderableType:
    """The table of a run: splits grouped by category, a row per category, the macro row, and what to know
    about it.

    `categories`: display names by category id. Scores in points; bold with a star: the interval of the score lies above
    the majority answer's.
    """
    frozen = _has_frozen(evaluation)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("task", no_wrap=True, overflow="ellipsis", max_width=30)
    headings = ["n", "score", "95% CI", "chance", "major.", "frozen", "diff."]
    if not frozen:
        headings.remove("frozen")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for group in evaluation.categories:
        for score in evaluation.splits:
            if score.category == group.name:
                table.add_row(*_split_cells(score, frozen))
        name = (categories or {}).get(group.name, group.name)
        table.add_row(*_group_cells(group, name, frozen), style="cyan")
        table.add_section()
    table.add_row(*_group_cells(evaluation.macro, "Macro", frozen), style="bold")
    return Group(table, *[Text(line) for line in summary_lines(evaluation)])


def print_results(
    evaluation: Evaluation, categories: Mapping[str, str] | None = None, console: Console | None = None
) -> None:
    """Show the table in the terminal."""
    (console or Console()).print(results_table(evaluation, categories))


def summary_lines(evaluation: Evaluation) -> list[str]:
    """The run in words: macro score, its distance to the baselines, exact match, counts, notes, absent splits."""
    macro = evaluation.macro
    baseline = "the frozen backbone's" if _has_frozen(evaluation) else "the majority answer's"
    lines = [
        f"Scores in points; diff.: score less {baseline}.",
        f"* {macro.above_majority} of {macro.tasks} tasks: interval of the score above the majority answer's.",
        f"Score (accuracy; 100 x Pearson for STS-B), macro over {macro.tasks} tasks, {macro.n} rows: "
        f"{macro.score.text()}; "
        f"majority {macro.majority:.1f}, difference {macro.over_majority.text('+')}"
        + (f"; frozen {macro.frozen:.1f}, difference {macro.over_frozen.text('+')}" if macro.over_frozen else "")
        + f". Exact match in all tasks: {macro.exact_match.text()}.",
    ]
    for score in evaluation.splits:
        if score.pearson is not None and score.spearman is not None:
            lines.append(
                f"{score.name}: score is 100 x Pearson {score.pearson:.3f}; Spearman {score.spearman:.3f}; "
                f"exact match {score.exact_match:.1f}."
            )
        lines += [f"{score.name}: {note}." for note in score.notes]
    silent = sorted((score for score in evaluation.splits if score.answered < score.n), key=_unanswered)
    if silent:
        worst = ", ".join(f"{score.name} {-_unanswered(score)}" for score in silent[:WORST])
        more = f" and {len(silent) - WORST} more tasks" if len(silent) > WORST else ""
        rows = -sum(map(_unanswered, silent))
        lines.append(f"Rows without an answer, counted as wrong: {rows} ({worst}{more}).")
    if evaluation.absent:
        more = f" and {left} more (results.json names them)" if (left := len(evaluation.absent) - WORST) > 0 else ""
        lines.append(f"Not scored ({len(evaluation.absent)}): {', '.join(evaluation.absent[:WORST])}{more}.")
    return lines


def markdown_table(evaluation: Evaluation, categories: Mapping[str, str] | None = None) -> str:
    """Scores per category and over all tasks as a Markdown table, exact match beside them."""
    frozen = evaluation.macro.over_frozen is not None
    heads = ["Category", "tasks", "rows", "score", "95% interval", "exact match", "majority", "above majority"]
    if frozen:
        heads += ["frozen", "over frozen"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for group in (*evaluation.categories, evaluation.macro):
        last = group is evaluation.macro
        name = "**All tasks (macro)**" if last else md((categories or {}).get(group.name, group.name))
        value = f"{group.score.value:.1f}"
        cells = [
            name,
            str(group.tasks),
            str(group.n),
            f"**{value}**" if last else value,
            interval_text(group.score.low, group.score.high),
            f"{group.exact_match.value:.1f}",
            f"{group.majority:.1f}",
            f"{group.over_majority.value:+.1f}",
        ]
        if frozen:
            over = group.over_frozen
            cells += [_number(group.frozen), _NONE if over is None else f"{over.value:+.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _unanswered(score: SplitScore) -> int:
    return score.answered - score.n


def _has_frozen(evaluation: Evaluation) -> bool:
    return any(score.frozen is not None for score in evaluation.splits)


def _split_cells(score: SplitScore, frozen: bool) -> list[str | Text]:
    bold = "bold" if score.above_majority else ""
    return [
        Text.assemble(("*" if score.above_majority else " ", bold), (score.name, bold)),
        str(score.n),
        Text(f"{score.value:.1f}", style=bold),
        interval_text(score.low, score.high, to="–"),
        _number(score.chance),
        _number(score.majority),
        *([_number(score.frozen)] if frozen else []),
        _difference(score.value, score.frozen if frozen else score.majority),
    ]


def _group_cells(group: GroupScore, name: str, frozen: bool) -> list[str | Text]:
    return [
        f" {name}",
        str(group.n),
        f"{group.score.value:.1f}",
        interval_text(group.score.low, group.score.high, to="–"),
        _number(group.chance),
        _number(group.majority),
        *([_number(group.frozen)] if frozen else []),
        _difference(group.score.value, group.frozen if frozen else group.majority),
    ]


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1f}"


def _difference(value: float, baseline: float | None) -> str:
    return _NONE if baseline is None else f"{value - baseline:+.1f}"
