"""Result tables: for the terminal (rich) and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.text import Text

from lime.evaluation.aggregation import Evaluation, GroupScore
from lime.evaluation.intervals import Estimate, interval_text
from lime.evaluation.metrics import score_in_words, title_of
from lime.evaluation.scoring import SplitScore
from lime.system.printing import markdown as md
from lime.system.tables import markdown_table as markdown_grid
from lime.system.tables import points, terminal_table

WORST = 8  # tasks named in the lines on rows without an answer and on absent splits


def results_table(evaluation: Evaluation, categories: Mapping[str, str] | None = None) -> RenderableType:
    """The table of a run: splits grouped by category, a row per category, the macro row, and what to know
    about it.

    `categories`: display names by category id; {} leaves their rows out. Scores in points; bold with a star: the
    interval of the score lies above the majority answer's.
    """
    frozen = _has_frozen(evaluation)
    headings = ["task", "n", "score", "95% CI", "chance", "major.", "frozen", "diff."]
    if not frozen:
        headings.remove("frozen")
    table = terminal_table(headings, first_width=30)
    for group in evaluation.categories:
        for score in evaluation.splits:
            if score.category == group.name:
                table.add_row(*_split_cells(score, frozen))
        if categories != {}:
            name = (categories or {}).get(group.name, group.name)
            table.add_row(*_group_cells(group, name, frozen), style="cyan")
        table.add_section()
    table.add_row(*_group_cells(evaluation.macro, "Macro", frozen), style="bold")
    return Group(table, *[Text(line) for line in summary_lines(evaluation)])


def summary_lines(evaluation: Evaluation) -> list[str]:
    """The run in words: macro score, its distance to the baselines, exact match, counts, notes, absent splits."""
    macro = evaluation.macro
    meaning = score_in_words({score.name: score.metric for score in evaluation.splits})
    baseline = "the frozen backbone's" if _has_frozen(evaluation) else "the majority answer's"
    lines = [
        f"Scores in points; diff.: score less {baseline}.",
        f"* {macro.above_majority} of {macro.tasks} tasks: interval of the score above the majority answer's.",
        f"Score ({meaning}), macro over {macro.tasks} tasks, {macro.n} rows: "
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
        elif score.metric != "accuracy":
            value = Estimate(score.value, score.low, score.high).text()
            lines.append(
                f"{score.name}: score is {title_of(score.metric)}, {value}; exact match {score.exact_match:.1f}."
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
    """Scores per category and over all tasks as a Markdown table, exact match beside them.

    `categories`: as for `results_table`."""
    frozen = evaluation.macro.over_frozen is not None
    heads = ["Category", "tasks", "rows", "score", "95% interval", "exact match", "majority", "above majority"]
    if frozen:
        heads += ["frozen", "over frozen"]
    rows = []
    for group in (*(evaluation.categories if categories != {} else ()), evaluation.macro):
        bold = "**" if group is evaluation.macro else ""
        cells = [
            f"{bold}All tasks (macro){bold}" if bold else md((categories or {}).get(group.name, group.name)),
            str(group.tasks),
            str(group.n),
            f"{bold}{points(group.score.value)}{bold}",
            interval_text(group.score.low, group.score.high),
            points(group.exact_match.value),
            points(group.majority),
            points(group.over_majority.value, "+"),
        ]
        if frozen:
            cells += [points(group.frozen), points(group.over_frozen.value if group.over_frozen else None, "+")]
        rows.append(cells)
    return markdown_grid(heads, rows) + "\n"


def _unanswered(score: SplitScore) -> int:
    return score.answered - score.n


def _has_frozen(evaluation: Evaluation) -> bool:
    return any(score.frozen is not None for score in evaluation.splits)


def _split_cells(score: SplitScore, frozen: bool) -> list[str | Text]:
    bold = "bold" if score.above_majority else ""
    name = Text.assemble(("*" if score.above_majority else " ", bold), (score.name, bold))
    return _cells(
        name, score, Text(points(score.value), style=bold), Estimate(score.value, score.low, score.high), frozen
    )


def _group_cells(group: GroupScore, name: str, frozen: bool) -> list[str | Text]:
    return _cells(f" {name}", group, points(group.score.value), group.score, frozen)


def _cells(
    name: str | Text, scored: SplitScore | GroupScore, value: str | Text, estimate: Estimate, frozen: bool
) -> list[str | Text]:
    baseline = scored.frozen if frozen else scored.majority
    return [
        name,
        str(scored.n),
        value,
        interval_text(estimate.low, estimate.high, to="–"),
        points(scored.chance),
        points(scored.majority),
        *([points(scored.frozen)] if frozen else []),
        points(None if baseline is None else estimate.value - baseline, "+"),
    ]
