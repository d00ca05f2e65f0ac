"""One adapted layer: forward and backward time, activations kept, passes over memory, by method."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import lime
from lime.analysis.benchmark.counting import Traffic, kept_storages
from lime.analysis.benchmark.forms import REFERENCE, Subject, trainable
from lime.analysis.benchmark.options import DTYPES, option
from lime.analysis.benchmark.record import Column, record
from lime.analysis.benchmark.timing import Spread, interleaved, ratios
from lime.tuner.settings import LimeSettings

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mask": {},
    "dropout": {"dropout": 0.1},
    "soft": {"soft": True},
    "topk": {"selection": "topk"},
    "dense": {"selection": "dense"},
    "ngram": {"n_gram": 3},
    "balance": {},
}
"""Variants and the options of LiME that make them. `mask`: a quarter of the tokens is padding; `balance`: the balance
terms join the loss."""

COUNTED_TOKENS = 64
"""Counts come from the difference between this many tokens and twice as many, which takes out what does not grow."""


@dataclass(frozen=True)
class Options:
    """What to measure; every combination is timed, all methods of one combination interleaved."""

    shapes: tuple[str, ...] = option(("896x896", "896x128"), "d_in x d_out of the layer")
    tokens: tuple[int, ...] = option((1024, 3000), "tokens")
    dtypes: tuple[str, ...] = option(("float32",), "dtype of the frozen weight and input", DTYPES)
    methods: tuple[str, ...] = option(
        ("frozen", "lora", "lime_lora", "lime_lora:torch", "lime_lora:terms", "moe_lora", "moe_lora:loop"),
        "methods, with their form",
    )
    variants: tuple[str, ...] = option(("plain",), "variants of LiME", tuple(VARIANTS))
    experts: tuple[int, ...] = option((4,), "experts E")
    ranks: tuple[int, ...] = option((2,), "rank r")
    repetitions: int = option(25, "interleaved repetitions")
    device: str = option("cpu", "device", ("cpu", "cuda"))
    seed: int = option(0, "seed of weights and inputs")


COLUMNS = (
    Column("shape", "layer"),
    Column("tokens", "tokens", ","),
    Column("dtype", "dtype"),
    Column("variant", "variant"),
    Column("experts", "E"),
    Column("rank", "r"),
    Column("method", "method"),
    Column("milliseconds", "ms", ".2f"),
    Column("vs_lora", "time / lora", ".3f"),
    Column("vs_frozen", "time / frozen", ".3f"),
    Column("kept_per_token", "kept bytes a token", ",.0f"),
    Column("passes", "wide passes", ".2f"),
    Column("trainable", "trainable", ","),
    Column("launches", "kernels"),
    Column("forward_milliseconds", "forward ms", ".3f"),
    Column("forward_share", "of copy bandwidth", ".0%"),
)
CASE = ("tokens", "variant", "experts", "rank")
NOTES = (
    "`ms` is forward and backward; ratios are medians (quartiles) over repetitions. `kept bytes a token`: saved for "
    "the backward pass beyond the input. `wide passes`: elements read and written beyond the frozen layer's, forward "
    "and backward, in units of tokens x d_out.",
)


class Tower(nn.Module):
    """A model of one linear layer, called as a language model is: with embeddings and a mask."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.proj = base

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        out: Tensor = self.proj(inputs_embeds)
        return out


class Case:
    """A copy of the frozen layer, adapted by one method, and one input, ready to run forward and backward."""

    def __init__(self, base: nn.Linear, subject: Subject, settings: LimeSettings, variant: str, tokens: int, seed: int):
        torch.manual_seed(seed)
        self.model = subject.adapt(Tower(copy.deepcopy(base)), settings)
        weight = base.weight
        self.x = torch.randn(1, tokens, base.in_features, device=weight.device).to(weight.dtype).requires_grad_()
        self.gradient = torch.randn(1, tokens, base.out_features, device=weight.device).to(weight.dtype)
        self.mask: Tensor | None = None
        if variant == "mask":
            self.mask = torch.ones(1, tokens, dtype=torch.long, device=weight.device)
            self.mask[:, tokens - tokens // 4 :] = 0
        self.balanced = variant == "balance" and subject.balances
        self.inputs, self.running = [self.x, *trainable(self.model)], subject.running

    def forward(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """The outputs that have a gradient, and these gradients."""
        if not self.balanced:
            return [self.model(inputs_embeds=self.x, attention_mask=self.mask)], [self.gradient]
        with lime.record(self.model) as recorder:
            out = self.model(inputs_embeds=self.x, attention_mask=self.mask)
        return [out, recorder.balance().total(0.1, 0.01)], [self.gradient, None]

    def only_forward(self) -> None:
        """The forward pass, as in training."""
        with self.running():
            self.forward()

    def run(self) -> None:
        """Forward and backward, gradients of input and adapter."""
        with self.running():
            outputs, gradients = self.forward()
            torch.autograd.grad(outputs, self.inputs, gradients, allow_unused=True)


def counts(make: Callable[[int], Case], width: int) -> dict[str, float]:
    """`kept_per_token` in bytes and `passes` in units of d_out elements a token, of what grows with the tokens."""
    kept, moved = [], []
    for tokens in (COUNTED_TOKENS, 2 * COUNTED_TOKENS):
        case = make(tokens)
        case.run()  # what is made once is made here
        with case.running(), kept_storages(case.model, case.x) as storages:
            held = case.forward()
        kept.append(sum(storages.values()))
        del held
        with Traffic() as traffic:
            case.run()
        moved.append(traffic.elements)
    return {
        "kept_per_token": (kept[1] - kept[0]) / COUNTED_TOKENS,
        "passes": (moved[1] - moved[0]) / (COUNTED_TOKENS * width),
    }


def run(options: Options) -> dict[str, Any]:
    """Measure and return the record."""
    subjects = [Subject.of(name) for name in options.methods]
    rows: list[dict[str, Any]] = []
    for shape, dtype in product(options.shapes, options.dtypes):
        base = linear(shape, dtype, options)
        for case in product(options.tokens, options.variants, options.experts, options.ranks):
            tokens, variant, experts, rank = case
            settings = LimeSettings(num_experts=experts, r=rank, target_modules=["proj"], **VARIANTS[variant])
            where = {"shape": shape, "dtype": dtype, **dict(zip(CASE, case, strict=True))}
            rows += [where | row for row in compare(base, subjects, settings, variant, tokens, options)]
    return record("layer", options, COLUMNS, rows, notes=NOTES, device=options.device)


def linear(shape: str, dtype: str, options: Options) -> nn.Linear:
    """The frozen layer of a shape, with bias."""
    d_in, _, d_out = shape.partition("x")
    if not (d_in.isdigit() and d_out.isdigit()):
        raise ValueError(f"--shapes: expected D_INxD_OUT, e.g. 896x128, got {shape!r}")
    torch.manual_seed(options.seed)
    return nn.Linear(int(d_in), int(d_out)).to(options.device, getattr(torch, dtype))


def compare(
    base: nn.Linear, subjects: list[Subject], settings: LimeSettings, variant: str, tokens: int, options: Options
) -> list[dict[str, Any]]:
    """One row for each subject."""

    def make(subject: Subject) -> Callable[[int], Case]:
        return lambda count: Case(base, subject, settings, variant, count, options.seed)

    cases = {subject.name: make(subject)(tokens) for subject in subjects}
    work = {name: case.run for name, case in cases.items()}
    seconds = interleaved(work, options.repetitions, device=options.device)
    counted = {subject.name: counts(make(subject), base.out_features) for subject in subjects}
    floor = counted["frozen"]["passes"] if "frozen" in counted else 4.0  # x, z, and their gradients
    against = {f"vs_{name}": ratios(seconds, name) for name in (REFERENCE, "frozen") if name in seconds}
    gpu = on_gpu(cases, options) if options.device == "cuda" else {}
    return [
        {
            "method": name,
            "milliseconds": Spread.of(seconds[name]).scaled(1e3),
            **{key: spread[name] for key, spread in against.items()},
            "kept_per_token": counted[name]["kept_per_token"],
            "passes": counted[name]["passes"] - floor,
            "trainable": sum(p.numel() for p in trainable(case.model)),
            **gpu.get(name, {}),
            "seconds": seconds[name],
        }
        for name, case in cases.items()
    ]


def on_gpu(cases: Mapping[str, Case], options: Options) -> dict[str, dict[str, Any]]:
    """What a GPU can tell besides, by method: `launches`, kernels forward and backward; `forward_milliseconds`; and
    `forward_share`, the bandwidth of what the method adds to the frozen forward pass, over that of a plain copy.

    The least that an update can move is its input once and its output twice, read and written.
    """
    from torch.profiler import ProfilerActivity, profile

    measured: dict[str, dict[str, Any]] = {name: {} for name in cases}
    for name, case in cases.items():
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
            case.run()
            torch.cuda.synchronize()
        measured[name]["launches"] = sum(event.count for event in trace.key_averages() if "LaunchKernel" in event.key)
    source = torch.empty(2**28, dtype=torch.float32, device=options.device)
    target = torch.empty_like(source)
    work = {f"forward {name}": case.only_forward for name, case in cases.items()}
    seconds = interleaved({**work, "copy": lambda: target.copy_(source)}, options.repetitions, device=options.device)
    copy = 2 * source.nbytes / Spread.of(seconds["copy"]).median
    for name, case in cases.items():
        measured[name]["forward_milliseconds"] = Spread.of(seconds[f"forward {name}"]).scaled(1e3)
        if "frozen" in cases and name != "frozen":
            added = float(np.median(np.subtract(seconds[f"forward {name}"], seconds["forward frozen"])))
            if added > 0:
                measured[name]["forward_share"] = (case.x.nbytes + 2 * case.gradient.nbytes) / added / copy
        measured[name]["copy_bytes_per_second"] = copy
    return measured
