"""eval.py: an adapter, a frozen backbone, or saved predictions."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

import lime.tuner
from lime.config.reuse import RUN_FILE, is_own_run, read_run, taken_from, with_run_config
from lime.config.schema import EvalConfig
from lime.data.tasks import table_of
from lime.distributed import processes
from lime.distributed.devices import device_of, process_group, processes_here
from lime.distributed.launch import in_processes, started_from_outside
from lime.evaluation.aggregation import Evaluation
from lime.evaluation.predictions import read_predictions, rescore
from lime.evaluation.report import stored_allowed_answers
from lime.inference.evaluation import answer_adapted, journal_of, report
from lime.inference.frozen import answer_frozen
from lime.inference.journal import FOLDER as PARTIAL
from lime.inference.rows import TestRows
from lime.jobs.setup import described, lock_of_run, media_errors_as_input_errors, open_data, prepare_process
from lime.models.loading import load_backbone
from lime.runs.adapter import adapter_folder, check_backbone, check_recorded
from lime.runs.environment import environment
from lime.runs.folders import sign_configuration
from lime.runs.lock import run_lock
from lime.runs.status import RunStatus, write_config
from lime.system import interrupts
from lime.system.atomic import remove_leftovers, write_json
from lime.system.limits import check_files

log = logging.getLogger(__name__)


def evaluate(config: EvalConfig, output_dir: Path, overrides: Sequence[str] = ()) -> Evaluation:
    """Run an evaluation into ``output_dir``.

    Args:
        config: the checked configuration.
        output_dir: folder of this evaluation.
        overrides: what the command line set; the rest is taken from the adapter's run.

    Raises:
        ValueError, OSError: an adapter of another backbone, missing data, unreadable predictions; the message says
            what to do.
    """
    if config.predictions is None and config.devices != 1 and not started_from_outside():
        with run_lock(output_dir):
            return in_processes(processes_here(config.devices, "auto"), _evaluate, config, output_dir, list(overrides))
    return _evaluate(config, output_dir, overrides)


def _evaluate(config: EvalConfig, output_dir: Path, overrides: Sequence[str]) -> Evaluation:
    """The part of one process."""
    with process_group(_count(config)), media_errors_as_input_errors():
        folder = processes.from_main(output_dir)
        with lock_of_run(folder, "evaluation"), RunStatus(folder, processes.is_main()), interrupts.blamed():
            if config.predictions is not None:
                return _score_again(config, Path(config.predictions), folder)
            return _evaluate_model(config, folder, overrides)


def _count(config: EvalConfig) -> int:
    """Processes in all: as many as torchrun or SLURM started, else as configured."""
    if started_from_outside() and config.predictions is None:
        return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    return 1


def _score_again(config: EvalConfig, path: Path, output_dir: Path) -> Evaluation:
    records, table = read_predictions(path), table_of(path)
    present = dict.fromkeys(record.split for record in records)
    wanted, absent = table.splits_of(config.evaluation.splits, present)
    if absent:
        raise ValueError(f"evaluation.splits: {path} holds no predictions of {', '.join(absent)}")
    records = [record for record in records if record.split in wanted]
    stored: dict[str, Any] = dict(stored_allowed_answers(path) or {})
    allowed = {split: stored.get(split, task.labels) for split, task in table.tasks.items()}
    log.info("scoring %d saved predictions of %s again", len(records), path)
    info = {"predictions": str(path), "environment": environment(config.seed)}
    return report(rescore(records, table.tasks, allowed), table, allowed, config, output_dir, info)


def _evaluate_model(config: EvalConfig, output_dir: Path, overrides: Sequence[str]) -> Evaluation:
    run: dict[str, Any] | None = None
    if config.adapter is not None:
        with processes.main_first():
            folder = adapter_folder(config.adapter)
        config = dataclasses.replace(config, adapter=str(folder))
        run = read_run(folder)
        check_recorded(folder)
        own = is_own_run(folder)
        config = with_run_config(config, run["config"], overrides, own=own)
        _tell_taken(folder, run, own)
    check_files(config.data.num_workers)
    prepare_process(config.seed)
    settings = dataclasses.asdict(config)
    if processes.is_main():
        for place in (output_dir, output_dir / PARTIAL):
            remove_leftovers(place)
        write_config(output_dir / "config.yaml", settings)
        sign_configuration(output_dir, "evaluation")
    backbone = load_backbone(config.model)
    if run is not None:
        check_backbone(str(config.adapter), run["backbone"], backbone)
    if config.model.device_map is None:
        backbone.model.to(device_of("auto"))  # type: ignore[arg-type]
    data = open_data(config, backbone, batch_size=config.evaluation.batch_size)
    tests = TestRows(data, config.evaluation.splits, config.evaluation.metrics)
    info = described(config.seed, backbone, data)
    if processes.is_main():
        write_json(output_dir / "environment.json", info)
    frozen = answer_frozen(backbone, data, tests, config, True, output_dir) if run is not None else None
    model: nn.Module = backbone.model
    if config.adapter is not None:
        model = lime.tuner.load(backbone.model, config.adapter)[0]
        if config.model.device_map is None:
            model.to(next(backbone.model.parameters()).device)
    journal = journal_of(output_dir, settings, backbone, data, tests, Path(config.adapter or "."))
    predictions = answer_adapted(model, data, tests, config, True, frozen, journal)
    kept = {"config": settings, "environment": info, "rows_left_out": data.left_out.counts()}
    return report(predictions, data.dataset.table, tests.allowed, config, output_dir, kept, writes=processes.is_main())


def _tell_taken(folder: Path, run: dict[str, Any], own: bool) -> None:
    if own:
        log.info("%s is of a run of yours: its model, data and evaluation settings are taken", folder)
        return
    taken = ", ".join(f"{key}={str(value)[:60]!r}" for key, value in taken_from(run["config"]).items()) or "nothing"
    log.info(
        "%s is not marked as of a run of yours. Taken from its %s, where the command line does not set it: %s. Model, "
        "data and all else are those of the command line; it says that it adapts %.60r",
        folder, RUN_FILE, taken, run["backbone"]["name"],
    )  # fmt: skip
