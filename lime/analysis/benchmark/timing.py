"""Interleaved timing: every repetition runs every subject once, so that what disturbs the machine disturbs all."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

K = TypeVar("K")


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some measurements."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value; quartiles by linear interpolation."""
        return cls(*np.quantile(values, (0.5, 0.25, 0.75)).tolist())

    def scaled(self, factor: float) -> Spread:
        """The same in another unit; `factor` is positive."""
        return Spread(self.median * factor, self.q1 * factor, self.q3 * factor)


def interleaved(
    subjects: Mapping[K, Callable[[], Any]], repetitions: int, *, warmup: int = 3, device: torch.device | str = "cpu"
) -> dict[K, list[float]]:
    """Seconds of every subject in every repetition.

    A repetition runs all subjects once, beginning with another one each time. `warmup` repetitions go before and are
    not counted. Python's garbage collector is off meanwhile.

    Raises:
        ValueError: no subjects, or less than one repetition.
    """
    if not subjects or repetitions < 1:
        raise ValueError("timing needs at least one subject and one repetition")
    finish = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda _: None
    names = list(subjects)
    seconds: dict[K, list[float]] = {name: [] for name in names}
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for repetition in range(-warmup, repetitions):
            first = repetition % len(names)
            for name in [*names[first:], *names[:first]]:
                finish(device)
                start = time.perf_counter()
                subjects[name]()
                finish(device)
                if repetition >= 0:
                    seconds[name].append(time.perf_counter() - start)
    finally:
        if collecting:
            gc.enable()
    return seconds


def ratios(seconds: Mapping[str, Sequence[float]], reference: str) -> dict[str, Spread]:
    """Each subject's time over the reference's of the same repetition."""
    base = np.array(seconds[reference])
    return {name: Spread.of((np.array(times) / base).tolist()) for name, times in seconds.items()}
