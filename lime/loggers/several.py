"""Where a run's metrics go besides its own files: any number of loggers, each opened once and closed at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from lime.config.training import LoggerConfig
from lime.data.datamodule import MMTDataModule
from lime.evaluation.aggregation import Evaluation
from lime.evaluation.predictions import Prediction
from lime.runs.record import Parameters, Training


class RunLogger(Protocol):
    """One logger of a run."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Values of a logged step, by the columns of metrics.csv."""

    def log_training(
        self, parameters: Parameters, measured: Training, usage: Mapping[str, Sequence[float]], adapter_bytes: int
    ) -> None:
        """What is known after training."""

    def log_run(self, predictions: Sequence[Prediction], evaluation: Evaluation, data: MMTDataModule) -> None:
        """What is known at the end of a run."""

    def finish(self, failed: bool) -> None:
        """The run is over."""


@contextmanager
def opened(
    config: LoggerConfig,
    name: str,
    folder: Path,
    settings: Mapping[str, Any],
    own: Sequence[Any],
    *,
    after_step: int | None = None,
) -> Iterator[list[RunLogger]]:
    """The loggers of a run, finished when the block ends.

    Args:
        name: of the run.
        folder: the run's folder.
        settings: the resolved configuration and the environment.
        own: the objects of ``logger.extra``.
        after_step: the step of its own folder's checkpoint that the run goes on from; None where it begins anew.
    """
    with ExitStack() as stack:
        loggers: list[RunLogger] = []
        if config.wandb is not None:
            from lime.loggers.wandb import WandbRun

            continues = after_step is not None
            loggers.append(_closed(stack, WandbRun(config.wandb, name, folder, settings, continues=continues)))
        if config.tensorboard:
            from lime.loggers.tensorboard import TensorBoardRun

            loggers.append(_closed(stack, TensorBoardRun(folder, settings, after_step)))
        if own:
            from lime.loggers.own import OwnLogger

            loggers += [_closed(stack, OwnLogger(logger, settings)) for logger in own]
        yield loggers


def _closed(stack: ExitStack, logger: RunLogger) -> RunLogger:
    stack.push(lambda kind, *_: logger.finish(failed=kind is not None))
    return logger
