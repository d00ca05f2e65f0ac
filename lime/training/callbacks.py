"""Callbacks of the training loop: progress bar, checkpoints, and the end by a signal."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, Checkpoint

from lime.config.training import CallbacksConfig
from lime.distributed import processes
from lime.system import interrupts
from lime.system.progress import ProgressDisplay
from lime.training.module import AdaptationModule
from lime.training.validation import StepCheckpoint, validation_follows

log = logging.getLogger(__name__)

SECONDS_BETWEEN_READINGS = 0.5


class ProgressCallback(Callback):
    """A bar over all micro-batches of the run, with the running loss per answer token."""

    def __init__(self) -> None:
        self._display: ProgressDisplay | None = None
        self._loss: float | None = None
        self._read = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        total = int(trainer.estimated_stepping_batches) * trainer.accumulate_grad_batches
        self._display = ProgressDisplay("training", total)
        self._display.__enter__()
        self._display.advance(trainer.fit_loop.epoch_loop.batch_progress.total.ready)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._display is not None
        assert isinstance(pl_module, AdaptationModule)
        now = time.monotonic()
        if now - self._read > SECONDS_BETWEEN_READINGS:  # reading a loss waits for a GPU: not at every step
            self._read = now
            loss = float(pl_module.last_loss)
            self._loss = loss if self._loss is None else 0.8 * self._loss + 0.2 * loss
        self._display.advance(1, "" if self._loss is None else f"loss {self._loss:.3f}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._display is not None:
            self._display.__exit__(None, None, None)
            self._display = None


def checkpoint_callback(folder: Path, config: CallbacksConfig) -> StepCheckpoint:
    """Checkpoints ``checkpoints/step-N.ckpt`` and ``checkpoints/last.ckpt``, written after an optimiser step."""
    return StepCheckpoint(
        dirpath=folder / "checkpoints",
        filename="step-{step}",  # no "=", which Hydra's command line would want quoted
        auto_insert_metric_name=False,
        monitor="step",
        mode="max",
        save_top_k=config.keep_checkpoints,
        save_last=True,
        every_n_train_steps=config.checkpoint_every_n_steps,
        every_n_epochs=1 if config.checkpoint_every_n_steps is None else None,
        enable_version_counter=False,  # a step that is taken again writes the same file
        save_on_train_epoch_end=config.checkpoint_every_n_steps is None,
    )


class InterruptCallback(Checkpoint):
    """Save at the end of the optimiser step in which a signal came, then end the run (:class:`Interrupted`).

    With several processes, a signal to any of them stops all. Lightning's own handlers save in the middle of an
    accumulation window too, which no run can resume exactly, or end without a word. A validation that follows the step
    comes first. As a ``Checkpoint`` it is called after all other callbacks, whose state it saves.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._deferred = ExitStack()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._deferred.enter_context(interrupts.deferred())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.fit_loop._should_accumulate() and not validation_follows(trainer):
            self._stop_if_told(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and not trainer.fit_loop._should_accumulate():
            self._stop_if_told(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop_if_told(trainer)
        self._deferred.close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._deferred.close()

    def _stop_if_told(self, trainer: pl.Trainer) -> None:
        number = processes.largest(int(interrupts.received() or 0))
        if not number:
            return
        path = self._folder / "checkpoints" / f"step-{trainer.global_step}.ckpt"
        trainer.save_checkpoint(path)
        stop = interrupts.Interrupted(number)
        if trainer.is_global_zero:
            log.warning("%s at step %d: saved %s", stop, trainer.global_step, path)
        raise stop
