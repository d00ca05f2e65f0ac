"""Ways through an adapted layer, and which one is taken.

- `auto`: the fused function (`lime.method.fused.function`) wherever it applies, else `torch`;
- `torch`: differentiable torch, the update as one product on the frozen output (`modulate_low_rank`);
- `literal`: the definition, Eq. 1 at full width (`modulate`); for tests and benchmarks.

All three compute the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

PATHS = ("auto", "torch", "literal")
_current = "auto"


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
    if name not in PATHS:
        raise ValueError(f"fused path: expected one of {', '.join(PATHS)}, got {name!r}")
    before, _current = _current, name
    try:
        yield
    finally:
        _current = before
