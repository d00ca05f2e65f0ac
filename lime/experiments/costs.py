"""What training took, for tables: means over the seeds of a point."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lime.runs.record import Record, Training

COSTS: dict[str, tuple[str, Callable[[Training], float]]] = {
    "step_seconds": ("seconds a step", lambda training: training.seconds / training.steps),
    "rows_per_second": ("rows a second", lambda training: training.samples_per_second),
    "peak_memory_gb": ("peak memory, GB", lambda training: training.peak_memory_mb / 1e3),
}
"""Column, its heading, and its value for one run."""


def costs_of(records: Sequence[Record]) -> dict[str, float]:
    """Mean of each of :data:`COSTS` over the runs that were trained; empty where none was."""
    trained = [record.training for record in records if record.training is not None and record.training.steps]
    if not trained:
        return {}
    return {column: float(np.mean([of(one) for one in trained])) for column, (_, of) in COSTS.items()}
