"""A run taken further is the longer run; one that max_steps ends is validated; one that diverged says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lime.experiments.records import read_record
from lime.training.job import train
from tests.training.parts import config, metrics

LONG: dict[str, Any] = {"callbacks__checkpoint": True, "evaluation__mode": "none", "trainer__preflight": False}


def rates(folder: Path) -> list[tuple[int, float, float]]:
    return [(int(row["step"]), float(row["lr/peft"]), float(row["lr/modulators"])) for row in metrics(folder)]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_more_epochs_have_the_rates_of_an_uninterrupted_run(tmp_path: Path, schedule: str) -> None:
    options = {**LONG, "optim__schedule": schedule}
    train(config(**options, trainer__max_epochs=1), tmp_path / "one")
    last = str(tmp_path / "one" / "checkpoints" / "last.ckpt")
    train(config(**options, trainer__max_epochs=2, ckpt_path=last), tmp_path / "further")
    train(config(**options, trainer__max_epochs=2), tmp_path / "two")
    assert rates(tmp_path / "further") == rates(tmp_path / "two")[6:]
    assert all(rate > 0 for _, *both in rates(tmp_path / "further") for rate in both)


def test_rates_of_the_command_line_hold_in_a_run_taken_further(tmp_path: Path) -> None:
    train(config(**LONG, trainer__max_steps=2), tmp_path / "one")
    last = str(tmp_path / "one" / "checkpoints" / "last.ckpt")
    changed = {**LONG, "optim__peft_lr": 5e-3, "trainer__max_steps": 4}
    train(config(**changed, ckpt_path=last), tmp_path / "further")
    train(config(**changed), tmp_path / "whole")
    assert rates(tmp_path / "further") == rates(tmp_path / "whole")[2:]


@pytest.mark.parametrize(("steps", "every"), [(2, 1), (2, 3), (8, 1), (6, 1)])
def test_training_that_max_steps_ends_is_validated(tmp_path: Path, steps: int, every: int) -> None:
    options = {"trainer__max_steps": steps, "trainer__validate_every_n_epochs": every, "trainer__max_epochs": 5}
    train(config(**LONG, **options, data__validation_fraction=0.3), tmp_path)
    training = read_record(tmp_path).training
    assert training is not None
    validated = [entry["step"] for entry in training.validation]
    assert validated[-1] == steps
    assert len(validated) == len(set(validated))


def test_diverged_run_has_its_report_and_says_so(tmp_path: Path) -> None:
    huge = {"callbacks__checkpoint": True, "optim__peft_lr": 1e12, "optim__moe_lr": 1e12, "trainer__max_steps": 3}
    train(config(**huge, evaluation__baseline_frozen=False), tmp_path)
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "diverged"
    record = read_record(tmp_path)
    assert record.status == "diverged"
    assert record.score("macro", "macro") is not None
    assert (tmp_path / "results.md").is_file()
    train(
        config(ckpt_path="auto", **huge, evaluation__baseline_frozen=False), tmp_path
    )  # again, from the checkpoint of its end
    assert read_record(tmp_path).status == "diverged"
