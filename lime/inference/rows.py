"""The test rows of an evaluation, and what their answers may be."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lime.data.datamodule import MMTDataModule
from lime.data.rows import Row
from lime.data.tasks import Task
from lime.evaluation.metrics import metric_of

log = logging.getLogger(__name__)

SHOWN = 4  # splits that an error names


class TestRows:
    """The test rows to answer, and the closed answer set of each split.

    Args:
        data: the opened data module.
        splits: names of splits, tasks or categories to take; None for every split that is present.
        metrics: metrics in place of the tasks' own (`evaluation.metrics`).

    Raises:
        ValueError: a named split is not there, or none of a category's; a metric is not known, or cannot read the
            answers of a split.
    """

    __test__ = False  # not a test class of pytest

    def __init__(
        self, data: MMTDataModule, splits: Sequence[str] | str | None, metrics: Mapping[str, str] | None = None
    ):
        present = list(data.dataset.tests)
        self.splits, lacking = data.dataset.table.splits_of(splits, present)
        if lacking:
            more = f" and {len(present) - SHOWN} more" if len(present) > SHOWN else ""
            raise ValueError(
                f"evaluation.splits: {', '.join(lacking)} not in {data.dataset.root}; it has "
                f"{', '.join(present[:SHOWN])}{more}"
            )
        if not self.splits:
            raise ValueError(f"{data.dataset.root}: no test split to evaluate")
        self.rows: list[Row] = [row for name in self.splits for row in data.test_rows(name)]
        self._check_metrics(data.dataset.table.scored_by(metrics), data.dataset.root)
        self.allowed: dict[str, list[str] | None] = {name: data.dataset.allowed_answers(name) for name in self.splits}
        meant = data.dataset.table.splits(splits) or list(data.dataset.table.tasks)
        if len(meant) > len(self.splits):
            absent = len(meant) - len(self.splits)
            log.info("%d of %d test splits are absent; they are named below the table", absent, len(meant))

    def _check_metrics(self, tasks: Mapping[str, Task], root: Path) -> None:
        """Let each task's metric read the true answers: what it cannot read is said before a model is trained."""
        for name in self.splits:
            truths = [row.answer for row in self.rows if row.split == name]
            try:
                metric = metric_of(tasks[name].metric)
                if metric.reads_answers and truths:
                    metric.read(name, truths, truths, np.ones(len(truths)))
            except ValueError as error:
                raise ValueError(f"{root}: test split {name}: {error}") from error
