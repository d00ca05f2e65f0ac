"""eval.py: an adapter, a frozen backbone, or saved predictions."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

import lime.tuner
from lime.config.reuse import read_run, with_run_config
from lime.config.schema import EvalConfig
from lime.data.tasks import TASKS
from lime.evaluation.aggregation import Evaluation
from lime.evaluation.predictions import read_predictions, rescore
from lime.evaluation.report import stored_allowed_answers
from lime.models.loading import Backbone, load_backbone
from lime.training.answering import TestRows, answer_adapted, answer_frozen, report
from lime.training.record import RunStatus, environment, write_config, write_json
from lime.training.setup import device_of, media_errors_as_input_errors, open_data, prepare_process

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
    output_dir.mkdir(parents=True, exist_ok=True)
    with RunStatus(output_dir), media_errors_as_input_errors():
        if config.predictions is not None:
            return _score_again(config, Path(config.predictions), output_dir)
        return _evaluate_model(config, output_dir, overrides)


def _score_again(config: EvalConfig, path: Path, output_dir: Path) -> Evaluation:
    records = read_predictions(path)
    stored: dict[str, Any] = dict(stored_allowed_answers(path) or {})
    allowed = {split: stored.get(split, task.labels) for split, task in TASKS.items()}
    log.info("scoring %d saved predictions of %s again", len(records), path)
    info = {"predictions": str(path), "environment": environment(config.seed)}
    return report(rescore(records, TASKS, allowed), allowed, config, output_dir, info)


def _evaluate_model(config: EvalConfig, output_dir: Path, overrides: Sequence[str]) -> Evaluation:
    run: dict[str, Any] | None = None
    if config.adapter is not None:
        run = read_run(Path(config.adapter))
        config = with_run_config(config, run["config"], overrides)
    prepare_process(config.seed)
    write_config(output_dir / "config.yaml", dataclasses.asdict(config))
    backbone = load_backbone(config.model)
    if run is not None:
        check_backbone(str(config.adapter), run["backbone"], backbone)
    backbone.model.to(device_of("auto"))  # type: ignore[arg-type]
    data = open_data(config, backbone, batch_size=config.evaluation.batch_size)
    tests = TestRows(data, config.evaluation.splits)
    info = environment(config.seed) | {
        "data_fingerprint": data.dataset.fingerprint,
        "backbone": {
            "name": backbone.name,
            "fingerprint": backbone.fingerprint,
            "revision": backbone.revision,
        },
    }
    write_json(output_dir / "environment.json", info)
    frozen = answer_frozen(backbone, data, tests, config, True) if run is not None else None
    model: nn.Module = backbone.model
    if config.adapter is not None:
        device = next(model.parameters()).device
        model = lime.tuner.load(backbone.model, config.adapter)[0].to(device)
    predictions = answer_adapted(model, data, tests, config, True, frozen)
    kept = {"config": dataclasses.asdict(config), "environment": info, "rows_left_out": data.left_out.counts()}
    return report(predictions, tests.allowed, config, output_dir, kept)


def check_backbone(adapter: str, saved: dict[str, str], backbone: Backbone) -> None:
    """Raise ValueError when an adapter belongs to another backbone."""
    if saved["fingerprint"] != backbone.fingerprint:
        raise ValueError(
            f"adapter: {adapter} was trained on {saved['name']} ({saved['fingerprint'][:12]}), "
            f"this is {backbone.name} ({backbone.fingerprint[:12]}); evaluate it on its own backbone"
        )
