"""Random choices, each from a given generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Rng = np.random.Generator
T = TypeVar("T")


def pick(rng: Rng, options: Sequence[T]) -> T:
    """One of `options`, uniformly."""
    return options[int(rng.integers(len(options)))]


def pick_other(rng: Rng, options: Sequence[T], *taken: object) -> T:
    """One of `options` that is not among `taken`, uniformly."""
    return pick(rng, [option for option in options if option not in taken])


def shuffled(rng: Rng, options: Sequence[T]) -> list[T]:
    """All of `options` in random order."""
    return [options[i] for i in rng.permutation(len(options))]
