"""A logger of the user's, ``logger.extra``: one of Lightning's, or any class with ``log_metrics(metrics, step)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lime.data.datamodule import MMTDataModule
from lime.evaluation.aggregation import Evaluation
from lime.evaluation.predictions import Prediction
from lime.loggers.guard import not_fatal
from lime.loggers.values import costs, scores
from lime.runs.record import Parameters, Training

_not_fatal = not_fatal("logger.extra", Exception)


class OwnLogger:
    """Metrics, costs and scores through ``log_metrics``; the configuration through ``log_hyperparams`` and the end
    through ``finalize("success" or "failed")``, as Lightning's loggers have them, where the class has them."""

    def __init__(self, logger: Any, settings: Mapping[str, Any]):
        self._logger, self._step = logger, 0
        self._begin(settings)

    @_not_fatal
    def _begin(self, settings: Mapping[str, Any]) -> None:
        if hasattr(self._logger, "log_hyperparams"):
            self._logger.log_hyperparams(dict(settings))

    @_not_fatal
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._step = step
        self._logger.log_metrics(dict(metrics), step)

    def log_training(
        self, parameters: Parameters, measured: Training, usage: Mapping[str, Sequence[float]], adapter_bytes: int
    ) -> None:
        self.log_metrics(costs(parameters, measured, adapter_bytes), measured.steps)

    def log_run(self, predictions: Sequence[Prediction], evaluation: Evaluation, data: MMTDataModule) -> None:
        self.log_metrics(scores(evaluation), self._step)

    @_not_fatal
    def finish(self, failed: bool) -> None:
        if hasattr(self._logger, "finalize"):
            self._logger.finalize("failed" if failed else "success")
