"""A signal at any moment of a run's life: its exit code, a status, no traceback, and the same end when started again.

The runs are forked from a process that has imported the libraries, so that most of their life is the run itself.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from lime.runs.lock import OWNER_FILE
from tests.end_to_end.test_kill import check_whole, finish, same
from tests.end_to_end.test_signals import SIGNALS, gone, group, start

SIGNALS_SENT = 15
SEED = 5


@pytest.mark.slow
def test_a_signal_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    outcomes: Counter[str] = Counter()
    finish(tmp_path / "first")
    started = time.monotonic()
    finish(tmp_path / "whole")
    seconds = time.monotonic() - started
    folder, folders = tmp_path / "run0", 1
    for _ in range(SIGNALS_SENT):
        number, workers, after = rng.choice(SIGNALS), rng.choice((0, 0, 1)), rng.uniform(0, 0.9 * seconds)
        running = start(folder, f"data.num_workers={workers}")
        time.sleep(after)
        running.send_signal(number)
        (said, _), code, process = running.communicate(), running.returncode, running.pid
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
    finish(folder)
    same(folder, tmp_path / "whole")
    print(f"{SIGNALS_SENT} signals at random moments: {dict(outcomes)}; {folders} runs came to the same end")
