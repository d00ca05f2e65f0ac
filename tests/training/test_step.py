"""Loss and gradient of an optimiser step: what is summed, and by what it is divided."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

import lime
import lime.tuner
from lime.config.schema import BalanceConfig
from lime.config.training import OptimConfig
from lime.data.collate import Collator, model_inputs
from lime.data.rows import MMTDataset
from lime.models.loading import load_backbone
from lime.processors.config import ModelConfig
from lime.training.loss import answer_loss_sum, answer_positions
from lime.training.module import AdaptationModule
from tests.data import tiny
from tests.training.parts import NAMES, data_root

FAMILIES = ("llava_onevision", "qwen2_vl")


def adapted(family: str) -> tuple[Any, Collator, list[Any]]:
    """A model whose update is not zero (so that every adapter parameter gets a gradient), without noise."""
    backbone = load_backbone(
        ModelConfig(name=NAMES[family], family=family, path=str(tiny.checkpoint(family)), dtype="float32")
    )
    model, _ = lime.apply(backbone.model, jitter_noise=0.0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    rows = list(MMTDataset(data_root()).train)
    return model, Collator(backbone.processor, family, data_root()), [*rows[:3], *rows[8:11], *rows[16:18]]


class Capturing(AdaptationModule):
    """Keeps the gradient that the optimiser is about to use."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        self.captured = {name: p.grad.clone() for name, p in self.trainable_parameters().items() if p.grad is not None}


def gradient(model: Any, batches: list[Any], balance: BalanceConfig | None) -> dict[str, torch.Tensor]:
    """Gradient of one optimiser step over ``batches`` as micro-batches, at a learning rate of zero."""
    module = Capturing(
        model, OptimConfig(moe_lr=0.0, peft_lr=0.0), balance, seed=0, backbone={"name": "", "fingerprint": ""}
    )
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=1, accumulate_grad_batches=len(batches), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return module.captured


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert max(float(value.abs().max()) for value in expected.values()) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_summed_loss_is_the_models_own_mean_times_the_answer_tokens(family: str) -> None:
    model, collator, rows = adapted(family)
    inputs = model_inputs(collator.training_batch(rows))
    labels = inputs.pop("labels")
    positions, count = answer_positions(labels)
    assert 0 < len(positions) < labels.shape[1] - 1
    with torch.no_grad():
        found = answer_loss_sum(model.eval(), inputs, labels, positions)
        expected = model(**inputs, labels=labels).loss * count
    torch.testing.assert_close(found, expected)


def test_batch_without_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="without a single answer token"):
        answer_positions(torch.full((2, 5), -100))


@pytest.mark.parametrize("family", FAMILIES)
def test_one_batch_of_8_is_4_batches_of_2_of_unequal_lengths(family: str) -> None:
    model, collator, rows = adapted(family)
    halves = [rows[i : i + 2] for i in range(0, 8, 2)]
    batches = [collator.training_batch(part) for part in halves]
    counts = [int((batch["labels"] != -100).sum()) for batch in batches]
    assert len(set(counts)) > 1
    whole = gradient(model, [collator.training_batch(rows)], balance=None)
    assert_close(gradient(model, batches, balance=None), whole)


def test_balance_term_is_scaled_like_the_task() -> None:
    """The step's gradient is (1 / N) sum_i [task_i + n_i (alpha importance_i + beta kl_i)], written out by hand."""
    model, collator, rows = adapted("llava_onevision")
    batches = [collator.training_batch(rows[:2]), collator.training_batch(rows[2:8])]
    balance = BalanceConfig(alpha=0.7, beta=0.3)
    found = gradient(model, batches, balance)
    model.train().zero_grad()
    total = 0
    for batch in batches:
        inputs = model_inputs(batch)
        labels = inputs.pop("labels")
        positions, count = answer_positions(labels)
        with lime.tuner.record(model) as recorder:
            task = answer_loss_sum(model, inputs, labels, positions)
        terms = recorder.balance()
        (task + count * (0.7 * terms.importance + 0.3 * terms.kl)).backward()
        total += count
    expected = {f"model.{n}": p.grad / total for n, p in model.named_parameters() if p.grad is not None}
    assert_close(found, expected)


def test_like_micro_batches_in_any_number_are_one() -> None:
    model, collator, rows = adapted("llava_onevision")
    batch = collator.training_batch(rows)
    balance = BalanceConfig(alpha=1.0, beta=1.0)
    assert_close(gradient(model, [batch] * 3, balance), gradient(model, [batch], balance))


def test_balance_depends_on_how_rows_are_cut() -> None:
    """Both terms are convex in the mean load: that of smaller micro-batches is less even, and the gradient another."""
    model, collator, rows = adapted("llava_onevision")
    batches = [collator.training_batch(rows[i : i + 2]) for i in range(0, 8, 2)]
    balance = BalanceConfig(alpha=1.0, beta=1.0)
    module = AdaptationModule(model.train(), OptimConfig(), balance, 0, {"name": "", "fingerprint": ""})

    def terms(batches: list[Any]) -> float:
        prepared = [module.on_before_batch_transfer(batch, 0) for batch in batches]
        losses = [module.loss(batch) for batch in prepared]
        tokens = sum(batch["answer_tokens"] for batch in prepared)
        return sum(float(loss.total - loss.task) for loss in losses) / tokens

    module.trainer = pl.Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False)
    with torch.no_grad():
        assert terms(batches) > 1.1 * terms([collator.training_batch(rows)])
    alone = gradient(model, [collator.training_batch(rows)], balance=None)
    whole, cut = (gradient(model, given, balance) for given in ([collator.training_batch(rows)], batches))
    assert max(float((cut[name] - whole[name]).abs().max()) for name in alone) > 1e-3


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"every_n_steps": 2}, [True, False, True, False]), ({"start_ratio": 0.5}, [False, False, True, True])],
    ids=str,
)
def test_balance_acts_on_the_steps_that_it_is_asked_for(options: dict[str, Any], expected: list[bool]) -> None:
    model, collator, rows = adapted("llava_onevision")
    module = AdaptationModule(model, OptimConfig(), BalanceConfig(**options), 0, {"name": "", "fingerprint": ""})

    class Losses(pl.Callback):
        def __init__(self) -> None:
            self.found: list[bool] = []

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            window = pl_module.window
            self.found.append(bool(window._sums["loss/total"] > window._sums["loss/task"]))
            window.reset()

    losses = Losses()
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=4, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[losses],
    )  # fmt: skip
    trainer.fit(module, DataLoader([collator.training_batch(rows)] * 4, batch_size=None))  # type: ignore[arg-type]
    assert losses.found == expected


def test_modulators_and_update_have_their_own_rates() -> None:
    model, _, _ = adapted("llava_onevision")
    groups = lime.tuner.parameter_groups(model)
    module = AdaptationModule(
        model,
        OptimConfig(moe_lr=0.5, peft_lr=0.25, peft_weight_decay=0.125, warmup_ratio=0.0, schedule="constant"),
        BalanceConfig(),
        0,
        {"name": "", "fingerprint": ""},
    )
    module.trainer = pl.Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False)
    optimizer = module.configure_optimizers()["optimizer"]  # type: ignore[index, call-overload]
    found = {group["name"]: group for group in optimizer.param_groups}
    assert (found["modulators"]["lr"], found["modulators"]["weight_decay"]) == (0.5, 0.0)
    assert (found["peft"]["lr"], found["peft"]["weight_decay"]) == (0.25, 0.125)
    assert {id(p) for p in found["modulators"]["params"]} == {id(p) for _, p in groups["modulators"]}
