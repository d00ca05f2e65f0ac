"""The command line of train.py and eval.py in this process, with a task that only notes what it was given."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from lime.config.schema import EvalConfig, TrainConfig
from lime.jobs.command_line import launch

ROOT = Path(__file__).parents[2]


@dataclass
class Outcome:
    """Exit code, all that was printed (a traceback that would be shown included), and the runs."""

    code: int = 0
    said: str = ""
    runs: list[tuple[Any, Path]] = field(default_factory=list)


class Runs:
    """A sweep that calls every run."""

    def run(self, task: Any, config: Any, folder: Path, overrides: list[str]) -> None:
        task()

    def summary(self, plan: Any) -> int:
        return 0


def line(
    *arguments: str, program: str = "train", conf: Path = ROOT / "conf", does: Callable[[Any, Path], None] | None = None
) -> Outcome:
    """What this command line comes to. Works in the current folder.

    does: what each run does, given its configuration and folder.
    """
    found = Outcome()
    printed = io.StringIO()

    def task(config: Any, folder: Path, overrides: list[str]) -> None:
        found.runs.append((config, folder))
        if does is not None:
            does(config, folder)

    schema: type = TrainConfig if program == "train" else EvalConfig
    experiments = ROOT / "experiments" if program == "train" else None
    handlers = logging.getLogger().handlers[:]
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        mock.patch.object(sys, "argv", [f"{program}.py", *arguments]),
    ):
        try:
            launch(task, schema, conf, program, experiments, Runs() if program == "train" else None)
        except SystemExit as stop:
            found.code = stop.code if isinstance(stop.code, int) else 1
        except Exception:  # noqa: BLE001  # what Python would print
            found.code = 1
            traceback.print_exc()
    logging.getLogger().handlers[:] = handlers
    found.said = printed.getvalue()
    return found
