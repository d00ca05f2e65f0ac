"""Idle OpenMP threads spin but briefly, as torch finds when it is imported, unless the user says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.command import ROOT

WATCH = """
import os, runpy, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.write(1, os.environ.get("GOMP_SPINCOUNT", "its own").encode())
            os._exit(0)

sys.meta_path.insert(0, Watch())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    "command",
    [["train.py"], ["eval.py", "model=tiny_llava_onevision"], ["scripts/ask.py", "nowhere", "what?"]],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize(
    ("by_user", "expected"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "its own")],
)
def test_it_is_set_before_torch_is_imported(
    command: list[str], by_user: dict[str, str], expected: str, tmp_path: Path
) -> None:
    kept = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment = kept | {"PYTHONPATH": str(ROOT)} | by_user
    line = [sys.executable, "-c", WATCH, str(ROOT / command[0]), *command[1:]]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith(expected), done.stdout + done.stderr
