"""A run that is told to stop while it trains: the optimiser step is finished, then a checkpoint is saved.

Wherever else a signal finds a run, nothing is lost that a checkpoint or a journal does not hold, and it ends at once
(:mod:`lime.system.interrupts`). Lightning's own handlers save in the middle of an accumulation window too, which no
run can resume exactly, or end without a word.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lime.distributed import processes
from lime.system import interrupts

log = logging.getLogger(__name__)


class InterruptCallback(Callback):
    """Save at the end of the optimiser step in which a signal came, then end the run (:class:`Interrupted`).

    With several processes, a signal to any of them stops all.

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
        if not trainer.fit_loop._should_accumulate():
            self._stop_if_told(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop_if_told(trainer)  # told during the last validation
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
