"""A search with Optuna: what it runs, what it takes for a result, and that it goes on where it stopped."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("optuna")

from optuna.trial import TrialState

from lime.config.compose import composed
from lime.config.identity import config_hash
from lime.config.overrides import check, register
from lime.config.schema import TrainConfig
from lime.experiments.optuna_search import FINISHED, RUN, Search, Space, read_space
from lime.experiments.records import Training, write_record
from tests.experiments.made import failed, record
from tests.experiments.test_sweeps import base

ROOT = Path(__file__).parents[2]
SPACES = sorted((ROOT / "experiments" / "spaces").glob("*.yaml"))
SPACE = Space(space={"optim.peft_lr": {"low": 1e-4, "high": 1e-1, "log": True}, "lime.n_gram": {"choices": [1, 2]}})


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Command lines of the trials; in place of a run, each leaves a record whose validation loss is its rate. Those
    with windows of 2 tokens fail."""
    monkeypatch.chdir(tmp_path)
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> None:
        assert command[:3] == [sys.executable, str(ROOT / "train.py"), "-m"]
        calls.append(command[3:])
        config = composed(command[3:], ROOT / "conf", "train", TrainConfig)
        folder = Path("multirun") / config.name / config_hash(dataclasses.asdict(config))
        measured = Training(1.0, steps=1, validation=[{"step": 1, "loss": config.optim.peft_lr}])
        made = failed(7) if config.lime.n_gram == 2 else record(7, {}, training=measured, scores=[])
        write_record(folder, made)

    monkeypatch.setattr("lime.experiments.optuna_search.subprocess.run", run)
    return calls


def test_the_search_takes_the_lowest_loss_and_goes_on(started: list[list[str]]) -> None:
    first = Search("s", SPACE, ["seed=7"], ROOT)
    first.run(6)
    assert len(started) == 6
    assert all({"name=s", "seed=7"} <= set(call) for call in started)
    trials = first.study.get_trials()
    values = {trial.params["optim.peft_lr"] for trial in trials if trial.params["lime.n_gram"] == 1}
    assert first.study.best_value == min(values)
    kinds = {trial.state for trial in trials if trial.params["lime.n_gram"] == 2}
    assert kinds == {TrialState.FAIL}
    again = Search("s", SPACE, ["seed=7"], ROOT)
    again.run(6)
    assert len(started) == 6
    again.run(8)
    assert len(started) == 8
    assert again.study.best_value <= first.study.best_value


def test_a_trial_that_was_killed_is_tried_again_with_its_settings(started: list[list[str]]) -> None:
    search = Search("s", SPACE, [], ROOT)
    killed = search.study.ask(SPACE.distributions())
    killed.set_user_attr(RUN, "never-begun")
    Search("s", SPACE, [], ROOT).run(2)
    assert started[0][-2:] == [f"{key}={value}" for key, value in killed.params.items()]
    states = [trial.state for trial in search.study.get_trials()]
    assert states[0] == TrialState.FAIL
    assert len(states) == 2
    assert all(one in FINISHED for one in states)


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_space_is_one_that_train_takes(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space = read_space(path)
    search = Search("s", space, [], ROOT)
    register(TrainConfig, ROOT / "experiments")
    for _ in range(5):
        overrides = search.overrides(search.study.ask(space.distributions()).params)
        check(overrides, ROOT / "conf", "train", TrainConfig)


def test_wrong_spaces_are_told(tmp_path: Path) -> None:
    wrong = {"objective": "luck", "space": {"a": {"low": 2, "high": 1}, "b": {"choices": []}}}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    with pytest.raises(ValueError, match=r"3 problems(?s:.)*objective(?s:.)*space\.a(?s:.)*space\.b"):
        read_space(tmp_path / "wrong.yaml")
    with pytest.raises(ValueError, match="there are: lime_lora"):
        read_space(ROOT / "experiments" / "spaces" / "lime_lra.yaml")


@pytest.mark.slow
def test_real_trials(tmp_path: Path) -> None:
    """Two trials of one step, and the same command again, which has nothing left to do."""
    space = {"overrides": [*base(), "data.validation_fraction=0.2", "evaluation.mode=none",
             "trainer.validate_every_n_epochs=1", "trainer.max_steps=null", "trainer.max_epochs=1"],
             "space": {"optim.peft_lr": {"low": 1e-3, "high": 1e-2, "log": True}}}  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(space))
    command = [sys.executable, str(ROOT / "scripts" / "optuna_search.py"), str(tmp_path / "tiny.yaml"), "--trials", "2"]
    said = []
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        said.append(done.stdout.splitlines()[-3:])
    assert said[0] == said[1]
    assert said[0][0] == "2 trials, 0 without a result"
    assert said[0][2].startswith("python train.py optim.peft_lr=0.00")
    assert len(list(tmp_path.glob("multirun/search_tiny/*/record.json"))) == 2
