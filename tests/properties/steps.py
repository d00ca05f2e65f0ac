"""Optimiser steps of the training module on small models: every type, in every causal mode, without a data root."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lime.config.schema import BalanceConfig
from lime.config.training import OptimConfig
from lime.training.module import AdaptationModule
from tests.tuner import small_models as small

Batch = dict[str, Tensor]
QUIET: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False, "use_distributed_sampler": False,
}  # fmt: skip


def training_batch(family: str, rows: list[dict[str, Any]], answers: list[int]) -> Batch:
    """Right-padded rows with labels on the last `answers` tokens of each."""
    inputs = small.batch(family, rows)
    labels = torch.full_like(inputs["input_ids"], -100)
    for i, (row, count) in enumerate(zip(rows, answers, strict=True)):
        span = slice(len(row["ids"]) - count, len(row["ids"]))
        labels[i, span] = inputs["input_ids"][i, span]
    return {**inputs, "labels": labels}


def module_of(cls: type[AdaptationModule], model: Any, rate: float, balance: BalanceConfig | None) -> AdaptationModule:
    """A training module whose parameters all learn at one rate."""
    backbone = {"name": "small", "fingerprint": "0"}
    return cls(model, OptimConfig(moe_lr=rate, peft_lr=rate), balance, 0, backbone)


class Capturing(AdaptationModule):
    """Keeps the gradients that the optimiser is about to use, of each step."""

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.captured: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        found = {name: p.grad.clone() for name, p in self.trainable_parameters().items() if p.grad is not None}
        self.captured.append(found)


def gradients(
    model: Any, batches: list[Batch], steps: int, balance: BalanceConfig | None, **options: Any
) -> list[dict[str, Tensor]]:
    """Gradients of some optimiser steps at one point (the learning rate is zero), each over all `batches` as
    micro-batches."""
    module = module_of(Capturing, model, 0.0, balance)
    trainer = pl.Trainer(max_steps=steps, accumulate_grad_batches=len(batches), **QUIET, **options)
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    assert isinstance(module, Capturing)
    assert len(module.captured) == steps
    return module.captured


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """The parameters whose gradients differ; empty when all are the same up to rounding."""
    assert found.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    assert largest > 1e-3
    wrong = []
    for name, value in expected.items():
        error, size = float((found[name] - value).abs().max()), float(value.abs().max())
        if not error <= 1e-3 * size + 1e-5 * largest:
            wrong.append(f"{name}: off by {error:.2g} of {size:.2g}")
    return "\n".join(wrong)
