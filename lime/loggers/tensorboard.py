"""A run in TensorBoard: metrics, configuration, costs, scores and expert usage, in the run's folder ``tensorboard``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch.utils.tensorboard import SummaryWriter

from lime.data.datamodule import MMTDataModule
from lime.evaluation.aggregation import Evaluation
from lime.evaluation.predictions import Prediction
from lime.loggers.guard import not_fatal
from lime.loggers.usage import usage_figure
from lime.loggers.values import USAGE, costs, scores
from lime.runs.record import Parameters, Training
from lime.system.atomic import remove

log = logging.getLogger(__name__)

FOLDER = "tensorboard"
_not_fatal = not_fatal("tensorboard", OSError)


class TensorBoardRun:
    """One run in event files; ``tensorboard --logdir`` of a sweep's folder shows its runs side by side.

    Args:
        folder: the run's folder.
        settings: the resolved configuration.
        after_step: the step that the run goes on from, behind which TensorBoard forgets what an earlier start logged;
            None removes all of it.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], after_step: int | None):
        path = folder / FOLDER
        if after_step is None:
            remove(path)
        self._writer = SummaryWriter(str(path), purge_step=None if after_step is None else after_step + 1)
        text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
        self._writer.add_text("configuration", "".join(f"    {line}\n" for line in text.splitlines()), after_step or 0)
        self._step = after_step or 0

    @_not_fatal
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._step = step
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)

    @_not_fatal
    def log_training(
        self, parameters: Parameters, measured: Training, usage: Mapping[str, Sequence[float]], adapter_bytes: int
    ) -> None:
        """Costs and the heat map of expert usage, at the last step."""
        self.log_metrics(costs(parameters, measured, adapter_bytes), measured.steps)
        if usage:
            self._writer.add_figure(USAGE, usage_figure(usage), measured.steps)

    @_not_fatal
    def log_run(self, predictions: Sequence[Prediction], evaluation: Evaluation, data: MMTDataModule) -> None:
        """Scores, at the last step."""
        self.log_metrics(scores(evaluation), self._step)

    @_not_fatal
    def finish(self, failed: bool) -> None:
        self._writer.close()
