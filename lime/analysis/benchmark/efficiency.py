"""The efficiency figure: a training step of every method, and the four published panels from its record."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lime.analysis.benchmark import models, step
from lime.analysis.benchmark.options import ATTENTION, DTYPES, option
from lime.analysis.benchmark.record import load, record
from lime.experiments.figures.efficiency import PUBLISHED, efficiency_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Options:
    """As published: the 0.5B shapes, language model alone, two micro-batches of two rows, E = 4, r = 2."""

    record: str = option("", "a record that was kept: draw it again, measure nothing")
    architecture: str = option("llava_onevision_0_5b", "architecture", models.names())
    layers: int = option(0, "layers of each tower; 0 as published")
    methods: tuple[str, ...] = option(("lora", *PUBLISHED, "moe_lora:loop"), "methods, with their form")
    dtype: str = option("bfloat16", "dtype of the frozen weights", DTYPES)
    batch: int = option(2, "rows of a micro-batch")
    tokens: int = option(128, "tokens of a row")
    accumulate: int = option(2, "micro-batches of a step")
    experts: int = option(4, "experts E")
    rank: int = option(2, "rank r")
    attention: str = option("eager", "attention implementation", ATTENTION)
    repetitions: int = option(15, "interleaved repetitions")
    device: str = option("cpu", "device", ("cpu", "cuda"))
    seed: int = option(0, "seed of weights and inputs")


def run(options: Options) -> dict[str, Any]:
    """Measure and return the record, or load the one that is named."""
    if options.record:
        return load(Path(options.record))
    shared = {field.name for field in fields(options)} & {field.name for field in fields(step.Options)} - {"experts"}
    given = {name: getattr(options, name) for name in shared}
    asked = step.Options(**given, dtypes=(options.dtype,), experts=(options.experts,))
    return record("efficiency", options, step.COLUMNS, step.measure(asked), notes=step.NOTES, device=options.device)


def figure(content: dict[str, Any]) -> Figure:
    """The panels of a record."""
    return efficiency_figure(content["rows"])
