"""Sweeps: which runs are the same, what is skipped, what runs again, what a plan refuses."""

from __future__ import annotations

import copy
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich.console import Console

import lime.experiments.resume as resume
from lime.config.check import ConfigError
from lime.config.identity import config_hash
from lime.config.overrides import check, force, register
from lime.config.schema import TrainConfig
from lime.config.source import values_of
from lime.config.sweeps import make_plan, read_plan
from lime.experiments.collection import read_sweep
from lime.experiments.listing import WAITING, runs_below, runs_table
from lime.experiments.resume import ResumingSweep
from lime.runs.code import code_version
from lime.runs.lock import LOCK_FILE
from lime.runs.record import read_record
from tests.end_to_end.command import Program
from tests.experiments import made
from tests.processes import Process
from tests.training.parts import tiny_overrides, values

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))


def base() -> list[str]:
    return [
        *tiny_overrides(), "trainer.max_steps=1", "evaluation.max_new_tokens=2", "evaluation.baseline_frozen=false",
        "callbacks=default", "callbacks.progress=false", "callbacks.checkpoint=false",
    ]  # fmt: skip


Sweep = Callable[..., tuple[int, str]]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Sweep:
    """Runs ``train.py -m`` in this process and the test's own folder; gives exit code and what was said."""
    program = Program(tmp_path, monkeypatch, capfd)

    def call(*overrides: str) -> tuple[int, str]:
        outcome = program.run("train.py", "-m", *base(), *overrides)
        return outcome.code, outcome.said

    return call


def said_in(folder: Path) -> str:
    return (folder / "train.log").read_text()


def planned(*overrides: str) -> Any:
    register(TrainConfig, ROOT / "experiments")
    check(overrides, ROOT / "conf", "train", TrainConfig)
    return make_plan(force(overrides, TrainConfig), ROOT / "conf", "train", TrainConfig)


def test_finished_runs_are_skipped_and_failed_ones_run_again(sweep: Sweep, tmp_path: Path) -> None:
    # 33 experts are more than a layer is wide: that run fails, those after it go on.
    code, said = sweep("lime.num_experts=2,33,3")
    assert code == 2
    assert "sweep of 3 runs in multirun/main: 2 finished, 1 failed" in said
    plan = read_plan(tmp_path / "multirun/main")
    assert plan is not None
    folders = {run.point["lime.num_experts"]: plan.folder / run.run for run in plan.runs}
    assert list(folders) == [2, 33, 3]
    before = {n: (folder / "record.json").read_bytes() for n, folder in folders.items()}
    failed = read_record(folders[33])
    assert failed.status == "failed"
    assert failed.error is not None
    assert "33 experts" in failed.error.message

    code, said = sweep("lime.num_experts=2,33,3,4")
    assert code == 2
    assert "3 finished, 1 failed" in said
    for number in (2, 3):
        assert (folders[number] / "record.json").read_bytes() == before[number]
        assert "skipped: finished before" in said_in(folders[number])
    assert "skipped" not in said_in(folders[33])
    assert (folders[33] / "record.json").read_bytes() != before[33]

    code, _ = sweep("name=other", "lime.num_experts=2,3")  # a point that another sweep has run
    assert code == 0
    copied = read_record(tmp_path / "multirun/other" / folders[2].name)
    assert copied.name == "other"
    assert copied.reused_from is not None
    assert copied.reused_from.endswith(f"multirun/main/{folders[2].name}")
    assert [point.label for point in read_sweep(tmp_path / "multirun/other").points] == [
        "num_experts=2",
        "num_experts=3",
    ]


def test_another_version_of_the_code_runs_again_unless_told(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep("seed=1")
    folder = next((tmp_path / "multirun/main").glob("*/record.json")).parent
    first = (folder / "record.json").read_bytes()
    (folder / "predictions.jsonl").write_text("of the earlier attempt")
    monkeypatch.setattr(resume, "code_version", lambda: "another")
    sweep("seed=1", "reuse=any_code")
    assert (folder / "record.json").read_bytes() == first
    sweep("seed=1")
    assert (folder / "record.json").read_bytes() != first
    assert "of the earlier attempt" not in (folder / "predictions.jsonl").read_text()


def test_a_run_in_other_hands_is_left_alone(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(*base(), "seed=1,2")
    folder = tmp_path / "multirun/main" / plan.runs[0].run
    folder.mkdir(parents=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, filelock; l = filelock.FileLock(sys.argv[1]); l.acquire(); print(); "
         "sys.stdout.flush(); sys.stdin.read()", str(folder / LOCK_FILE)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        _, said = sweep("seed=1,2")
    finally:
        holder.communicate(b"")
    assert "skipped: another process is running it" in said_in(folder)
    assert "1 finished, 1 missing" in said or "1 missing, 1 finished" in said


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["parallel", "ray"])
def test_runs_in_processes_of_their_own_are_recorded_and_skipped_alike(
    sweep: Sweep, tmp_path: Path, launcher: str
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher" if launcher == "parallel" else "ray")
    # any code: the sources may change while the test runs, and each process reads their version for itself
    code, said = sweep(f"launcher={launcher}", "reuse=any_code", "lime.num_experts=33,2")
    assert code == 2
    assert "1 finished, 1 failed" in said or "1 failed, 1 finished" in said
    folder = tmp_path / "multirun/main"
    if launcher == "parallel":
        assert len(list(folder.glob(".submitit/*/*_submitted.pkl"))) == 2
    plan = read_plan(folder)
    assert plan is not None
    records = {run.point["lime.num_experts"]: folder / run.run / "record.json" for run in plan.runs}
    assert read_record(records[2]).config["trainer"]["num_threads"] == 1
    before = records[2].read_bytes()
    code, _ = sweep("reuse=any_code", "lime.num_experts=2")  # in this process
    assert code == 0
    assert records[2].read_bytes() == before
    assert "skipped: finished before" in said_in(records[2].parent)
    code, said = sweep(f"launcher={launcher}", "reuse=any_code", "lime.num_experts=2,3")
    assert code == 0
    assert "2 finished" in said
    assert records[2].read_bytes() == before


@pytest.mark.slow
def test_killed_run_is_interrupted_and_runs_again(tmp_path: Path) -> None:
    """kill -9 in the middle of training: the record says running, no process holds the lock, so it runs again."""
    command = [sys.executable, str(ROOT / "train.py"), "-m", *base(), "seed=1,2", "trainer.max_steps=null"]
    endless = [*command, "trainer.max_epochs=100000"]
    process = Process(endless, tmp_path)
    try:
        deadline = time.monotonic() + 120
        while not (metrics := list(tmp_path.glob("multirun/main/*/metrics.csv"))):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    folder = metrics[0].parent
    assert json.loads((folder / "record.json").read_text())["status"] == "running"
    status, record = resume.state(folder)
    assert status == "interrupted"
    assert record is not None
    assert record.error is not None
    runs = read_sweep(tmp_path / "multirun/main")
    assert sorted(run.status for point in runs.points for run in point.runs) == ["interrupted", "missing"]


def test_interrupted_run_is_not_taken_for_finished(sweep: Sweep, tmp_path: Path) -> None:
    sweep("seed=1")
    path = next((tmp_path / "multirun/main").glob("*/record.json"))
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"status": "running"}))
    (path.parent / "checkpoints").mkdir()
    sweep("seed=1")
    assert read_record(path).status == "finished"
    assert not (path.parent / "checkpoints").exists()


def test_identity_is_what_can_change_a_result() -> None:
    config = values()
    same = copy.deepcopy(config)
    same.update(name="elsewhere", cache_dir="x", reuse="never", logger={"wandb": {"project": "p"}})
    same["data"].update(num_workers=3)
    same["callbacks"]["progress"] = True
    same["trainer"]["batch_size"] = 4.0  # as YAML may write it
    assert config_hash(same) == config_hash(config)
    for section, key, value in (("data", "train_rows", 7), ("trainer", "batch_size", 5), ("optim", "moe_lr", 2e-2)):
        other = copy.deepcopy(config)
        other[section][key] = value
        assert config_hash(other) != config_hash(config)
    assert config_hash({**config, "seed": 2}) != config_hash(config)


def test_code_version_sees_code_and_not_comments(tmp_path: Path) -> None:
    def version(text: str, name: str = "method/a.py") -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        code_version.cache_clear()
        return code_version(tmp_path)

    first = version('"""Text."""\nx = 1\n')
    assert version('"""Another."""\n\n# comment\nx = 1\n') == first
    assert version("x = 2\n") != first
    now = version("x = 1\n")
    assert version("y = 1\n", "analysis/b.py") == now
    assert version("y = 1\n", "training/b.py") != now
    code_version.cache_clear()


def test_plan_names_runs_and_joins_equal_ones() -> None:
    plan = planned("lime.num_experts=2,4", "seed=1,1,2", "name=x")
    assert str(plan.folder) == "multirun/x"
    assert [run.point for run in plan.runs] == [
        {"lime.num_experts": e, "seed": s} for e in (2, 4) for s in (1, 2)
    ]  # fmt: skip
    assert len({run.run for run in plan.runs}) == 4


def test_command_line_replaces_a_swept_key_of_an_experiment() -> None:
    plan = planned("+experiment=num_experts", "lime.num_experts=2,3", "seed=42")
    assert [run.point for run in plan.runs] == [
        {"lime.num_experts": 2, "seed": 42},
        {"lime.num_experts": 3, "seed": 42},
    ]


def test_plan_tells_every_wrong_point_before_the_first_run() -> None:
    with pytest.raises(ConfigError) as caught:
        planned("method=lime_lora,lora,dora", "lime.num_experts=2,8")
    told = "lime.num_experts: has no effect with lime=off (method={0}) [method={0} lime.num_experts=2 and 1 more]"
    assert caught.value.problems == [told.format(method) for method in ("lora", "dora")]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_composes(path: Path) -> None:
    """Every overlay says what it tests, names itself, and every value that it sweeps passes the checks."""
    text = path.read_text()
    assert "# Claim: " in text or "_search" in path.stem
    assert "# Expect: " in text or "_search" in path.stem
    register(TrainConfig, path.parent)
    rates = ["optim.peft_lr=1e-3"] if path.stem == "table2" else []
    params = overlay_params(path.stem, rates)
    check(
        [f"+experiment={path.stem}", *(f"{key}={value}" for key, value in params.items())],
        ROOT / "conf",
        "train",
        TrainConfig,
    )
    if path.stem in ("table2", "peft_type"):
        plan = planned(f"+experiment={path.stem}", "seed=42", *rates)
        assert len(plan.runs) == len(params["method"].split(","))


def test_points_of_an_overlay_are_swept_and_each_changes_the_reference() -> None:
    points = OmegaConf.load(ROOT / "experiments" / "causes.yaml").points
    plan = planned("+experiment=causes", "seed=42")
    assert [run.point["causes"] for run in plan.runs] == list(points)  # two that are one run would be refused
    fast = values_of_run("+experiment=causes", "causes=rate_x4", "optim.peft_lr=1e-3")
    assert (fast["optim"]["moe_lr"], fast["lime"]) == (4e-3, values_of_run()["lime"])


def values_of_run(*overrides: str) -> dict[str, Any]:
    return values_of(check(overrides, ROOT / "conf", "train", TrainConfig).config)


def overlay_params(name: str, overrides: list[str]) -> dict[str, str]:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [f"+experiment={name}", *overrides], return_hydra_config=True)
    assert config.name == name
    params = {key.lstrip("+"): str(value) for key, value in config.hydra.sweeper.params.items()}
    return params | dict(text.split("=") for text in overrides)


def test_table2_without_its_search_says_how_to_search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lime.config.searched.ROOT", tmp_path)
    with pytest.raises(ConfigError, match=r"python train\.py -m \+experiment=table2_search"):
        planned("+experiment=table2")


def test_the_report_is_written_at_the_end_and_its_failure_fails_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = made.sweep(tmp_path / "made", [({"method": "lora"}, {1: made.record(1)})])
    plan = read_plan(folder)
    assert plan is not None
    caplog.set_level("INFO")
    asked: list[Path] = []

    def broken(place: Path) -> Path:
        asked.append(place)
        raise RuntimeError("no room\nleft")

    assert ResumingSweep(lambda place: place / "report.html").summary(plan) == 0
    assert f"report: {folder / 'report.html'}" in caplog.text
    assert ResumingSweep(broken).summary(plan) == 0
    assert asked == [folder]
    assert "report: not written (RuntimeError: no room left)" in caplog.text


def test_runs_of_a_sweep_in_progress(tmp_path: Path) -> None:
    """Method, model, score and state; those of the plan that have not begun stand last."""
    score = {"level": "macro", "name": "macro", "score": 61.25, "low": 60.0, "high": 62.5}
    done = made.record(1, config={"method": "lime_lora", "model": {"name": "tiny"}}, scores=[score])
    folder = made.sweep(tmp_path / "made", [({"method": "lime_lora"}, {1: done, 2: None})])
    runs = runs_below(folder)
    assert [(run.folder.name, run.state) for run in runs] == [("lime_lora-1", "finished"), ("lime_lora-2", WAITING)]
    shown = io.StringIO()
    Console(file=shown, width=120).print(runs_table(runs, folder))
    for word in ("lime_lora", "tiny", "finished", "61.2 (60.0–62.5)", WAITING):
        assert word in shown.getvalue()
