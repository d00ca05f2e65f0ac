"""One run folder, one run: live owners are refused, dead ones taken over, and processes of one run share the lock."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lime.runs import lock
from lime.runs.lock import HELD, LOCK_FILE, OWNER_FILE, BusyError, is_locked, run_lock
from lime.system.interrupts import Interrupted

HOLD = """
import sys, time
from pathlib import Path
from lime.runs.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def owner(folder: Path, **changes: object) -> None:
    content = {"host": "elsewhere", "pid": 1, "started": "2026-01-01T00:00:00+00:00", **changes}
    (folder / OWNER_FILE).write_text(json.dumps(content))


def test_a_live_run_is_refused_and_a_killed_one_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_locked(tmp_path)
        with pytest.raises(BusyError, match=rf"process {holder.pid} on .*since 20.*hydra.run.dir=FOLDER"):
            run_lock(tmp_path).__enter__()
        assert str(holder.pid) in (tmp_path / OWNER_FILE).read_text()
    finally:
        holder.kill()
        holder.communicate()
    assert not is_locked(tmp_path)
    with run_lock(tmp_path):
        assert f"process {holder.pid}" in caplog.text
        assert "this one takes over" in caplog.text
    assert not (tmp_path / OWNER_FILE).exists()


def test_processes_of_one_run_share_the_lock(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        with run_lock(tmp_path):
            pass
        assert (tmp_path / OWNER_FILE).exists()
        child = [sys.executable, "-c", HOLD.replace("time.sleep(600)", "pass"), str(tmp_path)]
        assert subprocess.run(child, capture_output=True, text=True, check=True).stdout == "held\n"
        assert (tmp_path / OWNER_FILE).exists()
        alone = {key: value for key, value in os.environ.items() if key != HELD}
        assert "another run is at work" in subprocess.run(child, env=alone, capture_output=True, text=True).stderr
    assert not os.environ.get(HELD)


def test_an_owner_on_another_host_is_known_by_its_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system does not show another machine's lock."""
    monkeypatch.setattr(lock, "SECONDS_BETWEEN_BEATS", 0.2)
    owner(tmp_path)
    ended = threading.Event()
    beats = threading.Thread(target=lock._beat, args=(tmp_path / OWNER_FILE, ended))
    beats.start()
    with pytest.raises(BusyError, match="process 1 on elsewhere"):
        run_lock(tmp_path).__enter__()
    ended.set()
    beats.join()
    with run_lock(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / OWNER_FILE).read_text()


@pytest.mark.parametrize("content", ["", "[]", "{", "null", "{}"])
def test_a_damaged_owner_s_file_is_in_nobody_s_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(lock, "SECONDS_BETWEEN_BEATS", 0.02)
    (tmp_path / OWNER_FILE).write_text(content)
    (tmp_path / LOCK_FILE).write_text("left over")
    with run_lock(tmp_path):
        pass


def test_the_owner_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SECONDS_BETWEEN_BEATS", 0.05)
    with run_lock(tmp_path):
        before = (tmp_path / OWNER_FILE).stat().st_mtime_ns
        time.sleep(0.3)
        assert (tmp_path / OWNER_FILE).stat().st_mtime_ns > before


@pytest.mark.parametrize("before", [None, {"status": "running", "started": "then"}])
def test_an_interrupt_that_no_record_saw_leaves_a_status(tmp_path: Path, before: dict[str, str] | None) -> None:
    """Before the run began, or between two lines of its beginning and its end."""
    path = tmp_path / "status.json"
    if before is not None:
        lock.claim_run_folder(tmp_path, "run")
        path.write_text(json.dumps(before))
        (tmp_path / lock.RESERVE).write_text("room")
    with run_lock(tmp_path):
        lock.interrupted_unseen(tmp_path, "run", Interrupted(signal.SIGTERM))
        assert path.exists() is (before is not None), "another run is at work here"
    lock.interrupted_unseen(tmp_path, "run", Interrupted(signal.SIGTERM))
    expected = {**(before or {}), "status": "interrupted", "error": {"type": "SIGTERM"}}
    assert json.loads(path.read_text()) == expected
    assert not (tmp_path / lock.RESERVE).exists()
    path.write_text('{"status": "finished"}')
    lock.interrupted_unseen(tmp_path, "run", Interrupted(signal.SIGTERM))
    assert path.read_text() == '{"status": "finished"}'
