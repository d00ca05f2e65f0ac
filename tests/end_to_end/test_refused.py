"""What the machine or the terminal refuses ends no run that has its numbers, and is told where it does end one."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.command import ROOT
from tests.end_to_end.test_kill import arguments

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.slow
def test_a_terminal_that_lacks_characters_shows_others_and_the_run_is_finished(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = subprocess.run(
        arguments(folder, "trainer.max_steps=2", "trainer.preflight=false", "evaluation.baseline_frozen=false"),
        cwd=tmp_path, env={**os.environ, **ASCII}, capture_output=True, encoding="ascii", check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "macro" in done.stdout  # the table
    assert "Traceback" not in said
    assert "UnicodeEncodeError" not in said
    assert json.loads((folder / "status.json").read_text())["status"] == "finished"
    record = json.loads((folder / "record.json").read_text())
    assert record["status"] == "finished"
    assert record["scores"]


@pytest.mark.slow
def test_a_file_that_may_not_grow_is_named_with_the_limit(tmp_path: Path) -> None:
    folder, limit = tmp_path / "run", 64 * 1024

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        arguments(folder, "trainer.preflight=false", "evaluation.baseline_frozen=false"),
        cwd=tmp_path, capture_output=True, text=True, check=False, preexec_fn=limited,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "Traceback" not in said
    assert f"error: {folder / 'checkpoints'}" in said
    assert "may not write larger files (now 0.1 MB, `ulimit -f 64`): raise that, `ulimit -f unlimited`" in said
    assert json.loads((folder / "status.json").read_text())["status"] == "failed"
    assert not list(folder.rglob(".lime-part*"))


def test_data_cannot_be_generated_there(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lime.embedded.benchmark", "--root", "/proc/nope"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "cannot be written to /proc/nope" in done.stderr
    assert "Traceback" not in done.stderr
