"""What a training run measures: sums over a window of optimiser steps, turned into numbers only when logged."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lime.atomic import write_text
from lime.training import processes
from lime.tuner.recorder import LayerStatistics, RoutingStatistics

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
        found = {name: float(value) / self.answer_tokens for name, value in self._sums.items()}
        return found | {
            "samples_per_second": self.rows / elapsed,
            "tokens_per_second": self.tokens / elapsed,
        }


class MetricsFile:
    """metrics.csv with the fixed columns, flushed at every row, so that a killed run keeps what it measured.

    Args:
        keep: rows of an earlier part of the run that stay; those after them are written again.
    """

    def __init__(self, path: Path, keep: int = 0):
        self.rows = _keep_lines(path, 1 + keep) - 1 if keep else -1
        self._file = path.open("a" if self.rows >= 0 else "w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, COLUMNS)
        if self.rows < 0:
            self._writer.writeheader()
            self._file.flush()
            self.rows = 0

    def write(self, row: Mapping[str, float | int]) -> None:
        self._writer.writerow({name: _short(value) for name, value in row.items()})
        self._file.flush()
        self.rows += 1

    def close(self) -> None:
        self._file.close()


class UsageFile:
    """routing.jsonl: at each logged step the expert usage of every adapted layer.

    Args:
        keep: as for :class:`MetricsFile`.
    """

    def __init__(self, path: Path, keep: int = 0):
        self.lines = _keep_lines(path, keep) if keep else 0
        self._file = path.open("a" if self.lines else "w", encoding="utf-8")

    def write(self, step: int, usage: Mapping[str, list[float]]) -> None:
        rounded = {layer: [round(share, 6) for share in shares] for layer, shares in usage.items()}
        self._file.write(json.dumps({"step": step, "usage": rounded}) + "\n")
        self._file.flush()
        self.lines += 1

    def close(self) -> None:
        self._file.close()


def _keep_lines(path: Path, count: int) -> int:
    """Cut a file after its first ``count`` lines; returns how many it has then."""
    if not path.is_file():
        return 0
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines[:count] if line.endswith("\n")]
    write_text(path, "".join(kept))
    return len(kept)


def _short(value: float | int) -> float | int | str:
    return f"{value:.9g}" if isinstance(value, float) else value
