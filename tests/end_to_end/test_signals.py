"""Told to stop by any signal in any phase, a run says so and loses nothing; a full disk and a second run are told."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lime.runs.lock import OWNER_FILE
from tests.data import tiny
from tests.end_to_end.command import ROOT
from tests.end_to_end.test_kill import arguments, finish, same, steps
from tests.processes import Process, run

Moment = Callable[[Path], bool]
PHASES: dict[str, Moment] = {
    "frozen answers": lambda folder: any((folder / "partial").glob("frozen-*")),
    "training": lambda folder: (folder / "metrics.csv").is_file(),
    "evaluation": lambda folder: any((folder / "partial").glob("answers-*")),
}
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGINT)


def start(folder: Path, *more: str) -> Process:
    return Process(arguments(folder, *more), folder.parent, together=True)


def reach(running: Process | subprocess.Popen[str], folder: Path, moment: Moment) -> None:
    deadline = time.monotonic() + 600
    while not moment(folder):
        assert running.poll() is None, running.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def group(leader: int) -> list[str]:
    """Command lines of the living processes of a process group."""
    found = subprocess.run(["ps", "-ww", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    lines = [line.split(None, 2) for line in found.splitlines()]
    return [line[2] for line in lines if line[0] == str(leader) and not line[1].startswith("Z")]


def gone(leader: int) -> bool:
    deadline = time.monotonic() + 60
    while group(leader) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not group(leader)


@pytest.mark.slow
def test_every_phase_ends_by_its_signal_and_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """Signals to the whole process group, workers included, and to the process alone; phases and signals by a seed."""
    finish(tmp_path / "whole")
    rng = random.Random(11)
    signals = rng.sample(SIGNALS, len(PHASES))
    survived = 0
    folder = tmp_path / "run"
    for (phase, moment), number in zip(PHASES.items(), signals, strict=True):
        running = start(folder, "data.num_workers=2")
        reach(running, folder, moment)
        before = steps(folder)
        (os.killpg if phase != "evaluation" else os.kill)(running.pid, number)
        said = running.communicate(timeout=120)[0]
        assert running.returncode == 128 + number, said
        assert f"stopped by {number.name}" in said
        assert "the same command goes on where it stood" in said
        assert "Traceback" not in said
        status = json.loads((folder / "status.json").read_text())
        assert (status["status"], status["error"]["type"]) == ("interrupted", number.name)
        assert gone(running.pid), group(running.pid)
        assert steps(folder) >= before if phase == "evaluation" else True
        assert steps(folder) if phase == "training" else True
        survived += 1
    finish(folder)
    same(folder, tmp_path / "whole")
    print(f"{len(PHASES)} interrupts tried, {survived} survived, and the same results in the end")


@pytest.mark.slow
def test_a_sweep_that_is_stopped_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    overrides = [text for text in arguments(tmp_path / "x")[2:] if not text.startswith("hydra.run.dir")]
    command = [sys.executable, str(ROOT / "train.py"), "-m", *overrides, "seed=1,2", "data.num_workers=2"]
    running = Process(command, tmp_path, together=True)
    sweep = tmp_path / "multirun" / "main"
    reach(running, sweep, lambda folder: any(folder.glob("*/metrics.csv")))
    os.killpg(running.pid, signal.SIGTERM)
    said = running.communicate(timeout=120)[0]
    assert running.returncode == 128 + signal.SIGTERM, said
    assert "sweep of 2 runs" in said
    assert "1 interrupted, 1 missing" in said or "1 missing, 1 interrupted" in said
    assert gone(running.pid)
    stopped = max(sweep.glob("*/checkpoints/step-*.ckpt"), key=lambda path: int(path.stem.partition("-")[2]))
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert "run 1 of 2: seed=1" in said
    assert "run 2 of 2 (about" in said
    assert len(said.splitlines()) < 20, said
    assert f"resuming from {stopped}" in (stopped.parents[1] / "train.log").read_text()


@pytest.mark.slow
def test_two_at_once_in_one_folder_and_one_after_a_kill(tmp_path: Path) -> None:
    folder, endless = tmp_path / "run", "trainer.max_epochs=100000"
    first = start(folder, endless)
    try:
        reach(first, folder, lambda folder: (folder / "metrics.csv").is_file())
        second = run(arguments(folder, endless, "seed=7"), tmp_path)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    said = second.stdout + second.stderr
    assert second.returncode == 2, said
    assert f"another run is at work in this folder (process {first.pid} on" in said
    assert "hydra.run.dir=FOLDER" in said
    assert "Traceback" not in said
    assert json.loads((folder / "record.json").read_text())["seed"] == 42
    third = start(folder, endless)
    reach(third, folder, lambda folder: f'"pid": {third.pid}' in (folder / OWNER_FILE).read_text())
    os.killpg(third.pid, signal.SIGTERM)
    said = third.communicate(timeout=120)[0]
    assert f"the run of process {first.pid} on" in said
    assert third.returncode == 128 + signal.SIGTERM, said
    assert not (folder / OWNER_FILE).exists()


@pytest.mark.slow
def test_a_full_disk_is_told_and_what_was_saved_goes_on(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("no small disk can be mounted here (needs root)")
    planted = named = 0
    try:
        folder = disk / "run"
        done = run(arguments(folder, "callbacks.keep_checkpoints=20"), tmp_path)
        planted += 1
        said = done.stdout + done.stderr
        assert done.returncode == 2, said
        assert "Traceback" not in said
        assert f"error: {folder / 'checkpoints'}" in said
        assert "the disk is full: free some room" in said
        for name in ("status.json", "record.json"):
            assert json.loads((folder / name).read_text())["status"] == "failed"
        named += 1
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        finish(folder, "callbacks.keep_checkpoints=20")
        assert "resuming from" in (folder / "train.log").read_text()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    print(f"{planted} full disks, {named} named")


@pytest.mark.parametrize("kind", ["file", "below a file", "read-only"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("")
    folder = {"file": tmp_path / "file", "below a file": tmp_path / "file" / "run", "read-only": Path("/proc/run")}[
        kind
    ]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), f"hydra.run.dir={folder}"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert str(folder) in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [True, False])
def test_generation_leaves_nothing_behind(tmp_path: Path, whole_group: bool) -> None:
    command = [sys.executable, "-m", "lime.embedded.benchmark", "--root", str(tmp_path / "root"), "--workers", "2"]
    running = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    reach(running, tmp_path, lambda folder: any(folder.glob("**/media/*/*")))
    (os.killpg if whole_group else os.kill)(running.pid, signal.SIGTERM)
    said = running.communicate(timeout=60)[0]
    assert running.returncode == 128 + signal.SIGTERM, said
    assert "stopped by SIGTERM" in said
    assert "Traceback" not in said
    assert gone(running.pid), group(running.pid)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "seconds"), [(signal.SIGTERM, 0.0), (signal.SIGINT, 1.5), (signal.SIGHUP, 0.5)])
def test_verification_leaves_nothing_behind(tmp_path: Path, number: signal.Signals, seconds: float) -> None:
    """To the whole group, while the processes start and while they decode."""
    rows = [tiny.row("image", f"media/{i}.png", f"what is {i}?", "red") for i in range(800)]
    root = tiny.write_root(tmp_path / "root", {"train": rows}, media=False)
    (root / "media").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    Image.fromarray(pixels).save(root / "media" / "0.png")
    for i in range(1, 800):
        (root / "media" / f"{i}.png").hardlink_to(root / "media" / "0.png")
    running = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "data.py"), "verify", str(root), "--workers", "2"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    )  # fmt: skip
    reach(running, root, lambda _: sum("spawn_main" in line for line in group(running.pid)) == 2)
    time.sleep(seconds)
    os.killpg(running.pid, number)
    said = running.communicate(timeout=60)[0]
    assert running.returncode == 128 + number, said
    assert said.strip().splitlines()[-1].startswith(f"stopped by {number.name}"), said
    assert "Traceback" not in said
    assert gone(running.pid), group(running.pid)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "whole_group", "runs"), [(signal.SIGTERM, True, 2), (signal.SIGINT, False, 1)])
def test_runs_of_a_parallel_sweep_stop_with_it(
    tmp_path: Path, number: signal.Signals, whole_group: bool, runs: int
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    overrides = [text for text in arguments(tmp_path / "x")[2:] if not text.startswith("hydra.run.dir")]
    overrides += ["launcher=parallel", f"seed=range(0,{runs})", "trainer.max_epochs=100000", "trainer.preflight=false"]
    running = Process([sys.executable, str(ROOT / "train.py"), "-m", *overrides], tmp_path, together=True)
    sweep = tmp_path / "multirun" / "main"
    try:
        reach(running, sweep, lambda folder: len(list(folder.glob("*/metrics.csv"))) == runs)
        (os.killpg if whole_group else os.kill)(running.pid, number)
        said = running.communicate(timeout=120)[0]
        assert running.returncode == 128 + number, said
        assert gone(running.pid), group(running.pid)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    assert f"stopped by {number.name}" in said
    assert f"{runs} interrupted" in said
    told = f"{runs} runs in multirun/main, by launcher=parallel; to follow them: python scripts/runs.py multirun/main"
    assert told in said
    assert "++" not in said  # of the launcher's own lines
    assert "Traceback" not in said
    for path in sweep.glob("*/status.json"):
        status = json.loads(path.read_text())
        assert (status["status"], status["error"]["type"]) == ("interrupted", number.name)
        assert steps(path.parent)


INTERRUPTED_AT = """
import os, runpy, signal, sys
program, module = sys.argv[1:3]
sys.argv[:3] = [program]

def interrupted(event, arguments):
    if event == "import" and arguments[0] == module:
        os.killpg(0, signal.SIGINT)
        os._exit(0)  # it was not ended

sys.addaudithook(interrupted)
runpy.run_path(program, {}, "__main__")
"""


@pytest.mark.parametrize(
    ("program", "module"),
    [("train.py", "lime"), ("train.py", "hydra"), ("train.py", "lime.config.schema"), ("eval.py", "omegaconf")],
)
def test_ctrl_c_while_it_is_imported_ends_in_a_line(program: str, module: str, tmp_path: Path) -> None:
    line = '"$0" -c "$1" "$2" "$3" hydra.run.dir="$4"; exit $?'  # a shell gives 130 for a process that died of it, too
    done = subprocess.run(
        ["sh", "-c", f"trap : INT; {line}", sys.executable, INTERRUPTED_AT, program, module, str(tmp_path / "run")],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    )  # fmt: skip
    assert done.returncode == 130, done.stdout
    assert "Traceback" not in done.stdout
    assert "KeyboardInterrupt" not in done.stdout


HALF_MADE = """
import os, signal, sys
from lime.system import interrupts

class Loader:
    def __init__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        self.workers = []

    def __del__(self):
        self.workers.clear()

with interrupts.taken():
    try:
        Loader()
    except interrupts.Interrupted as stop:
        sys.stderr.write(f"{stop}\\n")
        raise
"""


def test_finalisers_of_what_a_signal_left_half_made_say_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", HALF_MADE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "stopped by SIGTERM\n")
