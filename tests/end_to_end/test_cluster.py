"""Two nodes by torchrun, two processes that are killed, SLURM's preemption, and sweeps on SLURM."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lime.distributed.launch import started_from_outside
from tests.end_to_end.command import ROOT
from tests.end_to_end.test_kill import MOMENTS, arguments, finish, kill_when, same, steps
from tests.processes import Process, run
from tests.training.parts import metrics

OF_TWO = ["trainer=ddp", "trainer.batch_size=2", "trainer.num_threads=1"]
TWO = [*OF_TWO, "trainer.devices=2"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The folder of a run in so many processes that nothing disturbed."""

    @functools.cache
    def made(devices: int) -> Path:
        folder = tmp_path_factory.mktemp("cluster") / "whole"
        finish(folder, *(TWO if devices == 2 else ()))
        return folder

    return made


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_two_nodes_by_torchrun_are_two_processes_of_one(whole: Callable[[int], Path], tmp_path: Path) -> None:
    port = free_port()
    command = arguments(tmp_path / "two", *OF_TWO, "trainer.devices=1", "trainer.num_nodes=2")[1:]
    nodes = [
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
                f"--node-rank={rank}", "--master-addr=127.0.0.1", f"--master-port={port}", *command,
            ],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    said = [node.communicate(timeout=1800)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)
    assert metrics(tmp_path / "two") == metrics(whole(2))
    first, second = ((folder / "predictions.jsonl").read_bytes() for folder in (whole(2), tmp_path / "two"))
    assert first == second


@pytest.mark.slow
def test_two_processes_that_are_killed_end_the_same(whole: Callable[[int], Path], tmp_path: Path) -> None:
    """Both are killed, and both start again."""
    kill_when(tmp_path / "run", MOMENTS["in the middle of the first epoch"], *TWO)
    finish(tmp_path / "run", *TWO)
    same(tmp_path / "run", whole(2))


def slurm(folder: Path) -> dict[str, str]:
    """The environment of the one task of a SLURM job; `scontrol` writes down how it was called."""
    fake = folder / "scontrol"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {folder}/requeued\n')
    fake.chmod(0o755)
    return {
        **os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_NAME": "lime", "SLURM_JOB_ID": "77",
        "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
        "SLURM_NTASKS_PER_NODE": "1",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_preempted_job_saves_goes_back_and_ends_the_same(
    whole: Callable[[int], Path], tmp_path: Path, devices: int
) -> None:
    more = [] if devices == 1 else TWO
    more = [*more, "callbacks.checkpoint_every_n_steps=1000"]  # so that the saved one is that of the signal
    environment = slurm(tmp_path)
    running = Process(arguments(tmp_path / "run", *more), tmp_path, environment)
    deadline = time.monotonic() + 1800
    metrics_file = tmp_path / "run" / "metrics.csv"
    try:
        while not metrics_file.is_file() or metrics_file.stat().st_size < 250:
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        running.send_signal(signal.SIGUSR1)
        assert running.wait(timeout=1800) == 128 + signal.SIGUSR1
    finally:
        running.kill()  # its processes end with it
    assert (tmp_path / "requeued").read_text() == "requeue 77\n"
    assert len(steps(tmp_path / "run")) == 1
    again = run(arguments(tmp_path / "run", *more), tmp_path, environment)
    assert again.returncode == 0, again.stdout + again.stderr
    same(tmp_path / "run", whole(devices))


def test_one_task_with_two_devices_starts_its_processes_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("LOCAL_RANK", "RANK"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("SLURM_JOB_NAME", "lime")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert not started_from_outside()
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert started_from_outside()


def test_a_sweep_on_slurm_composes(command: Any) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    printed = page[page.index("python train.py -m launcher=slurm") :].split("\n```")[0].replace("\\\n", " ").split()
    options = [text for text in printed[3:] if not text.startswith("seed=")]
    outcome = command("train.py", "--cfg", "hydra", *options, "trainer.devices=4")
    assert "partition: PARTITION" in outcome.said
    assert "account: ACCOUNT" in outcome.said
    assert "mem_gb: 64" in outcome.said
    assert outcome.code == 0
    assert "gpus_per_node: ${trainer.devices}" in outcome.said
    assert "SlurmLauncher" in outcome.said
