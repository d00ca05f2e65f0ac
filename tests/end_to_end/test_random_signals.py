"""A signal at any moment of a run's life: its exit code, a status, no traceback, and the same end when started again.

The runs are forked from a process that has imported the libraries, so that most of their life is the run itself.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from lime.runs.lock import OWNER_FILE
from tests.end_to_end.command import ROOT
from tests.end_to_end.test_kill import arguments, check_whole, same
from tests.end_to_end.test_signals import SIGNALS, gone, group

SIGNALS_SENT = 25
SEED = 5
FORKING = """
import json, os, runpy, signal, sys
import lime.experiments.resume, lime.jobs.train, lime.tuner.layers.linear
for line in sys.stdin:
    arguments, log = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, out)):
            os.dup2(file, stream)
        sys.argv = arguments
        break
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Runs:
    """Starts runs in processes that have everything imported."""

    def __init__(self, folder: Path):
        self._log = folder / "said.txt"
        self._server = subprocess.Popen(
            [sys.executable, "-c", FORKING], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate(timeout=60)

    def __call__(self, command: list[str], number: int | None = None, after: float = 0.0) -> tuple[int, str, int]:
        """Exit code, what was said, and process number of a run that is sent a signal after some seconds."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps([command[1:], str(self._log)]) + "\n")
        process = int(self._server.stdout.readline())
        if number is not None:
            time.sleep(after)
            with suppress(ProcessLookupError):  # it has ended
                os.kill(process, number)
        return int(self._server.stdout.readline()), self._log.read_text(), process


@pytest.mark.slow
def test_a_signal_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    outcomes: Counter[str] = Counter()
    with Runs(tmp_path) as run:
        code, said, _ = run(arguments(tmp_path / "first"))
        assert code == 0, said
        started = time.monotonic()
        code, said, _ = run(arguments(tmp_path / "whole"))
        seconds = time.monotonic() - started
        assert code == 0, said
        folder, folders = tmp_path / "run0", 1
        for _ in range(SIGNALS_SENT):
            number, workers, after = rng.choice(SIGNALS), rng.choice((0, 0, 1)), rng.uniform(0, 0.9 * seconds)
            code, said, process = run(arguments(folder, f"data.num_workers={workers}"), number, after)
            told = f"{number.name} after {after:.3f} s of {seconds:.3f} s, {folder}: code {code}\n{said}"
            assert code in (0, 128 + number, -number), told
            assert "Traceback" not in said, told
            assert "Exception ignored" not in said, told
            assert gone(process), (group(process), told)
            assert not (folder / OWNER_FILE).exists(), told
            if folder.exists():
                check_whole(folder)
            status = json.loads((folder / "status.json").read_text()) if (folder / "status.json").exists() else {}
            if code == 128 + number:
                assert f"stopped by {number.name}" in said, told
                if (folder / "train.log").exists():
                    assert status["status"] in ("interrupted", "finished"), told
            elif code == 0 or status.get("status") == "finished":
                assert status["status"] == "finished", told
            outcomes[str(status.get("status"))] += 1
            if status.get("status") == "finished":
                same(folder, tmp_path / "whole")
                folder, folders = tmp_path / f"run{folders}", folders + 1
        code, said, _ = run(arguments(folder))
        assert code == 0, said
        same(folder, tmp_path / "whole")
    print(f"{SIGNALS_SENT} signals at random moments: {dict(outcomes)}; {folders} runs came to the same end")
