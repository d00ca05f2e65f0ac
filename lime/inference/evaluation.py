"""From a model and a data set to a scored, written and shown evaluation: shared by train.py and eval.py."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from lime.config.identity import config_hash
from lime.config.schema import EvalConfig, TrainConfig
from lime.data.datamodule import MMTDataModule
from lime.data.tasks import TaskTable, keep_table
from lime.distributed import processes
from lime.evaluation.aggregation import Evaluation
from lime.evaluation.authors import score_as_authors
from lime.evaluation.authors_report import authors_markdown, authors_table, write_authors_scores
from lime.evaluation.predictions import Prediction, collect, score_predictions
from lime.evaluation.report import write_report
from lime.evaluation.tables import markdown_table, results_table, summary_lines
from lime.inference.generation import answer_rows, truths_too_long
from lime.inference.journal import Journal, remove_journals
from lime.inference.rows import TestRows
from lime.models.loading import Backbone
from lime.runs.quiet import tables_are_shown
from lime.system.atomic import write_text
from lime.system.printing import markdown as md
from lime.system.progress import ProgressDisplay

log = logging.getLogger(__name__)


def answer_adapted(
    model: nn.Module,
    data: MMTDataModule,
    tests: TestRows,
    config: TrainConfig | EvalConfig,
    show_progress: bool,
    frozen: Sequence[str | None] | None,
    journal: Journal,
) -> list[Prediction]:
    """The model's answers, extracted and compared. ``journal`` keeps them as they come."""
    with ProgressDisplay("evaluation", len(tests.rows), show_progress and processes.is_main()) as display:
        raw = answer_rows(
            model, data.collator, tests.rows, tests.allowed, config.evaluation,
            num_workers=config.data.num_workers, progress=display.advance, journal=journal,
        )  # fmt: skip
    journal.close()
    too_long = truths_too_long(data.collator, tests.rows, tests.allowed, config.evaluation)
    return collect(tests.rows, raw, data.dataset.table.tasks, tests.allowed, frozen, too_long)


def journal_of(
    folder: Path, settings: Mapping[str, Any], backbone: Backbone, data: MMTDataModule, tests: TestRows, adapter: Path
) -> Journal:
    """The answers of a run's evaluation so far.

    Args:
        folder: the run's folder.
        settings: the resolved configuration.
        adapter: the adapter's folder; one that is not there stands for the backbone alone.
    """
    weights = adapter / "adapter_model.safetensors"
    decisive = {
        "settings": config_hash(settings),
        "backbone": backbone.fingerprint,
        "processing": backbone.processing,
        "data": data.dataset.fingerprint,
        "adapter": hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None,
        "rows": [row.id for row in tests.rows],
    }
    return Journal(folder, "answers", hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest())


_REASONS = {"missing_media": "media missing or unreadable", "overlong": "more tokens than data.max_length"}


def left_out_lines(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What to say of rows that were left out, by reason and part (see `LeftOut.counts`)."""
    return [
        f"Rows left out, {_REASONS.get(reason, reason)}: {sum(parts.values())} "
        f"({', '.join(f'{part} {number}' for part, number in parts.items())})."
        for reason, parts in counts.items()
        if parts
    ]


def report(
    predictions: Sequence[Prediction],
    table: TaskTable,
    allowed: Mapping[str, Sequence[str] | None],
    config: TrainConfig | EvalConfig,
    folder: Path,
    info: Mapping[str, Any],
    writes: bool = True,
) -> Evaluation:
    """Score, and where ``writes`` write results.json, .csv and .md, predictions.jsonl and the tasks into ``folder``
    and show what came out."""
    chosen = table.splits(config.evaluation.splits)
    config.evaluation.import_module()  # this process may have been given a checked configuration
    tasks = table.scored_by(config.evaluation.metrics)
    if chosen is not None:
        tasks = {split: tasks[split] for split in chosen}
    evaluation = score_predictions(predictions, tasks, allowed, categories=table.categories)
    if not writes:
        return evaluation
    keep_table(folder, table)
    write_report(folder, evaluation, predictions, allowed=allowed, info=info)
    lines = [*summary_lines(evaluation)[1:], *left_out_lines(info.get("rows_left_out", {}))]
    if (step := info.get("weights_step")) is not None:
        lines.append(f"Weights of step {step}, of the lowest validation loss (callbacks.weights=best).")
    summary = "\n".join(f"- {md(line.removeprefix('* '))}" for line in lines)
    text = f"{markdown_table(evaluation, table.groups)}\n{summary}\n"
    beside = None
    if config.evaluation.scorer == "authors":
        beside = score_as_authors(predictions, table.tasks, {score.split: score.value for score in evaluation.splits})
        write_authors_scores(folder, beside)
        text += "\n" + authors_markdown(beside, table.groups)
    write_text(folder / "results.md", text)
    remove_journals(folder)
    if tables_are_shown():
        _show(results_table(evaluation, table.groups), *([authors_table(beside, table.groups)] if beside else []))
    log.info("results in %s", folder)
    return evaluation


def _show(*tables: Any) -> None:
    """Print tables. The numbers are written by now, so nothing that the terminal refuses ends the run."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    try:
        for table in tables:
            console.print(table)
    except (OSError, ValueError) as error:  # closed, full, or without some character
        log.warning("the table cannot be shown here (%s); it stands in results.md", error)
