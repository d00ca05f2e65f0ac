"""A run taken further is the longer run; one that max_steps ends is validated; one that diverged says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lime.config.training import OptimConfig
from lime.jobs.train import train
from lime.runs.record import read_record
from lime.training.optimizer import learning_rate_factor
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


def test_rates_are_those_that_were_asked_for(tmp_path: Path) -> None:
    """Against the schedule itself, not against another run: rate times the factor of each step."""
    options = {"optim__peft_lr": 3e-3, "optim__moe_lr": 2e-3, "optim__warmup_ratio": 0.5, "trainer__max_steps": 6}
    train(config(**LONG, **options), tmp_path)
    factors = [learning_rate_factor(step, 6, OptimConfig(warmup_ratio=0.5)) for step in range(6)]
    assert max(factors) == 1.0
    seen = rates(tmp_path)
    assert [rate for _, rate, _ in seen] == pytest.approx([3e-3 * factors[step - 1] for step, *_ in seen], rel=1e-6)
    assert [rate for *_, rate in seen] == pytest.approx([2e-3 * factors[step - 1] for step, *_ in seen], rel=1e-6)


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
