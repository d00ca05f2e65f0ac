"""A search with Optuna: what it runs, what it takes for a result, and that it goes on where it stopped."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("optuna")

from filelock import FileLock
from optuna.trial import TrialState

from lime.config.identity import config_hash
from lime.config.overrides import check, register
from lime.config.schema import TrainConfig
from lime.config.scripts import parse_mixed
from lime.experiments.optuna_search import RUN, Search, Space, read_space
from lime.jobs.compose import composed
from lime.runs.record import Training, write_record
from tests.data import tiny
from tests.end_to_end.test_signals import reach
from tests.experiments.made import failed, record
from tests.experiments.test_sweeps import base
from tests.processes import Process, run
from tests.training.parts import data_root

ROOT = Path(__file__).parents[2]
SPACES = sorted((ROOT / "experiments" / "spaces").glob("*.yaml"))
SPACE = Space(space={"optim.peft_lr": {"low": 1e-4, "high": 1e-1, "log": True}, "lime.n_gram": {"choices": [1, 2]}})


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Command lines of the trials; in place of a run, each leaves a record whose validation loss is its rate. Those
    with windows of 2 tokens fail."""
    monkeypatch.chdir(tmp_path)
    calls: list[list[str]] = []

    def run(command: list[str]) -> None:
        assert command[:3] == [sys.executable, str(ROOT / "train.py"), "-m"]
        calls.append(command[3:])
        config = composed(command[3:], ROOT / "conf", "train", TrainConfig)
        folder = Path("multirun") / config.name / config_hash(dataclasses.asdict(config))
        measured = Training(1.0, steps=1, validation=[{"step": 1, "loss": config.optim.peft_lr}])
        made = failed(7) if config.lime.n_gram == 2 else record(7, {}, training=measured, scores=[])
        write_record(folder, made)

    monkeypatch.setattr("lime.experiments.optuna_search._run_command", run)
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


def test_a_trial_that_was_stopped_goes_on_and_counts_once(started: list[list[str]]) -> None:
    search = Search("s", SPACE, [], ROOT)
    killed = search._ask()
    killed.set_user_attr(RUN, "never-begun")
    Search("s", SPACE, [], ROOT).run(1)
    assert [call[-2:] for call in started] == [[f"{key}={value}" for key, value in killed.params.items()]]
    assert [trial.number for trial in search.ended()] == [1]
    Search("s", SPACE, [], ROOT).run(2)
    assert len(started) == len({str(call) for call in started}) == 2
    assert [trial.number for trial in search.ended()] == [1, 2]
    assert [path.name for path in search.folder.glob(".search-*")] == []


def test_a_trial_of_another_process_is_left_to_it(started: list[list[str]]) -> None:
    one, two = Search("s", SPACE, [], ROOT), Search("s", SPACE, [], ROOT)
    with FileLock(one._held_by(one._process)):  # as while it runs
        trial = one._ask()
        two.run(1)
        assert trial.number == 0
        assert [other.number for other in two.ended()] == [1]
    one._try(trial)
    assert [other.number for other in two.ended()] == [0, 1]
    assert len({str(call) for call in started}) == 2


def test_restarts_and_parallel_processes_propose_other_settings(started: list[list[str]]) -> None:
    for trials in (3, 6, 9):  # a process each
        Search("s", SPACE, [], ROOT).run(trials)
    one, two = Search("s", SPACE, [], ROOT), Search("s", SPACE, [], ROOT)
    drawn = [search._ask().params for search in (one, two, one, two)]  # under way at the same time
    lines = [tuple(call[-2:]) for call in started]
    assert len(set(lines)) == len(lines) == 9
    assert len({str(params) for params in drawn}) == 4


def test_a_space_of_choices_is_tried_once_and_then_said_to_be_done(started: list[list[str]]) -> None:
    small = Space(space={"lime.num_experts": {"choices": [2, 3, 4]}})
    with pytest.raises(ValueError, match="the space is tried; widen it"):
        Search("s", small, [], ROOT).run(10)
    assert sorted(call[-1] for call in started) == [f"lime.num_experts={n}" for n in (2, 3, 4)]


@pytest.mark.parametrize(
    ("overrides", "space", "told"),
    [
        (["seed=x"], SPACE, "seed: expected a whole number"),
        (
            [],
            Space(space={"lime.n_gramm": {"choices": [1]}}),
            r"n_gramm: unknown key; did you mean lime.n_gram\?",
        ),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_written(
    started: list[list[str]], overrides: list[str], space: Space, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        Search("s", space, overrides, ROOT)
    assert not Path("multirun").exists()


@pytest.mark.parametrize(
    ("overrides", "space", "told"),
    [
        (["seed=8"], SPACE, "seed: 7 then, 8 now"),
        (["seed=7", "data=mmt47_mini_small"], SPACE, "data.train_rows: None then, 3300 now"),
        (["seed=7"], dataclasses.replace(SPACE, objective="macro"), "objective: validation_loss then, macro now"),
        (["seed=7"], Space(space={"lime.n_gram": {"choices": [1, 3]}}), "space.lime.n_gram"),
    ],
)
def test_a_study_refuses_other_settings(
    started: list[list[str]], overrides: list[str], space: Space, told: str
) -> None:
    Search("s", SPACE, ["seed=7", "data.num_workers=1"], ROOT)
    Search("s", SPACE, ["seed=7", "data.num_workers=2"], ROOT)  # changes no number
    with pytest.raises(ValueError, match=told):
        Search("s", space, overrides, ROOT)


def test_a_study_refuses_other_data(started: list[list[str]], tmp_path: Path) -> None:
    root = Path(shutil.copytree(data_root(), tmp_path / "root"))
    Search("s", SPACE, ["data=mmt47", f"data.root={root}"], ROOT)
    tiny.write_image(sorted(root.rglob("*.png"))[0], 64, 48, seed=99)
    with pytest.raises(ValueError, match="data: "):
        Search("s", SPACE, ["data=mmt47", f"data.root={root}"], ROOT)


@pytest.mark.parametrize(
    "arguments",
    ["lime_lora --trials 30 seed=1 --name x lime.n_gram=2", "--trials 30 lime_lora seed=1 lime.n_gram=2 --name x"],
)
def test_overrides_come_anywhere_on_the_line(arguments: str) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("space")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--trials", type=int)
    parser.add_argument("--name")
    options = parse_mixed(parser, arguments.split())
    assert (options.space, options.trials, options.name) == ("lime_lora", 30, "x")
    assert options.overrides == ["seed=1", "lime.n_gram=2"]
    with pytest.raises(SystemExit):
        parse_mixed(parser, [*arguments.split(), "--trails"])


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
def test_real_trials_stopped_by_ctrl_c_go_on(tmp_path: Path) -> None:
    """Stopped in its first trial, the same command ends that one and makes another."""
    space = {"overrides": [*base(), "data.validation_fraction=0.2", "evaluation.mode=none", "callbacks.checkpoint=true",
             "trainer.validate_every_n_epochs=1", "trainer.max_steps=null", "trainer.max_epochs=4",
             "trainer.log_every_n_steps=1"],
             "space": {"optim.peft_lr": {"low": 1e-3, "high": 1e-2, "log": True}}}  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(space))
    command = [sys.executable, str(ROOT / "scripts" / "optuna_search.py"), str(tmp_path / "tiny.yaml"), "--trials", "2"]
    folder = tmp_path / "multirun" / "search_tiny"
    stopped = Process(command, tmp_path, together=True)
    reach(stopped, folder, lambda folder: any(folder.glob("*/metrics.csv")))
    os.killpg(stopped.pid, signal.SIGINT)  # as a terminal does
    said = stopped.communicate(timeout=120)[0]
    assert stopped.returncode == 128 + signal.SIGINT, said
    assert "stopped by SIGINT (Ctrl-C)" in said
    assert "the same command goes on" in said
    assert "Traceback" not in said
    (first,) = folder.glob("*/status.json")
    assert json.loads(first.read_text())["status"] == "interrupted"
    assert list(first.parent.glob("checkpoints/step-*.ckpt"))
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    told, _, best = done.stdout.splitlines()[-3:]
    assert told == "2 trials, 0 without a result"
    assert best.startswith("python train.py ")
    assert "evaluation.mode=none" in best
    assert "optim.peft_lr=0.00" in best
    assert "resuming from" in (first.parent / "train.log").read_text()
    records = [json.loads(path.read_text()) for path in folder.glob("*/record.json")]
    assert [one["status"] for one in records] == ["finished"] * 2
    assert len({one["config"]["optim"]["peft_lr"] for one in records}) == 2
