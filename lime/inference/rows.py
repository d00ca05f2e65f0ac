"""The test rows of an evaluation, and what their answers may be."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lime.data.datamodule import MMTDataModule
from lime.data.rows import Row
from lime.data.tasks import TASKS, split_names

log = logging.getLogger(__name__)

SHOWN = 4  # splits that an error names


class TestRows:
    """The test rows to answer, and the closed answer set of each split.

    Args:
        data: the opened data module.
        splits: names of splits, tasks or categories to take; None for every split that is present.

    Raises:
        ValueError: a named split is not there, or none is.
    """

    __test__ = False  # not a test class of pytest

    def __init__(self, data: MMTDataModule, splits: Sequence[str] | str | None):
        names = split_names(splits)
        present = list(data.dataset.tests)
        if lacking := [name for name in names or () if name not in present]:
            more = f" and {len(present) - SHOWN} more" if len(present) > SHOWN else ""
            raise ValueError(
                f"evaluation.splits: {', '.join(lacking)} not in {data.dataset.root}; it has "
                f"{', '.join(present[:SHOWN])}{more}"
            )
        self.splits = [name for name in present if names is None or name in names]
        if not self.splits:
            raise ValueError(f"{data.dataset.root}: no test split to evaluate")
        self.rows: list[Row] = [row for name in self.splits for row in data.test_rows(name)]
        self.allowed: dict[str, list[str] | None] = {name: data.dataset.allowed_answers(name) for name in self.splits}
        if data.dataset.absent and names is None:
            count = len(data.dataset.absent)
            log.info("%d of %d test splits are absent; they are named below the table", count, len(TASKS))
