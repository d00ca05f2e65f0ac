"""Run train.py or eval.py in this process, as the command line would."""

from __future__ import annotations

import runpy
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass
class Outcome:
    """Exit code and what was printed (both streams)."""

    code: int
    said: str


class Command:
    """Calls a script with overrides; working folder and output folder are the test's own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
        self._folder, self._monkeypatch, self._capfd = folder, monkeypatch, capfd
        monkeypatch.chdir(folder)

    def __call__(self, script: str, *overrides: str, out: str = "out") -> Outcome:
        arguments = [script, *overrides, f"hydra.run.dir={self._folder / out}"]
        self._monkeypatch.setattr(sys, "argv", arguments)
        self._capfd.readouterr()
        code = 0
        before = signal.getsignal(signal.SIGINT)
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
        finally:
            signal.signal(signal.SIGINT, before)
        printed = self._capfd.readouterr()
        return Outcome(code, printed.out + printed.err)
