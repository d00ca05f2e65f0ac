"""train.py: adapt a backbone, evaluate it frozen and adapted, and leave a whole record behind."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

import lime.tuner
from lime.config.reuse import RUN_FILE
from lime.config.schema import TrainConfig
from lime.data.config import OWN
from lime.distributed import processes
from lime.distributed.devices import device_of, process_group, processes_here
from lime.distributed.launch import in_processes, started_from_outside
from lime.distributed.strategies import check_strategy
from lime.evaluation.aggregation import Evaluation
from lime.inference.evaluation import answer_adapted, journal_of, report
from lime.inference.frozen import answer_frozen, asks_frozen
from lime.inference.journal import FOLDER as PARTIAL
from lime.inference.rows import TestRows
from lime.jobs.setup import described, lock_of_run, media_errors_as_input_errors, open_data, prepare_process
from lime.loggers.several import RunLogger, opened
from lime.models.loading import load_backbone
from lime.runs.checkpoints import FOLDER as CHECKPOINTS
from lime.runs.checkpoints import checkpoint_to_resume, step_of
from lime.runs.folders import sign_configuration
from lime.runs.lock import run_lock
from lime.runs.record import Parameters
from lime.runs.status import RunRecord, write_config
from lime.system import interrupts
from lime.system.atomic import remove_leftovers, replacing_folder
from lime.system.limits import check_files
from lime.system.nested import plain
from lime.training.extras import made_extras
from lime.training.fit import checkpoint_activations, fit, is_continued
from lime.training.optimizer import check_optimizer, optimizer_groups
from lime.training.preflight.plan import preflight_of_run

log = logging.getLogger(__name__)


def train(config: TrainConfig, output_dir: Path, overrides: Sequence[str] = ()) -> Evaluation | None:
    """Run the main job into ``output_dir``; None with ``evaluation.mode=none``, which reads no test row.

    The folder then holds config.yaml, environment.json, status.json, record.json, metrics.csv, routing.jsonl, adapter/,
    checkpoints/, predictions.jsonl, results.json and results.csv.

    Raises:
        ValueError, OSError: what the user can fix (missing data, unreadable media, targets that match nothing, a
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
    with process_group(here * config.trainer.num_nodes, config.trainer.devices), media_errors_as_input_errors():
        folder = processes.from_main(output_dir)
        record = RunRecord(folder, dataclasses.asdict(config), overrides, writes=processes.is_main())
        with lock_of_run(folder, "run"), record, interrupts.blamed():
            return _Run(config, folder, overrides, record).run()


class _Run:
    """The phases of a run, in the order of :meth:`run`."""

    def __init__(self, config: TrainConfig, folder: Path, overrides: Sequence[str], record: RunRecord):
        self.config, self.folder, self.overrides, self.record = config, folder, list(overrides), record
        self.settings = dataclasses.asdict(config)

    def run(self) -> Evaluation | None:
        config = self.config
        check_files(config.data.num_workers)
        prepare_process(config.seed, config.trainer.num_threads)
        self.device = device_of(config.trainer.accelerator, config.trainer.devices)
        self.extras = made_extras(config)
        self._begin()
        self._open()
        if config.trainer.preflight:  # before the first phase
            to_ask = self.tests is not None and asks_frozen(self.backbone, self.data, self.tests, config)
            preflight_of_run(config, self.model, self.data, self.device, self.folder, self.tests, answers_frozen=to_ask)
        with self._loggers() as loggers:
            frozen = self._frozen()
            self._fit(loggers)
            processes.barrier()
            return self._evaluate(self.tests, frozen, loggers) if self.tests is not None else None

    def _begin(self) -> None:
        """Where the run goes on from, and its folder."""
        checkpoint = None
        if processes.is_main():
            checkpoint = checkpoint_to_resume(self.config.ckpt_path, self.folder, self.settings)
            for place in (self.folder, self.folder / CHECKPOINTS, self.folder / PARTIAL):
                remove_leftovers(place)
            write_config(self.folder / "config.yaml", self.settings)
            sign_configuration(self.folder, "run")
        self.checkpoint = processes.from_main(checkpoint)

    def _open(self) -> None:
        """Backbone, data and adapters."""
        config = self.config
        self.backbone = load_backbone(config.model)
        self.data = open_data(config, self.backbone, config.trainer.batch_size)
        self.data.setup("fit")
        answers = config.evaluation.mode != "none"
        if answers and config.data.name == OWN and not self.data.dataset.tests:
            log.warning("%s has no test rows: nothing is evaluated", self.data.dataset.root)
            answers = False
        self.tests = TestRows(self.data, config.evaluation.splits, config.evaluation.metrics) if answers else None
        self.info = described(config.seed, self.backbone, self.data, overrides=self.overrides)
        self.record.environment(self.info, self.data.dataset, self.data.epoch_rows)
        self.backbone.model.to(self.device)  # type: ignore[arg-type]
        self.model, self.applied = lime.tuner.apply(self.backbone.model, config.settings())
        lime.tuner.calibrate(self.model, self.data.sample_batches())
        optimizer_groups(self.model, config.optim)  # refuses a rate that nothing takes, before anything runs
        if config.trainer.gradient_checkpointing:
            checkpoint_activations(self.model)

    def _frozen(self) -> list[str | None] | None:
        if self.tests is None:
            return None
        with self.model.disable_adapter():
            return answer_frozen(
                self.backbone, self.data, self.tests, self.config, self.config.callbacks.progress, self.folder
            )

    def _fit(self, loggers: Sequence[RunLogger]) -> None:
        fitted = fit(
            self.config, self.model, self.backbone, self.data, self.device, self.folder, self.checkpoint, loggers,
            self.extras,
        )  # fmt: skip
        self.training = fitted.training
        if fitted.diverged:
            self.record.diverged()
        parameters = Parameters(self.applied.trainable, self.applied.total_parameters, self.applied.layers)
        self.record.trained(parameters, fitted.training, fitted.routing)
        if processes.is_main():
            self._save_adapter()
        for logger in loggers:
            logger.log_training(parameters, fitted.training, fitted.usage, self.record.adapter_bytes)

    def _save_adapter(self) -> None:
        """``adapter/`` in peft's format, and beside it what eval.py needs to repeat the evaluation."""
        folder = self.folder / "adapter"
        run = {"config": plain(self.settings), "backbone": self.info["backbone"]}
        with replacing_folder(folder, "adapter", overwrite=True) as temporary:  # the run's folder was claimed
            self.model.save_pretrained(str(temporary))
            text = yaml.safe_dump(run, sort_keys=False, allow_unicode=True)
            (temporary / RUN_FILE).write_text(text, encoding="utf-8")
        self.record.saved(folder)
        log.info("adapter of %s saved in %s", self.backbone.name, folder)

    def _evaluate(self, tests: TestRows, frozen: list[str | None] | None, loggers: Sequence[RunLogger]) -> Evaluation:
        """Answer and score the test rows, and write the results."""
        config, data, model = self.config, self.data, self.model
        if config.trainer.strategy in ("fsdp", "deepspeed"):  # whole again in every process, from the saved adapter
            model = lime.tuner.load(load_backbone(config.model).model, self.folder / "adapter")[0]
        model.to(self.device)
        started = time.perf_counter()
        journal = journal_of(self.folder, self.settings, self.backbone, data, tests, self.folder / "adapter")
        predictions = answer_adapted(model, data, tests, config, config.callbacks.progress, frozen, journal)
        seconds = time.perf_counter() - started
        about: dict[str, Any] = {
            "config": self.settings,
            "environment": self.info,
            "trainable_parameters": self.applied.trainable,
            "adapted_layers": self.applied.layers,
            "rows_left_out": data.left_out.counts(),
        }
        if self.training.weights_step is not None:
            about["weights_step"] = self.training.weights_step
        evaluation = report(
            predictions, data.dataset.table, tests.allowed, config, self.folder, about, writes=processes.is_main()
        )
        self.record.answered(seconds, evaluation, predictions, data.left_out.counts())
        for logger in loggers:
            logger.log_run(predictions, evaluation, data)
        return evaluation

    @contextmanager
    def _loggers(self) -> Iterator[list[RunLogger]]:
        """Where metrics go besides the run's files; from the main process alone."""
        if not processes.is_main():
            yield []
            return
        settings = plain(self.settings) | {"environment": self.info}
        goes_on_from = self.checkpoint if is_continued(self.checkpoint, self.folder) else None
        after = None if goes_on_from is None else step_of(goes_on_from)
        with opened(
            self.config.logger, self.config.name, self.folder, settings, self.extras.loggers, after_step=after
        ) as loggers:
            yield loggers
