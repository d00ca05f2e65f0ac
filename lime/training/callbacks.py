"""Callbacks of the training loop: what is written at logged steps, and the progress bar."""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lime.config.training import CallbacksConfig
from lime.distributed import processes
from lime.runs.record import LayerRouting, Training
from lime.system.memory import forget_peak, peak_memory_mb
from lime.system.progress import ProgressDisplay
from lime.training.metrics import Kept, MetricsFile, UsageFile, Window
from lime.training.module import AdaptationModule
from lime.tuner.routing.recorder import LayerStatistics

log = logging.getLogger(__name__)

SECONDS_BETWEEN_READINGS = 0.5


class Sink(Protocol):
    """Where metrics go besides the run's own files, e.g. Weights & Biases."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None: ...


class MetricsCallback(Callback):
    """Write a row of metrics.csv and a line of routing.jsonl every ``every_n_steps`` optimiser steps.

    Also keeps the last expert usage (``usage``: layer name to mean routing probability of each expert), the routing of
    each layer that it comes from (``routing``), and what :meth:`measured` sums up. All of it is part of a checkpoint,
    the unfinished window too. Several processes measure together; the first one writes.

    Args:
        folder: the run's folder.
        every_n_steps: optimiser steps between two rows.
        sinks: where else metrics go.
        continues: the checkpoint to resume from is of this folder: rows up to it stay in the files.
    """

    def __init__(self, folder: Path, every_n_steps: int, sinks: list[Sink], *, continues: bool = False):
        self._path, self._usage_path = folder / "metrics.csv", folder / "routing.jsonl"
        self._file: MetricsFile | None = None
        self._usage_file: UsageFile | None = None
        self._continues = continues
        self._resumed: dict[str, Any] | None = None
        self._every, self._sinks = every_n_steps, sinks
        self._written = 0
        self._started = time.perf_counter()
        self.usage: dict[str, list[float]] = {}
        self.routing: dict[str, LayerRouting] = {}
        self._measured = Training()

    def measured(self) -> Training:
        """Steps, time, throughput, memory and validation losses of the whole training, for the record."""
        found = self._measured
        seconds = found.seconds or float("inf")
        return dataclasses.replace(
            found,
            peak_memory_mb=peak_memory_mb(),
            samples_per_second=found.rows / seconds,
            tokens_per_second=found.tokens / seconds,
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, AdaptationModule)
        self._written = trainer.global_step
        self._started = time.perf_counter()
        pl_module.window.reset()
        forget_peak()
        resumed = self._resumed
        rows = usage_lines = None
        if resumed is not None and self._continues:
            rows, usage_lines = (_kept(resumed, name, trainer.global_step) for name in ("rows", "usage_lines"))
            self._started -= resumed["seconds"]
            self._written = resumed["written"]
        if resumed is not None:
            self._resume_window(pl_module.window, resumed["windows"])
        if trainer.is_global_zero:
            self._file = MetricsFile(self._path, rows)
            if usage_lines is not None:
                self._usage_file = UsageFile(self._usage_path, usage_lines)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, AdaptationModule)
        checkpoint["metrics"] = {
            "windows": processes.gather(pl_module.window.state()),
            "written": self._written,
            "rows": self._file.lines if self._file is not None else 0,
            "usage_lines": self._usage_file.lines if self._usage_file is not None else 0,
            "checksums": {
                name: file.checksum
                for name, file in (("rows", self._file), ("usage_lines", self._usage_file))
                if file is not None
            },
            "seconds": time.perf_counter() - self._started,
            "measured": dataclasses.asdict(self._measured),
            "routing": {name: dataclasses.asdict(layer) for name, layer in self.routing.items()},
            "usage": self.usage,
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        resumed = self._resumed = checkpoint["metrics"]
        if self._continues:
            self._measured = Training(**resumed["measured"])
        self.routing = {name: LayerRouting(**layer) for name, layer in resumed["routing"].items()}
        self.usage = dict(resumed["usage"])

    def check_files(self, step: int) -> None:
        """Name what the files lack where training was over before it began, so that nothing was written to them."""
        if self._file is not None or self._resumed is None or not self._continues or not processes.is_main():
            return
        rows, usage_lines = (_kept(self._resumed, name, step) for name in ("rows", "usage_lines"))
        if rows is not None:
            MetricsFile(self._path, dataclasses.replace(rows, over=True)).close()
        if usage_lines is not None:
            UsageFile(self._usage_path, dataclasses.replace(usage_lines, over=True)).close()

    def _resume_window(self, window: Window, states: list[dict[str, Any]]) -> None:
        """Each process its own part; where their number is another, the first one takes all."""
        if len(states) == processes.world_size():
            window.add_state(states[processes.rank()])
        elif processes.is_main():
            for state in states:
                window.add_state(state)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, AdaptationModule)
        if trainer.global_step == trainer.max_steps and trainer.enable_validation:
            # The last epoch is cut off: validate what training ends with, whatever its number.
            trainer.check_val_every_n_epoch, trainer.should_stop = 1, True
        due = trainer.global_step % self._every == 0
        if due and trainer.global_step > self._written:
            self._write(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or "val/loss" not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics["val/loss"])
        log.info("step %d: validation loss %.4f", trainer.global_step, value)
        self._measured.validation.append({"step": trainer.global_step, "loss": value})
        self._emit(trainer, {"val/loss": value})

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, AdaptationModule)
        if trainer.global_step > self._written:
            self._write(trainer, pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._file is not None:
            self._file.close()
        if self._usage_file is not None:
            self._usage_file.close()

    def _write(self, trainer: pl.Trainer, module: AdaptationModule) -> None:
        window = module.window.over_processes()
        row = window.means()
        self._add(window, row, trainer.global_step)
        row["peak_memory_mb"] = peak_memory_mb()
        if module.grad_norm is not None:
            row["grad_norm"] = float(module.grad_norm)
        row |= {f"lr/{name}": rate for name, rate in module.learning_rates.items()}
        if window.routing:
            row["routing/entropy"] = float(window.routing.mean(lambda layer: layer.entropy))
            row["routing/experts_active"] = float(window.routing.mean(lambda layer: layer.experts_per_token))
            self.usage = {name: layer.mean_probability.tolist() for name, layer in window.routing.items()}
            self.routing = {name: _layer_routing(layer) for name, layer in window.routing.items()}
            if trainer.is_global_zero:
                self._write_usage(trainer.global_step)
        self._emit(trainer, row)
        self._written = trainer.global_step
        module.window.reset()

    def _add(self, window: Window, means: dict[str, float], step: int) -> None:
        measured = self._measured
        measured.steps = step
        measured.rows += window.rows
        measured.tokens += window.tokens
        measured.seconds += window.rows / means["samples_per_second"]
        measured.loss = means["loss/task"]

    def _write_usage(self, step: int) -> None:
        if self._usage_file is None:
            self._usage_file = UsageFile(self._usage_path)
        self._usage_file.write(step, self.usage)

    def _emit(self, trainer: pl.Trainer, values: dict[str, float]) -> None:
        if self._file is None:
            return
        seconds = time.perf_counter() - self._started
        self._file.write({"step": trainer.global_step, "epoch": trainer.current_epoch, "seconds": seconds, **values})
        for sink in self._sinks:
            sink.log_metrics(values, trainer.global_step)


def _kept(resumed: dict[str, Any], name: str, step: int) -> Kept | None:
    """What a checkpoint remembers of one of the files; None where it had no line."""
    lines = resumed[name]
    return Kept(lines, resumed.get("checksums", {}).get(name), step) if lines else None


def _layer_routing(layer: LayerStatistics) -> LayerRouting:
    return LayerRouting(
        usage=[round(share, 6) for share in layer.mean_probability.tolist()],
        entropy=round(float(layer.entropy), 6),
        experts_per_token=round(float(layer.experts_per_token), 6),
    )


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


def checkpoint_callback(folder: Path, config: CallbacksConfig) -> ModelCheckpoint:
    """Checkpoints ``checkpoints/step-N.ckpt`` and ``checkpoints/last.ckpt``, written after an optimiser step."""
    return ModelCheckpoint(
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
