"""Early stopping, the best weights, and validations within an epoch; and that a resumed run has the same of each."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lime.config.check import ConfigError
from lime.jobs.train import train
from lime.runs.record import Training, objective_of, read_record
from tests.training.parts import config, metrics

VALIDATED: dict[str, Any] = {
    "callbacks__checkpoint": True, "data__validation_fraction": 0.3, "evaluation__mode": "none",
    "optim__schedule": "constant", "trainer__max_epochs": 3,
}  # fmt: skip
BREAKS: dict[str, Any] = {  # after a few steps
    "optim__peft_lr": 20.0, "optim__moe_lr": 20.0, "optim__warmup_ratio": 1.0, "trainer__gradient_clip_val": None,
}  # fmt: skip


def training_of(folder: Path) -> Training:
    training = read_record(folder).training
    assert training is not None
    return training


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_best_weights_are_those_of_the_lowest_loss(tmp_path: Path) -> None:
    train(config(**VALIDATED, **BREAKS, trainer__val_check_interval=2, callbacks__weights="best"), tmp_path)
    training = training_of(tmp_path)
    best = min(training.validation, key=lambda entry: math.inf if entry["loss"] is None else entry["loss"])
    assert best["step"] < training.steps, "the last ones would be the best: the test shows nothing"
    assert training.weights_step == best["step"]
    assert objective_of(read_record(tmp_path), "validation_loss") == best["loss"]
    (path,) = (tmp_path / "checkpoints").glob("best-*.ckpt")
    assert path.name == f"best-step-{best['step']}.ckpt"
    kept = torch.load(path, weights_only=True)["state_dict"]
    saved = adapter(tmp_path)
    assert saved
    for name, tensor in saved.items():
        assert any(torch.equal(tensor, other) for other in kept.values() if other.shape == tensor.shape), name


def test_training_stops_where_the_loss_falls_no_more_and_stays_stopped(tmp_path: Path) -> None:
    options = {**VALIDATED, "trainer__validate_every_n_epochs": 1, "trainer__max_epochs": 8}
    settings = config(**options, callbacks__early_stopping=2, callbacks__min_delta=100.0)  # which no loss falls by
    train(settings, tmp_path)
    stopped, rows = training_of(tmp_path), metrics(tmp_path)
    assert stopped.stopped_early
    assert [entry["step"] for entry in stopped.validation] == [4, 8, 12]
    train(settings, tmp_path)  # the same command again
    assert metrics(tmp_path) == rows
    assert training_of(tmp_path).validation == stopped.validation
    assert training_of(tmp_path).stopped_early


def test_validations_within_an_epoch_and_at_the_end(tmp_path: Path) -> None:
    train(config(**VALIDATED, trainer__val_check_interval=3), tmp_path)
    training = training_of(tmp_path)
    steps = [entry["step"] for entry in training.validation]
    assert steps == [*range(3, training.steps, 3), training.steps]
    assert [int(row["step"]) for row in metrics(tmp_path) if row["val/loss"]] == steps


@pytest.mark.slow
@pytest.mark.parametrize(("interval", "accumulate", "every"), [(2, 1, 1), (0.5, 2, 1), (None, 1, 1), (0.34, 1, None)])
def test_resumed_anywhere_equals_uninterrupted(tmp_path: Path, interval: Any, accumulate: int, every: Any) -> None:
    """From every checkpoint, as after a kill: the same losses, validations, best weights and end."""
    settings = config(
        **VALIDATED, trainer__val_check_interval=interval, trainer__accumulate_grad_batches=accumulate,
        trainer__validate_every_n_epochs=1 if interval is None else None, callbacks__checkpoint_every_n_steps=every,
        callbacks__keep_checkpoints=50, callbacks__keep_best=50, callbacks__weights="best", callbacks__early_stopping=7,
        trainer__batch_size=4 // accumulate, optim__peft_lr=0.05, optim__moe_lr=0.05,
    )  # fmt: skip
    whole = tmp_path / "whole"
    train(settings, whole)
    expected, steps = training_of(whole), sorted(int(p.stem[5:]) for p in (whole / "checkpoints").glob("step-*.ckpt"))
    assert len(steps) >= 2
    for step in steps[:: max(1, len(steps) // 5)]:
        folder = tmp_path / f"from-{step}"
        shutil.copytree(whole, folder)
        for path in (folder / "checkpoints").glob("*.ckpt"):
            if path.stem == "last" or int(path.stem.rpartition("-")[2]) > step:
                path.unlink()
        train(settings, folder)
        found = training_of(folder)
        assert found.validation == expected.validation, step
        assert (found.weights_step, found.stopped_early) == (expected.weights_step, expected.stopped_early), step
        assert metrics(folder) == metrics(whole), step
        assert all(torch.equal(adapter(folder)[name], tensor) for name, tensor in adapter(whole).items()), step


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"callbacks__weights": "best"}, "callbacks.weights=best: has no effect without validations"),
        ({"callbacks__early_stopping": 2}, "callbacks.early_stopping: has no effect without validations"),
        ({"trainer__val_check_interval": 2}, "trainer.val_check_interval: no rows are held out"),
        ({**VALIDATED, "trainer__val_check_interval": 3, "trainer__accumulate_grad_batches": 2}, "a multiple of"),
        ({**VALIDATED, "trainer__val_check_interval": 1.5}, "trainer.val_check_interval: expected a share"),
        ({**VALIDATED, "callbacks__min_delta": 0.1}, "callbacks.min_delta: has no effect without"),
        (
            {"trainer__validate_every_n_epochs": 1, "data__validation_fraction": 0.1, "callbacks__keep_best": 1},
            "callbacks.keep_best: needs checkpoints",
        ),
    ],
)  # fmt: skip
def test_options_that_cannot_act_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told.replace(".", r"\.")):
        config(**changes)
