"""One training: Lightning's Trainer as the configuration asks for it."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

from lime.config.schema import TrainConfig
from lime.data.datamodule import MMTDataModule
from lime.distributed import processes
from lime.distributed.devices import resolved_precision
from lime.distributed.launch import OWN, started_from_outside
from lime.distributed.strategies import strategy_of
from lime.models.loading import Backbone
from lime.runs.checkpoints import FOLDER as CHECKPOINTS
from lime.runs.checkpoints import AtomicCheckpointIO
from lime.runs.record import LayerRouting, Training
from lime.system.slurm import under_slurm
from lime.training.callbacks import InterruptCallback, ProgressCallback, checkpoint_callback
from lime.training.extras import Extras
from lime.training.measuring import ForwardingLogger, MetricsCallback, Sink
from lime.training.module import AdaptationModule
from lime.training.optimizer import optimizer_groups
from lime.training.validation import BestCheckpoint, EarlyStop, validation_callbacks

log = logging.getLogger(__name__)


SPEAKING = {"profiler", "enable_model_summary"}
"""Arguments of the Trainer whose effect is what Lightning logs."""


@dataclass(frozen=True)
class Fitted:
    """What a training measured: the last routing of each layer, and the usage of its experts, beside it."""

    training: Training
    routing: dict[str, LayerRouting]
    usage: dict[str, list[float]]
    diverged: bool


def fit(
    config: TrainConfig,
    model: Any,
    backbone: Backbone,
    data: MMTDataModule,
    device: torch.device,
    folder: Path,
    checkpoint: Path | None,
    sinks: Sequence[Sink],
    extras: Extras,
) -> Fitted:
    """Train the adapters of ``model`` in place. They end as ``callbacks.weights`` says.

    Args:
        folder: the run's folder.
        checkpoint: where to go on from.
        sinks: where metrics go besides the run's own files.
        extras: the user's callbacks and arguments of the Trainer.
    """
    balance = config.lime.balance if config.lime.enabled else None
    known = {"name": backbone.name, "fingerprint": backbone.fingerprint}
    module = AdaptationModule(model, config.optim, balance, config.seed, known, config.trainer.neftune_alpha)
    continues = is_continued(checkpoint, folder)
    rates = [f"lr/{group['name']}" for group in optimizer_groups(model, config.optim)]
    metrics = MetricsCallback(folder, config.trainer.log_every_n_steps, sinks, continues=continues, rates=rates)
    validation = validation_callbacks(folder / CHECKPOINTS, config.callbacks, continues=continues)
    callbacks: list[Callback] = [metrics, *validation, *extras.callbacks]
    if config.callbacks.progress and processes.is_main():
        callbacks.append(ProgressCallback())
    if config.callbacks.checkpoint:
        callbacks.append(checkpoint_callback(folder, config.callbacks))
    callbacks.append(InterruptCallback(folder))
    trainer = _trainer(config, device, folder, callbacks, sinks, extras)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    metrics.check_files(trainer.global_step)
    training = dataclasses.replace(
        metrics.measured(), stopped_early=any(isinstance(one, EarlyStop) and one.stopped for one in validation)
    )
    diverged = _diverged(module)
    if config.callbacks.weights == "best":
        training.weights_step = _take_best(module, validation)
    return Fitted(training, metrics.routing, metrics.usage, diverged)


def _take_best(module: AdaptationModule, callbacks: Sequence[Callback]) -> int | None:
    """Put the weights of the lowest validation loss into the model; the step that they are of, None without any."""
    path = next(one.best_model_path for one in callbacks if isinstance(one, BestCheckpoint))
    if not path:
        log.warning("callbacks.weights=best: there was no validation; the last weights are saved and evaluated")
        return None
    content = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(content["state_dict"], strict=False)
    log.info("the weights of step %d, of the lowest validation loss, are saved and evaluated", content["global_step"])
    return int(content["global_step"])


def is_continued(checkpoint: Path | None, folder: Path) -> bool:
    """Whether a run goes on from a checkpoint of its own folder."""
    return checkpoint is not None and folder.resolve() in checkpoint.resolve().parents


def checkpoint_activations(model: Any) -> None:
    """Recompute activations in the backward pass."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()


def _trainer(
    config: TrainConfig,
    device: torch.device,
    folder: Path,
    callbacks: list[Callback],
    sinks: Sequence[Sink],
    extras: Extras,
) -> pl.Trainer:
    options, on_gpu = config.trainer, device.type == "cuda"
    interval, every = options.val_check_interval, options.validate_every_n_epochs
    own = ForwardingLogger(sinks, lambda: trainer.global_step) if extras.callbacks else False
    arguments: dict[str, Any] = {
        "accelerator": "gpu" if on_gpu else device.type,
        "devices": options.devices,
        "num_nodes": options.num_nodes,
        "strategy": strategy_of(options, config.peft.scope),
        "precision": resolved_precision(options.precision, on_gpu),
        "max_epochs": options.max_epochs,
        "max_steps": options.max_steps if options.max_steps is not None else -1,
        "accumulate_grad_batches": options.accumulate_grad_batches,
        "gradient_clip_val": options.gradient_clip_val,
        "deterministic": "warn" if options.deterministic and on_gpu else False,
        # Batches are counted over the ends of epochs where no epoch is named.
        "check_val_every_n_epoch": every or (None if isinstance(interval, int) else 1),
        "val_check_interval": interval,
        "limit_val_batches": 1.0 if options.validates else 0,
        "num_sanity_val_steps": 0,
        "logger": own,
        "log_every_n_steps": options.log_every_n_steps,
        "callbacks": callbacks,
        "enable_checkpointing": True,  # none of its own where there are others: the end by a signal is always there
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
    }
    arguments |= extras.trainer | {"plugins": _plugins(options.strategy) + _listed(extras.trainer.get("plugins"))}
    if extras.trainer.keys() & SPEAKING:
        logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
    trainer = pl.Trainer(**arguments)
    # Lightning's own handler of SIGTERM would end the run within an accumulation window, with exit code 0.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _listed(plugins: Any) -> list[Any]:
    return plugins if isinstance(plugins, list) else [] if plugins is None else [plugins]


def _diverged(module: AdaptationModule) -> bool:
    """Whether a training ends with numbers that are not finite, in any process; said, and reported all the same."""
    broken = [name for name, p in module.trainable_parameters().items() if not p.isfinite().all()]
    lost = module.grad_norm is not None and not module.last_loss.isfinite()  # None: no step was made this time
    if lost:
        log.warning("training diverged: the last step's loss is %s; see metrics.csv", module.last_loss.item())
    elif broken:
        log.warning("training diverged: %d parameters hold numbers that are not finite", len(broken))
    return bool(processes.largest(int(bool(broken) or lost)))


def _plugins(strategy: str) -> list[Any]:
    """Whole checkpoints (DeepSpeed writes its own), and who started the processes, where Lightning would guess."""
    plugins: list[Any] = [AtomicCheckpointIO()] if strategy != "deepspeed" else []
    if under_slurm():
        several = started_from_outside() and OWN not in os.environ
        plugins.append(SLURMEnvironment(auto_requeue=False) if several else LightningEnvironment())
    return plugins
