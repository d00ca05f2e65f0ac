"""Seconds of the command line: help, a configuration error, and the first optimiser step of train.py."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lime.analysis.benchmark.options import option
from lime.analysis.benchmark.record import Column, record
from lime.analysis.benchmark.timing import Spread, interleaved

ROOT = Path(__file__).resolve().parents[3]
LIMIT = 600.0
"""Seconds after which a run that has made no step is given up."""


@dataclass(frozen=True)
class Options:
    """What to measure, each in a fresh process."""

    overrides: tuple[str, ...] = option((), "overrides of train.py, for the time until the first step")
    steps: bool = option(True, "time the first step too")
    repetitions: int = option(5, "repetitions")


COLUMNS = (Column("what", "until"), Column("seconds", "s", ".2f"))
NOTES = (
    "Each in a fresh process, files in the page cache. The first step is that of the main job: its data are there, and "
    "it does not answer test rows before.",
)


def run(options: Options) -> dict[str, Any]:
    """Measure and return the record."""
    subjects: dict[str, Callable[[], Any]] = {
        "python train.py --help": lambda: _call(["--help"], 0),
        "configuration error": lambda: _call(["lime.num_expert=8", "lime.temperature=hot"], 2),
        "python scripts/benchmark.py --help": lambda: _call(["--help"], 0, "scripts/benchmark.py"),
    }
    if options.steps:
        subjects["first optimiser step"] = lambda: first_step(options.overrides)
    seconds = interleaved(subjects, options.repetitions, warmup=1)
    rows = [{"what": what, "seconds": Spread.of(times)} for what, times in seconds.items()]
    return record("start", options, COLUMNS, rows, notes=NOTES)


def _call(arguments: list[str], code: int, program: str = "train.py") -> None:
    done = subprocess.run([sys.executable, str(ROOT / program), *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != code:
        line = f"{program} {' '.join(arguments)}"
        raise ValueError(f"{line}: exit code {done.returncode}, expected {code}: {done.stderr}")


def first_step(overrides: tuple[str, ...]) -> None:
    """Start train.py and stop it after its first step."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "metrics.csv"
        command = [sys.executable, str(ROOT / "train.py"), "trainer.log_every_n_steps=1", "callbacks.checkpoint=false"]
        command += ["evaluation.baseline_frozen=false", f"hydra.run.dir={folder}", *overrides]
        with (Path(folder) / "log").open("w") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
            try:
                started = time.monotonic()
                while not _has_row(metrics):
                    if process.poll() is not None or time.monotonic() - started > LIMIT:
                        text = (Path(folder) / "log").read_text(encoding="utf-8", errors="replace")
                        raise ValueError(f"train.py made no step:\n{text[-2000:]}")
                    time.sleep(0.02)
            finally:
                process.kill()
                process.wait()


def _has_row(metrics: Path) -> bool:
    return metrics.is_file() and metrics.read_text(encoding="utf-8").count("\n") > 1
