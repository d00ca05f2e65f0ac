"""One training: Lightning's Trainer as the configuration asks for it."""

from __future__ import annotations

import logging
import os
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
from lime.runs.checkpoints import AtomicCheckpointIO
from lime.system.slurm import under_slurm
from lime.training.callbacks import InterruptCallback, ProgressCallback, checkpoint_callback
from lime.training.measuring import MetricsCallback, Sink
from lime.training.module import AdaptationModule

log = logging.getLogger(__name__)


def fit(
    config: TrainConfig,
    model: Any,
    backbone: Backbone,
    data: MMTDataModule,
    device: torch.device,
    folder: Path,
    checkpoint: Path | None,
    sinks: list[Sink],
) -> tuple[MetricsCallback, bool]:
    """Train the adapters of ``model`` in place; what was measured, and whether the training diverged.

    Args:
        folder: the run's folder.
        checkpoint: where to go on from.
        sinks: where metrics go besides the run's own files.
    """
    balance = config.lime.balance if config.lime.enabled else None
    known = {"name": backbone.name, "fingerprint": backbone.fingerprint}
    module = AdaptationModule(model, config.optim, balance, config.seed, backbone=known)
    metrics = MetricsCallback(
        folder, config.trainer.log_every_n_steps, sinks, continues=is_continued(checkpoint, folder)
    )
    callbacks: list[Callback] = [metrics]
    if config.callbacks.progress and processes.is_main():
        callbacks.append(ProgressCallback())
    if config.callbacks.checkpoint:
        callbacks.append(checkpoint_callback(folder, config.callbacks))
    callbacks.append(InterruptCallback(folder))
    trainer = _trainer(config, device, folder, callbacks)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    metrics.check_files(trainer.global_step)
    return metrics, _diverged(module)


def is_continued(checkpoint: Path | None, folder: Path) -> bool:
    """Whether a run goes on from a checkpoint of its own folder."""
    return checkpoint is not None and folder.resolve() in checkpoint.resolve().parents


def checkpoint_activations(model: Any) -> None:
    """Recompute activations in the backward pass."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()


def _trainer(config: TrainConfig, device: torch.device, folder: Path, callbacks: list[Callback]) -> pl.Trainer:
    options, on_gpu = config.trainer, device.type == "cuda"
    trainer = pl.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=strategy_of(options, config.peft.scope),
        plugins=_plugins(options.strategy),
        precision=resolved_precision(options.precision, on_gpu),  # type: ignore[arg-type]
        max_epochs=options.max_epochs,
        max_steps=options.max_steps if options.max_steps is not None else -1,
        accumulate_grad_batches=options.accumulate_grad_batches,
        gradient_clip_val=options.gradient_clip_val,
        deterministic="warn" if options.deterministic and on_gpu else False,
        check_val_every_n_epoch=options.validate_every_n_epochs or 1,
        limit_val_batches=1.0 if options.validate_every_n_epochs is not None else 0,
        num_sanity_val_steps=0,
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=config.callbacks.checkpoint,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    # Lightning's own handler of SIGTERM would end the run within an accumulation window, with exit code 0.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


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
