"""What training does with a validation loss: keep the best weights, and stop where it falls no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from lime.config.training import CallbacksConfig

LOSS = "val/loss"


def validation_callbacks(folder: Path, config: CallbacksConfig, *, continues: bool) -> list[Callback]:
    """Early stopping and the best checkpoints, where they are asked for.

    Args:
        folder: of the checkpoints.
        continues: the run goes on from a checkpoint of its own folder; of another run's, the losses do not count.
    """
    callbacks: list[Callback] = []
    if config.early_stopping is not None:
        callbacks.append(EarlyStop(config.early_stopping, config.min_delta, continues=continues))
    if config.best:
        callbacks.append(BestCheckpoint(folder, config.best, continues=continues))
    return callbacks


class EarlyStop(EarlyStopping):
    """Lightning's early stopping, after each validation. A run that was stopped stays stopped when it is resumed."""

    def __init__(self, patience: int, min_delta: float, *, continues: bool):
        super().__init__(LOSS, min_delta=min_delta, patience=patience, check_on_train_epoch_end=False)
        self._continues = continues

    @property
    def stopped(self) -> bool:
        """Whether it ended the training."""
        return self.stopping_reason is not EarlyStoppingReason.NOT_STOPPED

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._continues:
            super().load_state_dict(state_dict)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.stopped


class BestCheckpoint(ModelCheckpoint):
    """Lightning's checkpoints of the lowest validation losses, ``best-step-N.ckpt``."""

    def __init__(self, folder: Path, count: int, *, continues: bool):
        super().__init__(
            dirpath=folder,
            filename="best-step-{step}",
            auto_insert_metric_name=False,
            monitor=LOSS,
            save_top_k=count,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )
        self._continues = continues

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What the checkpoint remembers of the run's own folder, wherever that lies now."""
        if not self._continues:
            return
        assert self.dirpath is not None
        folder = Path(self.dirpath)
        moved = {key: str(folder / Path(state_dict[key]).name) for key in ("best_model_path", "kth_best_model_path")}
        best = {str(folder / Path(path).name): loss for path, loss in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": best, "dirpath": self.dirpath})


class StepCheckpoint(ModelCheckpoint):
    """Checkpoints to resume from. One that is due before a validation is written after it: a run that is resumed
    neither loses that validation nor makes it twice."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not validation_follows(trainer):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        elif self._every_n_train_steps and trainer.global_step % self._every_n_train_steps == 0:
            self._defer_save_until_validation = self._last_global_step_saved != trainer.global_step


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether there is a validation between the batch that has just ended and the next one."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
