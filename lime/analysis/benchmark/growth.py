"""How cost grows: LiME against plain LoRA along one axis at a time, and where the difference stops being negligible."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lime.analysis.benchmark import layer, models, step
from lime.analysis.benchmark.forms import REFERENCE, Subject
from lime.analysis.benchmark.options import DTYPES, option
from lime.analysis.benchmark.record import Column, record
from lime.analysis.benchmark.timing import Spread
from lime.tuner.settings import LimeSettings

AXES = ("experts", "rank", "tokens", "step_experts", "step_layers", "step_batch")


@dataclass(frozen=True)
class Options:
    """The axes to walk; what an axis does not vary stays at E = 4, r = 2 and the given shape."""

    axes: tuple[str, ...] = option(AXES, "axes: of one layer, or (step_) of a whole training step", AXES)
    method: str = option("lime_lora", "method that is compared with plain LoRA")
    experts: tuple[int, ...] = option((1, 2, 4, 8, 16, 32, 64), "experts E")
    ranks: tuple[int, ...] = option((1, 2, 4, 8, 16, 32, 64), "ranks r")
    tokens: tuple[int, ...] = option((128, 512, 2048, 8192, 32768), "tokens of the layer's input")
    layers: tuple[int, ...] = option((1, 2, 4, 8), "layers of the model")
    batches: tuple[int, ...] = option((1, 2, 4, 8), "rows of a batch")
    shape: str = option("896x896", "d_in x d_out of the layer")
    base_tokens: int = option(1024, "tokens where they do not vary")
    architecture: str = option(models.QWEN2_896, "architecture of the steps", models.names())
    step_tokens: int = option(128, "tokens of a row of a step")
    dtype: str = option("float32", "dtype of the frozen weights", DTYPES)
    threshold: float = option(1.05, "ratio to plain LoRA above which cost is no longer negligible")
    repetitions: int = option(9, "interleaved repetitions")
    device: str = option("cpu", "device", ("cpu", "cuda"))
    seed: int = option(0, "seed of weights and inputs")


COLUMNS = (
    Column("axis", "axis"),
    Column("value", "value", ","),
    Column("milliseconds", "ms", ",.1f"),
    Column("vs_lora", "time / lora", ".3f"),
    Column("kept_per_token", "kept bytes a token", ",.0f"),
    Column("kept_vs_lora", "kept / lora", ".3f"),
    Column("passes", "wide passes", ".2f"),
    Column("trainable", "trainable", ","),
    Column("negligible", "negligible"),
)


def run(options: Options) -> dict[str, Any]:
    """Measure and return the record."""
    subject = Subject.of(options.method)
    if subject.name in (REFERENCE, "frozen"):
        raise ValueError(f"--method: {subject.name} is what others are compared with; name another")
    rows: list[dict[str, Any]] = []
    for axis in options.axes:
        measured = _step(axis.removeprefix("step_"), options) if axis.startswith("step_") else _layer(axis, options)
        rows += [{"axis": axis.replace("_", ", "), **row} for row in measured]
    for row in rows:
        row["negligible"] = "yes" if row["vs_lora"].median <= options.threshold else "no"
    return record("growth", options, COLUMNS, rows, notes=[*_verdicts(rows, options)], device=options.device)


def _layer(axis: str, options: Options) -> Iterator[dict[str, Any]]:
    asked = layer.Options(repetitions=options.repetitions, device=options.device, seed=options.seed)
    base = layer.linear(options.shape, options.dtype, asked)
    subjects = [Subject.of(REFERENCE), Subject.of(options.method)]
    for value in {"experts": options.experts, "rank": options.ranks, "tokens": options.tokens}[axis]:
        varied = {"experts": 4, "rank": 2, "tokens": options.base_tokens} | {axis: value}
        settings = LimeSettings(target_modules=["proj"], num_experts=varied["experts"], r=varied["rank"])
        yield _row(value, layer.compare(base, subjects, settings, "plain", varied["tokens"], asked))


def _step(axis: str, options: Options) -> Iterator[dict[str, Any]]:
    for value in {"experts": options.experts, "layers": options.layers, "batch": options.batches}[axis]:
        varied = {"experts": 4, "layers": 4, "batch": 2} | {axis: value}
        asked = step.Options(
            architecture=options.architecture,
            layers=varied["layers"],
            methods=(REFERENCE, options.method),
            dtypes=(options.dtype,),
            batch=varied["batch"],
            tokens=options.step_tokens,
            experts=(varied["experts"],),
            repetitions=options.repetitions,
            device=options.device,
            seed=options.seed,
        )
        yield _row(value, step.measure(asked))


def _row(value: int, compared: list[dict[str, Any]]) -> dict[str, Any]:
    """The columns of the method, which comes after plain LoRA."""
    return {"value": value, **{column.key: compared[1][column.key] for column in COLUMNS if column.key in compared[1]}}


def _verdicts(rows: list[dict[str, Any]], options: Options) -> Iterator[str]:
    """Per axis, where the ratio is within the threshold and where above."""
    for axis in dict.fromkeys(row["axis"] for row in rows):
        points: list[tuple[int, Spread]] = [(row["value"], row["vs_lora"]) for row in rows if row["axis"] == axis]
        above = [value for value, ratio in points if ratio.median > options.threshold]
        under = [value for value, ratio in points if ratio.median <= options.threshold]
        limit = f"{100 * (options.threshold - 1):.0f}% over plain LoRA"
        if not above:
            yield f"{axis}: within {limit} throughout ({points[0][0]:,} to {points[-1][0]:,})."
        elif not under:
            yield f"{axis}: more than {limit} throughout ({points[0][0]:,} to {points[-1][0]:,})."
        else:
            yield (
                f"{axis}: within {limit} at {', '.join(f'{v:,}' for v in under)}; above at "
                f"{', '.join(f'{v:,}' for v in above)}."
            )
