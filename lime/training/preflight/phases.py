"""The phases of a run, as work that can be tried and counted: training, the frozen backbone's answers, the evaluation.

Cost is counted in tokens: of a batch, its rows times its padded length, and for answers the tokens that are decoded or
scored besides.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import nn

from lime.data.datamodule import MMTDataModule
from lime.data.rows import Row
from lime.data.tasks import MODALITIES
from lime.distributed import processes
from lime.evaluation.config import EvaluationConfig
from lime.inference.batches import base_model, batches_of
from lime.inference.generation import answer_rows
from lime.inference.likelihood import SEQUENCES_PER_ROW
from lime.system.memory import MB
from lime.training.module import AdaptationModule


@dataclass(frozen=True)
class Work:
    """A batch: its rows, the padded tokens of each, and those of its answer that are decoded or scored one by one."""

    rows: tuple[Row, ...]
    tokens: int
    answer_tokens: int = 0

    @property
    def cost(self) -> float:
        return len(self.rows) * float(self.tokens + self.answer_tokens)

    def cut(self, rows: int) -> Work:
        """The first rows of it."""
        return dataclasses.replace(self, rows=self.rows[:rows])


@dataclass
class Phase:
    """A phase of a run in this process.

    Attributes:
        name: as it is said.
        run: does the work of one batch.
        costs: tokens of the whole phase, by kind of row.
        heaviest, usual: the batch of each kind that needs most memory, and one of middle cost.
        pace: seconds a token by kind, as measured so far.
        peak_mb: the largest memory that a trial has shown.
        grown_mb: by how much its trials have raised what the process takes.
        kept_mb: what the phase will hold beyond what its trials show.
    """

    name: str
    run: Callable[[Work], None]
    costs: dict[str, float]
    heaviest: dict[str, Work]
    usual: dict[str, Work]
    pace: dict[str, float] = field(default_factory=dict)
    peak_mb: float = 0.0
    grown_mb: float = 0.0
    kept_mb: float = 0.0
    trains: bool = False

    def seconds(self, otherwise: float = 0.0) -> float:
        """Of the whole phase; a kind that was not tried goes at the mean pace of the others, or `otherwise`."""
        mean = sum(self.pace.values()) / len(self.pace) if self.pace else otherwise
        return sum(cost * self.pace.get(kind, mean) for kind, cost in self.costs.items())


# -- training --------------------------------------------------------------------------------------------------------


def training_phase(
    module: AdaptationModule, data: MMTDataModule, device: torch.device, precision: str, epochs: float
) -> Phase:
    """Forward and backward passes over the training rows, `epochs` times."""
    costs = dict.fromkeys(MODALITIES, 0.0)
    for batch in data.sampler().batches(0):
        tokens = max(data.train_lengths[i] for i in batch)
        for i in batch:
            costs[data.train_rows[i].source_type] += epochs * tokens
    heaviest, usual = {}, {}
    for kind in MODALITIES:
        rows = sorted(
            ((n, row) for n, row in zip(data.train_lengths, data.train_rows, strict=True) if row.source_type == kind),
            key=lambda pair: (-pair[0], pair[1].id),
        )
        if rows:
            middle = max(0, len(rows) // 2 - data.batch_size // 2)
            heaviest[kind], usual[kind] = (
                Work(tuple(row for _, row in part), part[0][0])
                for part in (rows[: data.batch_size], rows[middle : middle + data.batch_size])
            )

    def run(work: Work) -> None:
        batch = module.on_before_batch_transfer(data.collator.training_batch(work.rows), 0)
        forward_backward(module, move_data_to_device(batch, device), device, precision)

    return Phase("training", run, {kind: costs[kind] for kind in heaviest}, heaviest, usual, trains=True)


def forward_backward(module: AdaptationModule, batch: dict[str, Any], device: torch.device, precision: str) -> None:
    """One micro-batch without an optimiser step; gradients are dropped."""
    with _autocast(device, precision):
        loss = module.loss(batch).total
    loss.backward()
    for parameter in module.parameters():
        parameter.grad = None
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _autocast(device: torch.device, precision: str) -> Any:
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype=dtype) if dtype is not None else nullcontext()


# -- answers ---------------------------------------------------------------------------------------------------------


def answering_phase(
    name: str,
    model: nn.Module,
    data: MMTDataModule,
    rows: Sequence[Row],
    allowed: Mapping[str, Sequence[str] | None],
    config: EvaluationConfig,
    mode: str,
) -> Phase:
    """Answers to test rows by `mode`, `generate` or `likelihood`, shared among the processes. Answers are taken to be
    as long as the true ones."""
    collator = data.collator
    truths = {row.answer for row in rows}
    known = {text: len(collator.processor.tokenizer(text)["input_ids"]) + 1 for text in truths}  # and the end token
    length = {row.id: known[row.answer] for row in rows}
    closed = [row for row in rows if mode == "likelihood" and allowed.get(row.split)]
    chosen = {row.id for row in closed}
    candidates = {split: len(answers) for split, answers in allowed.items() if answers}
    groups: dict[str, list[Work]] = {}

    def by_answers(row: Row) -> object:
        return (row.source_type, *(allowed[row.split] or ()))

    def add(kind: str, batch: Sequence[Row], extra: int) -> None:
        groups.setdefault(kind, []).append(Work(tuple(batch), collator.prompt_length(batch[0]), extra))

    for batch in batches_of(collator, closed, config.batch_size, by_answers):
        extra = candidates[batch[0].split] * max(length[row.id] for row in batch)
        add(batch[0].source_type, batch, extra)
    opened = [row for row in rows if row.id not in chosen]
    for batch in batches_of(collator, opened, config.batch_size, lambda row: row.source_type):
        extra = min(config.max_new_tokens, max(length[row.id] for row in batch))
        add(batch[0].source_type + (", generated" if closed else ""), batch, extra)

    def weight(work: Work) -> int:  # sequences that stand side by side
        side = min(candidates.get(work.rows[0].split, 1), SEQUENCES_PER_ROW)
        return len(work.rows) * work.tokens * (side if work.rows[0].id in chosen else 1)

    def run(work: Work) -> None:
        short = dataclasses.replace(config, batch_size=len(work.rows), max_new_tokens=max(1, work.answer_tokens))
        with processes.alone(), _quiet(logging.getLogger("lime.inference")):
            answer_rows(model, collator, work.rows, allowed, short, mode=mode)

    generated = [work for works in groups.values() for work in works if work.rows[0].id not in chosen]
    unseen = max((len(work.rows) * (config.max_new_tokens - work.answer_tokens) for work in generated), default=0)
    return Phase(
        name,
        run,
        {kind: sum(work.cost for work in works) / processes.world_size() for kind, works in groups.items()},
        {kind: max(works, key=weight) for kind, works in groups.items()},
        {kind: sorted(works, key=lambda work: work.cost)[len(works) // 2] for kind, works in groups.items()},
        kept_mb=unseen * _cache_mb(model) if unseen else 0.0,
    )


def _cache_mb(model: nn.Module) -> float:
    """MB of the key-value cache for one token of one sequence; 0 where the configuration does not tell."""
    base: Any = base_model(model)
    config = base.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", 0)
    width = getattr(config, "head_dim", None) or config.hidden_size // max(1, getattr(config, "num_attention_heads", 1))
    return 2 * config.num_hidden_layers * heads * width * base.dtype.itemsize / MB


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def timed(phase: Phase, work: Work) -> float:
    """Seconds of one batch, its reading included."""
    started = time.perf_counter()
    phase.run(work)
    return time.perf_counter() - started
