"""train.py: adapt a backbone, evaluate it frozen and adapted, and leave a whole record behind."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

import lime.tuner
from lime.config.reuse import RUN_FILE
from lime.config.schema import TrainConfig
from lime.data.datamodule import MMTDataModule
from lime.distributed import processes
from lime.distributed.devices import device_of, process_group, processes_here, resolved_precision
from lime.distributed.launch import OWN, in_processes, started_from_outside
from lime.distributed.strategies import check_strategy, strategy_of
from lime.evaluation.aggregation import Evaluation
from lime.evaluation.predictions import Prediction
from lime.inference.evaluation import answer_adapted, journal_of, report
from lime.inference.frozen import answer_frozen, asks_frozen
from lime.inference.journal import FOLDER as PARTIAL
from lime.inference.rows import TestRows
from lime.jobs.setup import lock_of_run, media_errors_as_input_errors, open_data, prepare_process
from lime.models.loading import Backbone, load_backbone
from lime.runs.checkpoints import FOLDER as CHECKPOINTS
from lime.runs.checkpoints import AtomicCheckpointIO, checkpoint_to_resume
from lime.runs.folders import sign_configuration
from lime.runs.lock import run_lock
from lime.runs.record import Parameters
from lime.runs.status import RunRecord, environment, plain, write_config
from lime.system import interrupts
from lime.system.atomic import remove_leftovers, replacing_folder, write_json
from lime.system.limits import check_files
from lime.system.slurm import under_slurm
from lime.training.callbacks import MetricsCallback, ProgressCallback, checkpoint_callback
from lime.training.module import AdaptationModule, check_optimizer
from lime.training.preemption import InterruptCallback
from lime.training.preflight.plan import preflight_of_run
from lime.tuner.reporting import ApplyReport

log = logging.getLogger(__name__)


def train(config: TrainConfig, output_dir: Path, overrides: Sequence[str] = ()) -> Evaluation | None:
    """Run the main job into ``output_dir``; None with ``evaluation.mode=none``, which reads no test row.

    The folder then holds config.yaml, environment.json, status.json, record.json, metrics.csv, routing.jsonl, adapter/,
    checkpoints/, predictions.jsonl, results.json and results.csv.

    Raises:
        ValueError, OSError: what the user can mend (missing data, unreadable media, targets that match nothing, a
            checkpoint of another model); the message says what to do.
    """
    check_strategy(config.trainer)
    check_optimizer(config.optim)
    here = processes_here(config.trainer.devices, config.trainer.accelerator)
    if here > 1 and config.trainer.num_nodes == 1 and not started_from_outside():
        with run_lock(output_dir):
            return in_processes(here, _train, config, output_dir, list(overrides))
    return _train(config, output_dir, overrides)


def _train(config: TrainConfig, output_dir: Path, overrides: Sequence[str]) -> Evaluation | None:
    """The part of one process."""
    here = processes_here(config.trainer.devices, config.trainer.accelerator)
    with process_group(here * config.trainer.num_nodes), media_errors_as_input_errors():
        folder = processes.from_main(output_dir)
        settings = dataclasses.asdict(config)
        record = (RunRecord if processes.is_main() else _NoRecord)(folder, settings, overrides)
        with lock_of_run(folder, "run"), record, interrupts.blamed():
            return _Run(config, folder, overrides, settings, record).run()


class _NoRecord(RunRecord):
    """The record in the processes that write no files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def environment(self, info: dict[str, Any], data_fingerprint: str) -> None:
        return

    def saved(self, adapter: Path) -> None:
        return

    def _write(self, status: str, error: dict[str, str] | None = None) -> None:
        return


class _Run:
    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        overrides: Sequence[str],
        settings: dict[str, Any],
        record: RunRecord,
    ):
        self.config, self.folder = config, folder
        self.overrides = list(overrides)
        self.settings, self.record = settings, record

    def run(self) -> Evaluation | None:
        config = self.config
        check_files(config.data.num_workers)
        prepare_process(config.seed, config.trainer.num_threads)
        self.checkpoint = processes.from_main(
            checkpoint_to_resume(config.ckpt_path, self.folder, self.settings) if processes.is_main() else None
        )
        if processes.is_main():
            for place in (self.folder, self.folder / CHECKPOINTS, self.folder / PARTIAL):
                remove_leftovers(place)
            write_config(self.folder / "config.yaml", self.settings)
            sign_configuration(self.folder, "run")
        self.device = device_of(config.trainer.accelerator)
        backbone = load_backbone(config.model)
        data = open_data(config, backbone, config.trainer.batch_size)
        data.setup("fit")
        answers = config.evaluation.mode != "none"
        tests = TestRows(data, config.evaluation.splits) if answers else None
        self.info = self._record_environment(backbone, data)
        backbone.model.to(self.device)  # type: ignore[arg-type]
        model, applied = lime.tuner.apply(backbone.model, config.settings())
        if config.trainer.gradient_checkpointing:
            checkpoint_activations(model)
        if config.trainer.preflight:  # before the first phase
            to_ask = tests is not None and asks_frozen(backbone, data, tests, config)
            preflight_of_run(config, model, data, self.device, self.folder, tests, answers_frozen=to_ask)
        wandb_run = self._wandb()
        failed = True
        try:
            frozen = None
            if tests is not None:
                with model.disable_adapter():
                    frozen = answer_frozen(backbone, data, tests, config, config.callbacks.progress, self.folder)
            metrics = self.fit(model, backbone, data, [wandb_run] if wandb_run else [])
            parameters = Parameters(applied.trainable, applied.total_parameters, applied.layers)
            self.record.trained(parameters, metrics.measured(), metrics.routing)
            if processes.is_main():
                self.save_adapter(model, backbone)
            if wandb_run is not None:
                wandb_run.log_training(parameters, metrics.measured(), metrics.usage, self.record.adapter_bytes)
            processes.barrier()
            evaluation = None
            if tests is not None:
                if config.trainer.strategy in ("fsdp", "deepspeed"):
                    model = self._whole_model()
                evaluation, predictions = self.evaluate(model, backbone, applied, data, tests, frozen)
                if wandb_run is not None:
                    wandb_run.log_run(predictions, evaluation, data)
            failed = False
        finally:
            if wandb_run is not None:
                wandb_run.finish(failed)
        return evaluation

    def fit(self, model: Any, backbone: Backbone, data: MMTDataModule, sinks: list[Any]) -> MetricsCallback:
        """Train the adapters of ``model`` in place."""
        options = self.config.trainer
        module = AdaptationModule(
            model,
            self.config.optim,
            self.config.lime.balance if self.config.lime.enabled else None,
            self.config.seed,
            backbone={"name": backbone.name, "fingerprint": backbone.fingerprint},
        )
        metrics = MetricsCallback(self.folder, options.log_every_n_steps, sinks, continues=self._continues())
        callbacks: list[Callback] = [metrics]
        if self.config.callbacks.progress and processes.is_main():
            callbacks.append(ProgressCallback())
        if self.config.callbacks.checkpoint:
            callbacks.append(checkpoint_callback(self.folder, self.config.callbacks))
        callbacks.append(InterruptCallback(self.folder))
        on_gpu = self.device.type == "cuda"
        validates = options.validate_every_n_epochs is not None
        trainer = pl.Trainer(
            accelerator="gpu" if on_gpu else "cpu",
            devices=options.devices,
            num_nodes=options.num_nodes,
            strategy=strategy_of(options, self.config.peft.scope),
            plugins=_plugins(options.strategy),
            precision=resolved_precision(options.precision, on_gpu),  # type: ignore[arg-type]
            max_epochs=options.max_epochs,
            max_steps=options.max_steps if options.max_steps is not None else -1,
            accumulate_grad_batches=options.accumulate_grad_batches,
            gradient_clip_val=options.gradient_clip_val,
            deterministic="warn" if options.deterministic and on_gpu else False,
            check_val_every_n_epoch=options.validate_every_n_epochs or 1,
            limit_val_batches=1.0 if validates else 0,
            num_sanity_val_steps=0,
            logger=False,
            callbacks=callbacks,
            enable_checkpointing=self.config.callbacks.checkpoint,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=self.folder,
        )
        # Lightning's own handler of SIGTERM would end the run within an accumulation window, with exit code 0.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        trainer.fit(module, datamodule=data, ckpt_path=self.checkpoint)
        metrics.check_files(trainer.global_step)
        self._tell_divergence(module)
        return metrics

    def _continues(self) -> bool:
        """Whether the run goes on from a checkpoint of its own folder."""
        return self.checkpoint is not None and self.folder.resolve() in self.checkpoint.resolve().parents

    def _tell_divergence(self, module: AdaptationModule) -> None:
        """A run that ends with numbers that are not finite is told so, and reported all the same."""
        broken = [name for name, p in module.trainable_parameters().items() if not p.isfinite().all()]
        lost = module.grad_norm is not None and not module.last_loss.isfinite()  # None: no step was made this time
        if lost:
            log.warning("training diverged: the last step's loss is %s; see metrics.csv", module.last_loss.item())
        elif broken:
            log.warning("training diverged: %d parameters hold numbers that are not finite", len(broken))
        if processes.largest(int(bool(broken) or lost)):
            self.record.diverged()

    def _whole_model(self) -> Any:
        """The adapted model again, whole in every process, from the saved adapter."""
        backbone = load_backbone(self.config.model)
        return lime.tuner.load(backbone.model, self.folder / "adapter")[0]

    def evaluate(
        self,
        model: Any,
        backbone: Backbone,
        applied: ApplyReport,
        data: MMTDataModule,
        tests: TestRows,
        frozen: list[str | None] | None,
    ) -> tuple[Evaluation, list[Prediction]]:
        """Answer and score the test rows, and write the results."""
        config = self.config
        model.to(self.device)
        started = time.perf_counter()
        journal = journal_of(self.folder, self.settings, backbone, data, tests, self.folder / "adapter")
        predictions = answer_adapted(model, data, tests, config, config.callbacks.progress, frozen, journal)
        seconds = time.perf_counter() - started
        kept = {
            "config": self.settings,
            "environment": self.info,
            "trainable_parameters": applied.trainable,
            "adapted_layers": applied.layers,
            "rows_left_out": data.left_out.counts(),
        }
        evaluation = report(predictions, tests.allowed, config, self.folder, kept, writes=processes.is_main())
        self.record.answered(seconds, evaluation, predictions, data.left_out.counts())
        return evaluation, predictions

    def save_adapter(self, model: Any, backbone: Backbone) -> None:
        """``adapter/`` in peft's format, and beside it what eval.py needs to repeat the evaluation."""
        folder = self.folder / "adapter"
        run = {"config": plain(self.settings), "backbone": self.info["backbone"]}
        with replacing_folder(folder, "adapter", overwrite=True) as temporary:  # the run's folder was claimed
            model.save_pretrained(temporary)
            (temporary / RUN_FILE).write_text(
                yaml.safe_dump(run, sort_keys=False, allow_unicode=True), encoding="utf-8"
            )
        self.record.saved(folder)
        log.info("adapter of %s saved in %s", backbone.name, folder)

    def _record_environment(self, backbone: Backbone, data: MMTDataModule) -> dict[str, Any]:
        info = environment(self.config.seed) | {
            "overrides": self.overrides,
            "data_fingerprint": data.dataset.fingerprint,
            "backbone": {
                "name": backbone.name,
                "fingerprint": backbone.fingerprint,
                "processing": backbone.processing,
                "revision": backbone.revision,
            },
        }
        if processes.is_main():
            write_json(self.folder / "environment.json", info)
        self.record.environment(info, data.dataset.fingerprint)
        return info

    def _wandb(self) -> Any:
        if self.config.logger.wandb is None or not processes.is_main():
            return None
        from lime.loggers.wandb import WandbRun

        settings = plain(self.settings) | {"environment": self.info}
        options = self.config.logger.wandb
        return WandbRun(options, self.config.name, self.folder, settings, continues=self._continues())


def _plugins(strategy: str) -> list[Any]:
    """Whole checkpoints (DeepSpeed writes its own), and who started the processes, where Lightning would guess."""
    plugins: list[Any] = [AtomicCheckpointIO()] if strategy != "deepspeed" else []
    if under_slurm():
        several = started_from_outside() and OWN not in os.environ
        plugins.append(SLURMEnvironment(auto_requeue=False) if several else LightningEnvironment())
    return plugins


def checkpoint_activations(model: Any) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
