"""What is measured at logged steps, and written to metrics.csv and routing.jsonl."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from lime.distributed import processes
from lime.runs.record import LayerRouting, Training
from lime.system.memory import forget_peak, peak_memory_mb
from lime.training.metrics import COLUMNS, FileState, LineFile, MetricsFile, UsageFile, Window
from lime.training.module import AdaptationModule
from lime.tuner.routing.recorder import LayerStatistics

log = logging.getLogger(__name__)

LINE_FILES: dict[str, tuple[str, type[LineFile]]] = {
    "rows": ("metrics.csv", MetricsFile),
    "usage_lines": ("routing.jsonl", UsageFile),
}
"""Files that are written line by line, by their names in a checkpoint."""


class Sink(Protocol):
    """Where metrics go besides the run's own files, e.g. Weights & Biases."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None: ...


class ForwardingLogger(Logger):
    """What callbacks of the user's log through Lightning, to the sinks; the run's own metrics have gone there already.

    Args:
        step: the optimiser step now.
    """

    name, version = "lime", 0

    def __init__(self, sinks: Sequence[Sink], step: Callable[[], int]):
        super().__init__()
        self._sinks, self._now = sinks, step

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        new = {name: value for name, value in metrics.items() if name not in COLUMNS}
        for sink in self._sinks if new else ():
            sink.log_metrics(new, self._now())

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration is logged by the run."""


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
        rates: columns of learning rates, where there are more than the usual two.
    """

    def __init__(
        self,
        folder: Path,
        every_n_steps: int,
        sinks: Sequence[Sink],
        *,
        continues: bool = False,
        rates: Sequence[str] = (),
    ):
        self._folder, self._continues, self._rates = folder, continues, rates
        self._files: dict[str, LineFile] = {}
        self._resumed: dict[str, Any] | None = None
        self._every, self._sinks = every_n_steps, sinks
        self._written = 0
        self._started = time.perf_counter()
        self.usage: dict[str, list[float]] = {}
        self.routing: dict[str, LayerRouting] = {}
        self._measured = Training()

    def measured(self) -> Training:
        """Steps, time, throughput, memory and validation losses of the whole training, for the record."""
        total = self._measured
        seconds = total.seconds or float("inf")
        return dataclasses.replace(
            total,
            peak_memory_mb=peak_memory_mb(),
            samples_per_second=total.rows / seconds,
            tokens_per_second=total.tokens / seconds,
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, AdaptationModule)
        self._written = trainer.global_step
        self._started = time.perf_counter()
        pl_module.window.reset()
        forget_peak()
        states = self._states(trainer.global_step)
        if self._resumed is not None:
            self._resume_window(pl_module.window, self._resumed["windows"])
            if self._continues:
                self._started -= self._resumed["seconds"]
                self._written = self._resumed["written"]
        if trainer.is_global_zero:
            for name in dict.fromkeys(["rows", *states]):
                self._open(name, states.get(name))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, AdaptationModule)
        checkpoint["metrics"] = {
            "windows": processes.gather(pl_module.window.state()),
            "written": self._written,
            **{name: self._files[name].lines if name in self._files else 0 for name in LINE_FILES},
            "checksums": {name: file.checksum for name, file in self._files.items()},
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
        if self._files or not processes.is_main():
            return
        for name, state in self._states(step).items():
            self._open(name, dataclasses.replace(state, ended=True)).close()

    def _open(self, name: str, state: FileState | None = None) -> LineFile:
        file, kind = LINE_FILES[name]
        options = {"rates": self._rates} if kind is MetricsFile else {}
        self._files[name] = kind(self._folder / file, state, **options)
        return self._files[name]

    def _states(self, step: int) -> dict[str, FileState]:
        """What the checkpoint of a run that goes on remembers of each file that had lines."""
        resumed = self._resumed if self._continues and self._resumed is not None else {}
        checksums = resumed.get("checksums", {})
        return {
            name: FileState(lines, checksums.get(name), step) for name in LINE_FILES if (lines := resumed.get(name))
        }

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
        if trainer.enable_validation and _ends(trainer):
            # Validate what training ends with, whatever the number of the epoch or batch.
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
        for file in self._files.values():
            file.close()

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
                usage = self._files.get("usage_lines") or self._open("usage_lines")
                usage.write({"step": trainer.global_step, "usage": self.usage})
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

    def _emit(self, trainer: pl.Trainer, values: dict[str, float]) -> None:
        if "rows" not in self._files:
            return
        seconds = time.perf_counter() - self._started
        self._files["rows"].write(
            {"step": trainer.global_step, "epoch": trainer.current_epoch, "seconds": seconds, **values}
        )
        for sink in self._sinks:
            sink.log_metrics(values, trainer.global_step)


def _ends(trainer: pl.Trainer) -> bool:
    """Whether training ends with this batch: by max_steps or, with validations within epochs, with the last epoch."""
    loop, within = trainer.fit_loop.epoch_loop, trainer.val_check_interval != 1.0
    last = within and trainer.current_epoch + 1 == trainer.max_epochs and loop._num_ready_batches_reached()
    return trainer.global_step == trainer.max_steps or last


def _layer_routing(layer: LayerStatistics) -> LayerRouting:
    return LayerRouting(
        usage=[round(share, 6) for share in layer.mean_probability.tolist()],
        entropy=round(float(layer.entropy), 6),
        experts_per_token=round(float(layer.experts_per_token), 6),
    )
