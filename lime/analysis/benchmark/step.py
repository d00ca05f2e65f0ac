"""A whole training step (forward, backward, AdamW) of a named architecture with random weights, by method."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import lime
from lime.analysis.benchmark import models
from lime.analysis.benchmark.counting import LiveTensors, kept_storages
from lime.analysis.benchmark.forms import REFERENCE, Subject, shared_copy, trainable
from lime.analysis.benchmark.options import ATTENTION, DTYPES, option
from lime.analysis.benchmark.record import Column, record
from lime.analysis.benchmark.timing import Spread, interleaved, ratios
from lime.tuner.settings import LimeSettings


@dataclass(frozen=True)
class Options:
    """What to measure; the methods are interleaved and share the frozen weights."""

    architecture: str = option(models.QWEN2_896, "architecture", models.names())
    layers: int = option(0, "layers of each tower; 0 as published")
    methods: tuple[str, ...] = option(
        ("frozen", "lora", "lime_lora", "lime_lora:terms", "moe_lora", "moe_lora:loop"), "methods, with their form"
    )
    dtypes: tuple[str, ...] = option(("float32",), "dtype of the frozen weights", DTYPES)
    batch: int = option(2, "rows of a micro-batch")
    tokens: int = option(512, "tokens of a row")
    accumulate: int = option(1, "micro-batches of a step")
    experts: tuple[int, ...] = option((4,), "experts E; several are interleaved")
    rank: int = option(2, "rank r")
    balance: bool = option(False, "add the balance terms to the loss of LiME")
    attention: str = option("eager", "attention implementation", ATTENTION)
    repetitions: int = option(25, "interleaved repetitions")
    device: str = option("cpu", "device", ("cpu", "cuda"))
    seed: int = option(0, "seed of weights and inputs")


COLUMNS = (
    Column("architecture", "model"),
    Column("dtype", "dtype"),
    Column("method", "method"),
    Column("experts", "E"),
    Column("milliseconds", "ms a step", ",.0f"),
    Column("vs_lora", "time / lora", ".3f"),
    Column("vs_frozen", "time / frozen", ".3f"),
    Column("kept_mib", "kept MiB", ",.1f"),
    Column("kept_vs_lora", "kept / lora", ".3f"),
    Column("peak_mib", "peak MiB", ",.1f"),
    Column("trainable", "trainable", ","),
    Column("optimiser_mib", "AdamW MiB", ".2f"),
    Column("rows_per_second", "rows/s", ",.1f"),
    Column("loss_first", "first loss", ".3f"),
    Column("loss_last", "last loss", ".3f"),
    Column("steps", "steps"),
)
NOTES = (
    "Ratios are medians (quartiles) over repetitions. `kept`: activations saved for the backward pass of a "
    "micro-batch. `AdamW`: its two moments.",
    "`peak`: on a CPU the most tensors alive at once in a step beyond what was there before; on a GPU the allocator's "
    "peak, with the weights, and optimiser state of this method alone.",
)


LEARNING_RATE = 1e-3
"""Of AdamW; every step sees the same random rows, so the loss falls as they are learned by heart."""


class Case:
    """One method's model, optimiser and batch."""

    def __init__(
        self, base: PreTrainedModel, subject: Subject, experts: int, inputs: dict[str, Tensor], options: Options
    ):
        torch.manual_seed(options.seed)
        own = shared_copy(base)
        self.model: nn.Module = subject.adapt(own, LimeSettings(num_experts=experts, r=options.rank))
        self.subject, self.inputs, self.accumulate = subject, inputs, options.accumulate
        self.experts = experts if subject.has_experts else None
        self.balanced = options.balance and subject.balances
        self.losses: list[Tensor] = []
        self.optimizer: torch.optim.Optimizer | None = None
        if trainable(self.model):
            self.optimizer = torch.optim.AdamW(trainable(self.model), lr=LEARNING_RATE)
        else:  # the backward pass still goes through every layer
            own.enable_input_require_grads()

    def loss(self) -> Tensor:
        """Next-token loss of the batch."""
        labels = self.inputs["input_ids"]
        with lime.record(self.model) if self.balanced else nullcontext() as recorder:
            loss: Tensor = self.model(**self.inputs, labels=labels, use_cache=False).loss
        return loss if recorder is None else loss + recorder.balance().total(0.1, 0.01)

    def run(self) -> None:
        """One optimiser step."""
        with self.subject.running():
            for _ in range(self.accumulate):
                loss = self.loss()
                (loss / self.accumulate).backward()
        self.losses.append(loss.detach())
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def kept(self) -> int:
        """Bytes of activations kept for the backward pass of a micro-batch."""
        with self.subject.running(), kept_storages(self.model, *self.inputs.values()) as storages:
            held = self.loss()
        del held
        return sum(storages.values())

    def optimiser_bytes(self) -> int:
        """Bytes of AdamW's moments: two numbers for each trainable parameter."""
        return sum(2 * p.numel() * p.element_size() for p in trainable(self.model))


def run(options: Options) -> dict[str, Any]:
    """Measure and return the record."""
    return record("step", options, COLUMNS, measure(options), notes=NOTES, device=options.device)


def measure(options: Options) -> list[dict[str, Any]]:
    """The rows of the record, one for each method, in the order of the options."""
    subjects = [Subject.of(name) for name in options.methods]
    rows: list[dict[str, Any]] = []
    for dtype in options.dtypes:
        name, layers, attention = options.architecture, options.layers, options.attention
        base = models.build(name, dtype, layers, attention, options.device, options.seed)
        inputs = models.text_inputs(base, options.batch, options.tokens, options.seed)
        cases = [
            Case(base, subject, experts, inputs, options)
            for subject in subjects
            for experts in (options.experts if subject.has_experts else options.experts[:1])
        ]
        where = {"architecture": options.architecture, "dtype": dtype, "parameters": models.parameters(base)}
        rows += [where | row for row in compare(cases, options)]
    return rows


def compare(cases: list[Case], options: Options) -> list[dict[str, Any]]:
    """One row for each method and number of experts."""
    labelled = {f"{case.subject.name} {case.experts}": case for case in cases}
    work = {label: case.run for label, case in labelled.items()}
    seconds = interleaved(work, options.repetitions, device=options.device)
    first = {case.subject.name: label for label, case in reversed(labelled.items())}
    against = {name: ratios(seconds, first[name]) for name in (REFERENCE, "frozen") if name in first}
    kept = {label: case.kept() for label, case in labelled.items()}
    rows = []
    for label, case in labelled.items():
        milliseconds = Spread.of(seconds[label]).scaled(1e3)
        row: dict[str, Any] = {"method": case.subject.name, "experts": case.experts, "milliseconds": milliseconds}
        row |= {f"vs_{other}": spread[label] for other, spread in against.items()}
        row |= {"kept_mib": kept[label] / 2**20, "peak_mib": peak(case, cases, torch.device(options.device)) / 2**20}
        if REFERENCE in first:
            row["kept_vs_lora"] = kept[label] / kept[first[REFERENCE]]
        row |= {
            "trainable": sum(p.numel() for p in trainable(case.model)),
            "optimiser_mib": case.optimiser_bytes() / 2**20,
            "rows_per_second": 1e3 * options.batch * options.accumulate / milliseconds.median,
        }
        if case.optimizer is not None:
            row |= {"loss_first": float(case.losses[0]), "loss_last": float(case.losses[-1])}
            row["steps"] = len(case.losses)
        rows.append(row | {"seconds": seconds[label]})
    return rows


def peak(case: Case, cases: list[Case], device: torch.device) -> int:
    """Peak bytes of a step: of live tensors beyond those before it (CPU), or of the allocator with this method's
    weights and optimiser state alone (GPU)."""
    if device.type != "cuda":
        with LiveTensors() as tensors:
            case.run()
        return tensors.peak
    case.run()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    case.run()
    torch.cuda.synchronize(device)
    others = sum(other.optimiser_bytes() * 3 // 2 for other in cases if other is not case)  # parameters and moments
    return torch.cuda.max_memory_allocated(device) - others
