"""Interleaved timing: every repetition runs every subject once, so that what disturbs the machine disturbs all."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some measurements."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value; quartiles by linear interpolation.

        Raises:
            ValueError: no values.
        """
        if not values:
            raise ValueError("a spread needs at least one measurement")
        quartiles = torch.tensor(list(values), dtype=torch.float64).quantile(
            torch.tensor([0.5, 0.25, 0.75], dtype=torch.float64)
        )
        return cls(*quartiles.tolist())

    def scaled(self, factor: float) -> Spread:
        """The same in another unit; `factor` is positive."""
        return Spread(self.median * factor, self.q1 * factor, self.q3 * factor)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    subjects: Mapping[str, Callable[[], Any]], repetitions: int, *, warmup: int = 3, device: torch.device | str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of every subject in every repetition.

    A repetition runs all subjects once, beginning with another one each time. `warmup` repetitions go before and are
    not counted. Python's garbage collector is off meanwhile.

    Raises:
        ValueError: no subjects, or less than one repetition.
    """
    if not subjects or repetitions < 1:
        raise ValueError("timing needs at least one subject and one repetition")
    device = torch.device(device)
    names = list(subjects)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for repetition in range(-warmup, repetitions):
            first = repetition % len(names)
            for name in [*names[first:], *names[:first]]:
                synchronise(device)
                start = time.perf_counter()
                subjects[name]()
                synchronise(device)
                if repetition >= 0:
                    seconds[name].append(time.perf_counter() - start)
    finally:
        if collecting:
            gc.enable()
    return seconds


def ratios(seconds: Mapping[str, Sequence[float]], reference: str) -> dict[str, Spread]:
    """Each subject's time over the reference's of the same repetition.

    Raises:
        KeyError: the reference was not timed.
    """
    base = seconds[reference]
    return {
        name: Spread.of([one / other for one, other in zip(times, base, strict=True)])
        for name, times in seconds.items()
    }
