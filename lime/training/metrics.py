"""What a training run measures: sums over a window of optimiser steps, turned into numbers only when logged."""

from __future__ import annotations

import csv
import io
import json
import logging
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lime.distributed import processes
from lime.system.atomic import write_text
from lime.system.limits import naming
from lime.tuner.routing.recorder import LayerStatistics, RoutingStatistics

log = logging.getLogger(__name__)

COLUMNS = (
    "step",
    "epoch",
    "loss/task",
    "loss/importance",
    "loss/kl",
    "loss/total",
    "routing/entropy",
    "routing/experts_active",
    "grad_norm",
    "lr/modulators",
    "lr/peft",
    "samples_per_second",
    "tokens_per_second",
    "peak_memory_mb",
    "val/loss",
    "seconds",
)
"""Columns of metrics.csv. Losses are per answer token (nats), routing per token and layer, entropy in nats."""


class Window:
    """Sums since the last logged row. Tensors stay on their device until :meth:`means`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self.answer_tokens = self.rows = self.tokens = 0
        self.routing: Any = None
        self._started = time.perf_counter()

    def pause(self) -> None:
        """Stop the clock of the throughput, e.g. during validation."""
        self._paused = time.perf_counter()

    def resume(self) -> None:
        self._started += time.perf_counter() - self._paused

    def add(self, sums: Mapping[str, Tensor], answer_tokens: int, rows: int, tokens: int) -> None:
        for name, value in sums.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self.answer_tokens += answer_tokens
        self.rows += rows
        self.tokens += tokens

    def add_routing(self, statistics: Any) -> None:
        self.routing = statistics if self.routing is None else self.routing + statistics

    def state(self) -> dict[str, Any]:
        """What the window holds, as tensors on the CPU and plain numbers."""
        routing = {name: [t.cpu() for t in layer.tensors()] for name, layer in (self.routing or {}).items()}
        return {
            "sums": {name: value.cpu() for name, value in self._sums.items()},
            "answer_tokens": self.answer_tokens,
            "rows": self.rows,
            "tokens": self.tokens,
            "elapsed": time.perf_counter() - self._started,
            "routing": routing,
        }

    def add_state(self, state: Mapping[str, Any]) -> None:
        """Add what :meth:`state` of this or another process's window gave. Time counts once."""
        self.add(state["sums"], state["answer_tokens"], state["rows"], state["tokens"])
        self._started = min(self._started, time.perf_counter() - state["elapsed"])
        if state["routing"]:
            layers = {name: LayerStatistics(*tensors) for name, tensors in state["routing"].items()}
            self.add_routing(RoutingStatistics(layers))

    def over_processes(self) -> Window:
        """The window of all processes together; of one process, this one."""
        if processes.world_size() == 1:
            return self
        whole = Window()
        for state in processes.gather(self.state()):
            whole.add_state(state)
        return whole

    def means(self) -> dict[str, float]:
        """Losses per answer token and throughput of the window."""
        elapsed = time.perf_counter() - self._started
        losses = {name: float(value) / self.answer_tokens for name, value in self._sums.items()}
        return losses | {"samples_per_second": self.rows / elapsed, "tokens_per_second": self.tokens / elapsed}


@dataclass(frozen=True)
class FileState:
    """What a checkpoint remembers of a file of lines: how many there were, their checksum, and the last step.

    ``ended``: training was over then, so that nothing is written again: readable lines after them stay too.
    """

    lines: int
    checksum: int | None
    step: int
    ended: bool = False


class LineFile:
    """Lines that are flushed one by one, so that a killed run keeps what it measured.

    Args:
        state: of an earlier part of the run, whose lines stay; those after them are written again. Where they are not
            what the checkpoint remembers, those that can still be read stay, and the log says how many are lost.
    """

    header = ""

    def __init__(self, path: Path, state: FileState | None = None):
        self._path = path
        lines = self._lines_of(state) if state is not None else []
        write_text(path, self.header + "".join(lines))
        self._file = path.open("a", newline="", encoding="utf-8")
        self.lines, self.checksum = len(lines), zlib.crc32("".join(lines).encode())

    def close(self) -> None:
        with naming(self._path):
            self._file.close()

    def write(self, values: Mapping[str, Any]) -> None:
        line = self._line(values)
        with naming(self._path):
            self._file.write(line)
            self._file.flush()
        self.lines += 1
        self.checksum = zlib.crc32(line.encode(), self.checksum)

    def _line(self, values: Mapping[str, Any]) -> str:
        raise NotImplementedError

    def _step(self, line: str) -> int:
        """The step that a line is about. ValueError where it is damaged."""
        raise NotImplementedError

    def _lines_of(self, state: FileState) -> list[str]:
        there = self._path.read_bytes().decode(errors="replace") if self._path.is_file() else ""
        lines = there.removeprefix(self.header).splitlines(keepends=True)
        first = lines[: state.lines]
        whole = there.startswith(self.header) and len(first) == state.lines
        if whole and state.checksum in (None, zlib.crc32("".join(first).encode())):
            return first + (self._readable(lines[state.lines :], state.step) if state.ended else [])
        good = self._readable(lines, state.step)
        log.warning(
            "%s is damaged: of %d lines up to step %d that the checkpoint counts, %d can be read and stay",
            self._path, state.lines, state.step, len(good),
        )  # fmt: skip
        return good

    def _readable(self, lines: Iterable[str], step: int) -> list[str]:
        """Whole lines up to a step, each once."""
        good: list[str] = []
        for line in lines:
            try:
                if line.endswith("\n") and line not in good and self._step(line) <= step:
                    good.append(line)
            except (ValueError, KeyError, TypeError):
                continue
        return good


class MetricsFile(LineFile):
    """metrics.csv with the fixed columns, and those of further learning rates."""

    def __init__(self, path: Path, state: FileState | None = None, rates: Sequence[str] = ()):
        after = COLUMNS.index("lr/peft") + 1
        self._columns = (*COLUMNS[:after], *(name for name in rates if name not in COLUMNS), *COLUMNS[after:])
        self.header = ",".join(self._columns) + "\r\n"
        super().__init__(path, state)

    def _line(self, values: Mapping[str, Any]) -> str:
        assert values.keys() <= set(self._columns), values.keys() - set(self._columns)
        return _csv_line([_short(values[name]) if name in values else "" for name in self._columns])

    def _step(self, line: str) -> int:
        values = next(csv.reader([line]))
        if len(values) != len(self._columns):
            raise ValueError(line)
        for value in values:
            float(value or 0)
        return int(values[0])


class UsageFile(LineFile):
    """routing.jsonl: at each logged step the expert usage of every adapted layer."""

    def _line(self, values: Mapping[str, Any]) -> str:
        rounded = {layer: [round(share, 6) for share in shares] for layer, shares in values["usage"].items()}
        return json.dumps({"step": values["step"], "usage": rounded}) + "\n"

    def _step(self, line: str) -> int:
        return int(json.loads(line)["step"])


def _csv_line(values: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue()


def _short(value: float | int) -> float | int | str:
    return f"{value:.9g}" if isinstance(value, float) else value
