"""Whether batches of loader processes fit the shared memory that they travel in, before the first of them is made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

PLACE = Path("/dev/shm")  # where Linux keeps shared memory
_SPARE = 2**20  # bytes for what else is in there


def room() -> int | None:
    """Bytes of shared memory that are left; None where they are not told (other systems)."""
    try:
        state = os.statvfs(PLACE)
    except OSError:
        return None
    return state.f_bavail * state.f_frsize


def check_room(batch: Mapping[str, Any], workers: int, prefetch: int) -> None:
    """Raises ValueError where `prefetch` such batches of each of `workers` processes do not fit.

    A process that finds no room is killed by the system, without a word of why.
    """
    left = room()
    size = sum(value.nbytes for value in batch.values() if isinstance(value, torch.Tensor))
    needed = size * workers * prefetch + _SPARE
    if left is not None and needed > left:
        raise ValueError(
            f"data.num_workers={workers}: batches on their way take up to {needed / 1e6:,.0f} MB of shared memory, "
            f"{PLACE} has {left / 1e6:,.0f} MB left; enlarge it (containers: --shm-size), lower data.prefetch, or set "
            "data.num_workers=0"
        )
