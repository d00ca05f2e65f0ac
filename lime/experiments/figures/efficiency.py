"""The four efficiency panels (time, throughput, peak memory, trainable parameters) from the records of runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lime.experiments.collection import Sweep
from lime.experiments.figures.panels import efficiency_figure
from lime.experiments.figures.style import seeds, styled, unfinished
from lime.experiments.published import published
from lime.runs.record import Record


def efficiency(sweep: Sweep) -> Figure:
    """Four bars per method: means over its runs, the time of a step with its quartiles over them.

    Raises:
        ValueError: no run that was trained.
    """
    rows = [_row(point.label, point.records) for point in sweep.points if point.records]
    note = f"Training of whole runs: means of {seeds(sweep)}, of the time the median with the quartiles over them."
    with styled():
        return efficiency_figure(rows, published().efficiency, note + unfinished(sweep))


def _row(method: str, records: Sequence[Record]) -> dict[str, Any]:
    """The measurements of one method as a row of `benchmark.py efficiency`."""
    trained = [record.training for record in records if record.training is not None and record.training.steps]
    sizes = [record.parameters.trainable for record in records if record.parameters is not None]
    if not trained or not sizes:
        raise ValueError(f"{method}: no finished run was trained; nothing to draw")
    steps = [1e3 * one.seconds / one.steps for one in trained]
    q1, median, q3 = (float(value) for value in np.percentile(steps, [25, 50, 75]))
    return {
        "method": method,
        "milliseconds": {"q1": q1, "median": median, "q3": q3},
        "rows_per_second": float(np.mean([one.samples_per_second for one in trained])),
        "peak_mib": float(np.mean([one.peak_memory_mb for one in trained])) * 1e6 / 2**20,
        "trainable": sizes[0],
    }
