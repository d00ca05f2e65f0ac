"""Run a program of the project in this process, as the command line would."""

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
    """Exit code, standard output, and what was printed on both streams."""

    code: int
    out: str
    said: str


class Program:
    """Calls programs in a folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
        self._folder, self._monkeypatch, self._capfd = folder, monkeypatch, capfd
        monkeypatch.chdir(folder)

    def run(self, script: str, *arguments: str) -> Outcome:
        self._monkeypatch.setattr(sys, "argv", [script, *arguments])
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
        return Outcome(code, printed.out, printed.out + printed.err)

    def must(self, script: str, *arguments: str) -> str:
        """Standard output of a program that has to succeed."""
        outcome = self.run(script, *arguments)
        assert not outcome.code, f"{script} {' '.join(arguments)}\n{outcome.said}"
        return outcome.out


class Command(Program):
    """Calls train.py or eval.py with overrides and an output folder of the test's own."""

    def __call__(self, script: str, *overrides: str, out: str = "out") -> Outcome:
        return self.run(script, *overrides, f"hydra.run.dir={self._folder / out}")
