"""OpenMP threads that wait by sleeping, so that a busy machine does not slow a run down many times."""

from __future__ import annotations

import os


def sleep_while_waiting() -> None:
    """Let idle OpenMP threads sleep instead of spinning, unless the user set ``OMP_WAIT_POLICY``.

    Spinning threads hold the cores that another process needs, at the end of every parallel operation. OpenMP reads the
    setting when torch is imported: call this before. No number changes.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
