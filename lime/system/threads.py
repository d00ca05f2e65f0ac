"""The cores of a process, and OpenMP threads that wait spin for a moment, then sleep: others are slowed less."""

from __future__ import annotations

import os

SPINS = 2000
"""Rounds of GNU OpenMP's waiting loop, some microseconds: on a quiet machine as fast as its default of 300,000."""


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spin_briefly() -> None:
    """Let idle OpenMP threads sleep soon, unless the user set ``OMP_WAIT_POLICY`` or ``GOMP_SPINCOUNT``.

    Spinning threads hold the cores that another process needs, at the end of every parallel operation. OpenMP reads the
    setting when torch is imported: call this before. No number changes.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
