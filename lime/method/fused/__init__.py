"""Ways through an adapted layer, and which one is taken.

- `auto`: the fused function (`lime.method.fused.function`) wherever it applies, on a GPU with the kernels of
  `lime.method.triton` where Triton is installed, few tokens of a generation by constants of their own; else `torch`;
- `fused`: the fused function wherever it applies, in a generation too, by torch operations;
- `triton`: the same with the kernels, and an error without a GPU or Triton;
- `torch`: differentiable torch, the update as one product on the frozen output (`modulate_low_rank`).

All compute the same up to rounding. The environment variable `LIME_PATH` names the one of a whole process; `auto` where
it is absent.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

PATHS = ("auto", "triton", "fused", "torch")
BY_FUNCTION = ("auto", "triton", "fused")
"""Paths that take the fused function."""


def _checked(name: str, of: str) -> str:
    if name not in PATHS:
        raise ValueError(f"{of}: expected one of {', '.join(PATHS)}, got {name!r}")
    return name


_current = _checked(os.environ.get("LIME_PATH") or "auto", "environment variable LIME_PATH")


def path() -> str:
    """The path in force."""
    return _current


@contextmanager
def use(name: str) -> Iterator[None]:
    """Take one path in every layer while inside; of the whole process, since backward passes may run in other threads.

    A forward pass under gradient checkpointing and its backward pass belong under the same path.

    Raises:
        ValueError: unknown path.
    """
    global _current
    before, _current = _current, _checked(name, "fused path")
    try:
        yield
    finally:
        _current = before
