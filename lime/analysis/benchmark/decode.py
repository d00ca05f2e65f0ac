"""Generated tokens per second with a key-value cache, by method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from lime.analysis.benchmark import models
from lime.analysis.benchmark.forms import REFERENCE, Subject, shared_copy
from lime.analysis.benchmark.options import ATTENTION, DTYPES, option
from lime.analysis.benchmark.record import Column, record
from lime.analysis.benchmark.timing import Spread, interleaved, ratios
from lime.processors.config import EMBEDDED
from lime.tuner.settings import LimeSettings


@dataclass(frozen=True)
class Options:
    """What to measure; the methods are interleaved and share the frozen weights."""

    architectures: tuple[str, ...] = option(tuple(EMBEDDED), "architectures", models.names())
    layers: int = option(0, "layers of each tower; 0 as published")
    methods: tuple[str, ...] = option(("frozen", "lora", "lime_lora"), "methods, with their form")
    dtype: str = option("bfloat16", "dtype of the frozen weights", DTYPES)
    batches: tuple[int, ...] = option((1, 64), "rows decoded together")
    prompt: int = option(64, "tokens of the prompt")
    new_tokens: int = option(32, "tokens to generate")
    experts: int = option(4, "experts E")
    rank: int = option(8, "rank r")
    n_gram: int = option(1, "window of a routing decision")
    attention: str = option("eager", "attention implementation", ATTENTION)
    repetitions: int = option(25, "interleaved repetitions")
    device: str = option("cpu", "device", ("cpu", "cuda"))
    seed: int = option(0, "seed of weights and inputs")


COLUMNS = (
    Column("architecture", "model"),
    Column("dtype", "dtype"),
    Column("batch", "batch"),
    Column("method", "method"),
    Column("tokens_per_second", "tokens/s", ",.0f"),
    Column("rate_vs_lora", "tokens/s / lora", ".3f"),
    Column("rate_vs_frozen", "tokens/s / frozen", ".3f"),
)
NOTES = (
    "Greedy, with prompt processing; every row is decoded to full length. Ratios are medians (quartiles) over "
    "repetitions.",
)


def run(options: Options) -> dict[str, Any]:
    """Measure and return the record."""
    subjects = [Subject.of(name) for name in options.methods]
    settings = LimeSettings(num_experts=options.experts, r=options.rank, n_gram=options.n_gram)
    rows: list[dict[str, Any]] = []
    for architecture in options.architectures:
        layers, attention = options.layers, options.attention
        base = models.build(architecture, options.dtype, layers, attention, options.device, options.seed)
        adapted = {subject.name: subject.adapt(shared_copy(base), settings).eval() for subject in subjects}
        for batch in options.batches:
            inputs = models.text_inputs(base, batch, options.prompt, options.seed)
            where = {"architecture": architecture, "dtype": options.dtype, "batch": batch}
            rows += [where | row for row in compare(adapted, base, inputs, options)]
    return record("decode", options, COLUMNS, rows, notes=NOTES, device=options.device)


def compare(
    adapted: dict[str, nn.Module], base: PreTrainedModel, inputs: dict[str, Tensor], options: Options
) -> list[dict[str, Any]]:
    """One row for each method."""
    length, ends = options.new_tokens, base.generation_config.eos_token_id
    settings = GenerationConfig(
        max_new_tokens=length, min_new_tokens=length, do_sample=False, use_cache=True, pad_token_id=0, eos_token_id=ends
    )

    def work(name: str, model: nn.Module) -> Callable[[], None]:
        @torch.no_grad()
        def generate() -> None:
            with Subject.of(name).running():
                model.generate(**inputs, generation_config=settings)  # type: ignore[operator]

        return generate

    subjects = {name: work(name, model) for name, model in adapted.items()}
    seconds = interleaved(subjects, options.repetitions, device=options.device)
    rates = {name: [length * len(inputs["input_ids"]) / s for s in times] for name, times in seconds.items()}
    against = {f"rate_vs_{name}": ratios(rates, name) for name in (REFERENCE, "frozen") if name in rates}
    return [
        {
            "method": name,
            "tokens_per_second": Spread.of(rate),
            **{key: spread[name] for key, spread in against.items()},
            "seconds": seconds[name],
        }
        for name, rate in rates.items()
    ]
