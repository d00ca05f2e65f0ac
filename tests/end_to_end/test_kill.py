"""Killed at any moment and started again by the same command, a run ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.data import tiny
from tests.end_to_end.command import ROOT
from tests.processes import Process, run
from tests.training.parts import data_root, metrics

pytestmark = pytest.mark.slow

KILLS: Counter[str] = Counter()
ROWS = 6  # optimiser steps: 24 rows, batches of 4 in pairs, two epochs


def arguments(folder: Path, *more: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "train.py"), f"hydra.run.dir={folder}", "model=tiny_llava_onevision",
        f"model.path={tiny.checkpoint('llava_onevision')}", "model.dtype=float32", "data=mmt47",
        f"data.root={data_root()}", "data.validation_fraction=0", "data.num_workers=0", "trainer.accelerator=cpu",
        "trainer.batch_size=4", "trainer.accumulate_grad_batches=2", "trainer.max_epochs=2",
        "trainer.log_every_n_steps=2", "peft.dropout=0.1", "lime.balance.every_n_steps=2", "cache_dir=null",
        "callbacks.checkpoint_every_n_steps=1", "evaluation.batch_size=2", "evaluation.max_new_tokens=4",
        *more,
    ]  # fmt: skip


def finish(folder: Path, *more: str) -> None:
    done = run(arguments(folder, *more), folder.parent)
    assert done.returncode == 0, done.stdout + done.stderr


def kill_when(folder: Path, moment: Callable[[Path], bool], *more: str) -> None:
    """Start a run, and kill it and all its processes as soon as something is there."""
    running = Process(arguments(folder, *more), folder.parent)
    deadline = time.monotonic() + 1800
    try:
        while not moment(folder):
            assert running.poll() is None, "ended before the moment came"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    KILLS["tried"] += 1


def steps(folder: Path) -> set[int]:
    return {int(path.stem.partition("-")[2]) for path in (folder / "checkpoints").glob("step-*.ckpt")}


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.is_file() else 0


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "before the first checkpoint": lambda folder: (folder / "metrics.csv").is_file(),
    "in the middle of the first epoch": lambda folder: bool(steps(folder) & {2, 3}),
    "between two logged steps": lambda folder: max(steps(folder), default=0) >= 5,
    "while the adapter is saved": lambda folder: any(folder.glob(".adapter*")) or (folder / "adapter").is_dir(),
    "in the middle of the evaluation": lambda folder: any(
        lines(path) > 3 for path in (folder / "partial").glob("answers-*.jsonl")
    ),
}


def check_whole(folder: Path) -> None:
    """Every file that has its final name can be read to its end."""
    for path in folder.rglob("*"):
        if path.name.startswith(".") or not path.is_file() or "partial" in path.parts:
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".yaml":
            yaml.safe_load(path.read_text())
        elif path.suffix == ".ckpt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".jsonl" and path.name == "predictions.jsonl":
            assert [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module", autouse=True)
def counted() -> Iterator[None]:
    KILLS.clear()
    yield
    print(f"{KILLS['tried']} kills tried, {KILLS['survived']} survived, with the same results in the end")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill") / "whole"
    finish(folder)
    return folder


def same(folder: Path, whole: Path) -> None:
    assert metrics(folder) == metrics(whole)
    assert (folder / "routing.jsonl").read_bytes() == (whole / "routing.jsonl").read_bytes()
    for name in ("predictions.jsonl", "results.csv", "adapter/adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert json.loads((folder / "status.json").read_text())["status"] == "finished"
    assert not list(folder.rglob(".*.part"))
    assert not (folder / "partial").exists()


@pytest.mark.parametrize("name", MOMENTS)
def test_started_again_it_ends_the_same(name: str, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    kill_when(folder, MOMENTS[name])
    check_whole(folder)
    finish(folder)
    same(folder, whole)
    KILLS["survived"] += 1


def test_with_another_number_of_workers(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    kill_when(folder, MOMENTS["in the middle of the first epoch"])
    finish(folder, "data.num_workers=2")
    same(folder, whole)
    KILLS["survived"] += 1


def test_other_settings_in_the_same_folder_are_refused(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    done = run(arguments(folder, "optim.peft_lr=0.5"), tmp_path)
    assert done.returncode == 2
    assert "optim.peft_lr" in done.stdout + done.stderr
    assert "0.5 now" in done.stdout + done.stderr
