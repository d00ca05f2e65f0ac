"""The largest values that options take: far above any use, below what ends in a traceback or a full machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

LARGEST = {
    "peft.r": 65_536,
    "peft.num_virtual_tokens": 65_536,
    "lime.num_experts": 65_536,
    "lime.routing_seed": 2**32 - 1,
    "seed": 2**64,  # told elsewhere
    "data.mini.seed": 2**32 - 1,
    "data.mini.train_per_task": 1_000_000,
    "data.mini.test_per_task": 1_000_000,
    "data.mini.workers": 4_096,
    "data.num_workers": 4_096,
    "data.prefetch": 65_536,
    "evaluation.max_new_tokens": 1_000_000,
    "model.video.num_frames": 65_536,
    "trainer.batch_size": 1_000_000,
    "evaluation.batch_size": 1_000_000,
    "trainer.devices": 65_536,
    "trainer.num_nodes": 65_536,
    "trainer.num_threads": 4_096,
    "devices": 65_536,
}
"""By key; other whole numbers go up to :data:`ANY`."""
ANY = 2**31 - 1
ANY_NUMBER = 1e30


def bound_errors(config: Any, prefix: str = "") -> Iterator[str]:
    """Numbers of a tree of dataclasses that are too large, each with its key and bound."""
    for field in dataclasses.fields(config):
        key, value = f"{prefix}{field.name}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from bound_errors(value, f"{key}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            most = LARGEST.get(key, ANY)
            if not -ANY <= value <= most:
                yield (
                    f"{key}: expected at most {most:,}, got {value:,}" if value > 0 else f"{key}: {value:,} is too low"
                )
        elif isinstance(value, float) and abs(value) > ANY_NUMBER:
            yield f"{key}: expected a number up to {ANY_NUMBER:g}, got {value:g}"
