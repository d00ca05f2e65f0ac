"""Progress of long work: a bar with the time left in a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from typing import Any

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 15.0


class ProgressDisplay:
    """``with ProgressDisplay("training", 300) as bar: bar.advance(1, "loss 1.23")``.

    Args:
        title: what is being done.
        total: number of units of work.
        enabled: False shows and logs nothing.
    """

    def __init__(self, title: str, total: int, enabled: bool = True):
        self._title, self._total, self._enabled = title, total, enabled
        self._done = 0
        self._started = self._told = time.monotonic()
        console = Console(stderr=True)
        self._bar: Progress | None = None
        self._lines: list[tuple[Any, Any]] = []
        if enabled and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )

    def __enter__(self) -> ProgressDisplay:
        if self._bar is not None:
            self._lines = _lines_above(self._bar.console)
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, note="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            for handler, stream in self._lines:
                handler.flush()
                handler.setStream(stream)
            self._lines = []

    def advance(self, count: int = 1, note: str = "") -> None:
        """``count`` more units are done; ``note`` is shown beside the bar."""
        self._done = min(self._done + count, self._total)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, note=note)
        elif self._enabled and time.monotonic() - self._told > SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            left = (self._told - self._started) / self._done * (self._total - self._done)
            log.info("%s: %d of %d%s, %.0f s left", self._title, self._done, self._total, note and f", {note}", left)


def _lines_above(console: Console) -> list[tuple[Any, Any]]:
    """Let log lines that go to the terminal of a live bar appear above it; returns each handler with its stream."""
    changed = []
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            stream = handler.stream
            if not isinstance(stream, FileProxy) and stream is not None and stream.isatty():
                handler.setStream(FileProxy(console, stream))
                changed.append((handler, stream))
    return changed
