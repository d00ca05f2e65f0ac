"""`LimeTrainer` with the real `Trainer` of transformers, on small random models of both architectures."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lime
from lime.integrations.trainer import LimeTrainer, LimeTrainingArguments
from lime.training.loss import answer_loss_sum, answer_positions
from tests.tuner import small_models as small

families = pytest.mark.parametrize("family", small.FAMILIES)
ROWS = [(5, 1), (11, 2), (7, 3), (16, 4), (9, 5), (6, 6), (13, 7), (8, 8)]  # words, seed


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, family: str, rows: list[tuple[int, int]]):
        self.rows = [small.row(family, words, seed) for words, seed in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def trainer(family: str, folder: Path, rows: list[tuple[int, int]] = ROWS, model: Any = None, **options: Any) -> Any:
    def collate(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        inputs = small.batch(family, batch)
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        labels[:, :2] = -100  # a prompt
        return {**inputs, "labels": labels}

    class InOrder(LimeTrainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    given = {
        "per_device_train_batch_size": 2, "max_steps": 3, "logging_steps": 1, "report_to": "none", "use_cpu": True,
        "save_strategy": "no", "disable_tqdm": True, "seed": 0,
        "remove_unused_columns": False,
    } | options  # fmt: skip
    if model is None:
        model = small.apply_random(small.build(family), jitter_noise=0.0)
    return InOrder(
        model=model,
        args=LimeTrainingArguments(output_dir=str(folder), **given),
        train_dataset=Rows(family, rows),
        eval_dataset=Rows(family, rows[:2]),
        data_collator=collate,
    )


def trained(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


SGD = {"optim": "sgd", "moe_lr": 1.0, "peft_lr": 1.0, "weight_decay": 0.0, "max_grad_norm": 0.0, "max_steps": 1,
       "warmup_steps": 0, "lr_scheduler_type": "constant"}  # fmt: skip


def step(family: str, folder: Path, rows: list[tuple[int, int]], **options: Any) -> tuple[dict[str, Tensor], Any]:
    """What one step of plain gradient descent adds to each parameter, and the step's log."""
    made = trainer(family, folder, rows, **{**SGD, **options})
    before = trained(made.model)
    made.train()
    change = {name: p - before[name] for name, p in trained(made.model).items()}
    return change, next(entry for entry in made.state.log_history if "loss/task" in entry)


@families
@pytest.mark.filterwarnings("error:.*pin_memory")
def test_it_learns_and_logs(family: str, tmp_path: Path) -> None:
    made = trainer(family, tmp_path, max_steps=12, moe_lr=0.02, peft_lr=0.02, logging_steps=2)
    frozen = {name: p.clone() for name, p in made.model.named_parameters() if not p.requires_grad}
    made.train()
    logs = [entry for entry in made.state.log_history if "loss/task" in entry]
    assert [entry["step"] for entry in logs] == [2, 4, 6, 8, 10, 12]
    assert logs[-1]["loss/task"] < logs[0]["loss/task"]
    for entry in logs:
        expected = entry["loss/task"] + 0.1 * entry["loss/importance"] + 0.01 * entry["loss/kl"]
        assert entry["loss"] == pytest.approx(expected, rel=1e-3)
        assert 1 <= entry["routing/experts_active"] <= 4
        assert 0 < entry["routing/entropy"] < 1.3863
        usage = [entry[f"routing/usage_{i}"] for i in range(4)]
        assert sum(usage) == pytest.approx(entry["routing/experts_active"], rel=1e-4)
        assert entry["lr/peft"] == entry["lr/modulators"] > 0
    assert made.last_routing is not None
    assert len(made.last_routing) == 8
    assert all(torch.equal(p, frozen[name]) for name, p in made.model.named_parameters() if name in frozen)
    assert {"eval_loss"} <= made.evaluate().keys()


@families
def test_the_task_gradient_does_not_depend_on_accumulation(family: str, tmp_path: Path) -> None:
    off = {"importance_coef": 0.0, "kl_coef": 0.0}
    whole, log = step(family, tmp_path, ROWS, per_device_train_batch_size=8, **off)
    parts, parts_log = step(family, tmp_path, ROWS, per_device_train_batch_size=2, gradient_accumulation_steps=4, **off)
    assert log["loss/task"] == pytest.approx(parts_log["loss/task"], rel=1e-5)
    assert log["loss/importance"] > 0, "measured although it is not applied"
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], atol=1e-6, rtol=1e-3)


@families
def test_like_micro_batches_in_any_number_are_one(family: str, tmp_path: Path) -> None:
    """Micro-batches of equal routing give, in any number, what one of them gives."""
    strong = {"importance_coef": 5.0, "kl_coef": 3.0}
    pair = ROWS[:2]
    once, log = step(family, tmp_path, pair, **strong)
    thrice, thrice_log = step(family, tmp_path, pair * 3, gradient_accumulation_steps=3, **strong)
    weak, _ = step(family, tmp_path, pair)
    for key in ("loss", "loss/task", "loss/importance", "loss/kl"):
        assert thrice_log[key] == pytest.approx(log[key], rel=1e-5)
    for name in once:
        torch.testing.assert_close(thrice[name], once[name], atol=1e-6, rtol=1e-3)
    assert any(not torch.allclose(weak[name], once[name], rtol=0.05) for name in once if "lime_delta" in name)


def test_micro_batches_count_by_their_labels(tmp_path: Path) -> None:
    """`sum_i n_i / N L_imp,i`, against each micro-batch on its own."""
    parts, labels = [], []
    for pair in (ROWS[:2], ROWS[2:4]):
        _, log = step("llava_onevision", tmp_path, pair)
        parts.append(log["loss/importance"])
        labels.append(sum(words - 2 for words, _ in pair))
    _, log = step("llava_onevision", tmp_path, ROWS[:4], gradient_accumulation_steps=2)
    expected = sum(n * value for n, value in zip(labels, parts, strict=True)) / sum(labels)
    assert log["loss/importance"] == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(sum(parts) / 2, rel=1e-3)


@families
@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_the_evaluation_loss_is_over_tokens(family: str, batch: int, tmp_path: Path) -> None:
    """`eval_loss` against every row by itself, weighed by its labels; whatever the batch size."""
    made = trainer(family, tmp_path, per_device_eval_batch_size=batch)
    made.eval_dataset = Rows(family, ROWS)
    total = tokens = 0.0
    model = made.model.eval()
    for words, seed in ROWS:
        inputs = small.batch(family, [small.row(family, words, seed)])
        with torch.no_grad():
            logp = model(**inputs).logits[0].float().log_softmax(-1)
        ids = inputs["input_ids"][0]
        total -= float(sum(logp[t - 1, ids[t]] for t in range(2, len(ids))))
        tokens += len(ids) - 2
    assert made.evaluate()["eval_loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert made.predict(made.eval_dataset).metrics["test_loss"] == pytest.approx(total / tokens, rel=1e-5)


def test_the_evaluation_loss_is_what_train_py_shows(tmp_path: Path) -> None:
    """`val/loss` of a run's module on the same batches: a sum over answer tokens by their number."""
    made = trainer("llava_onevision", tmp_path, per_device_eval_batch_size=3)
    made.eval_dataset = Rows("llava_onevision", ROWS)
    sums = [0.0, 0]
    for inputs in made.get_eval_dataloader():
        labels = inputs.pop("labels")
        positions, count = answer_positions(labels)
        with torch.no_grad():
            sums[0] += float(answer_loss_sum(made.model.eval(), inputs, labels, positions))
        sums[1] += count
    assert made.evaluate()["eval_loss"] == pytest.approx(sums[0] / sums[1], rel=1e-5)


def test_balance_on_one_step_in_n(tmp_path: Path) -> None:
    made = trainer("llava_onevision", tmp_path, importance_coef=10.0, balance_every_n_steps=2, max_steps=4)
    made.train()
    logs = [entry for entry in made.state.log_history if "loss/task" in entry]
    assert [entry["loss"] - entry["loss/task"] > 0.01 for entry in logs] == [True, False, True, False]


def test_groups_have_their_own_rates_and_decay(tmp_path: Path) -> None:
    made = trainer("llava_onevision", tmp_path, moe_lr=3e-3, peft_lr=1e-4, weight_decay=0.05, optim="adamw_torch")
    groups = {g["name"]: g for g in made.create_optimizer().param_groups}
    assert (groups["modulators"]["lr"], groups["modulators"]["weight_decay"]) == (3e-3, 0.0)
    assert (groups["peft"]["lr"], groups["peft"]["weight_decay"]) == (1e-4, 0.05)
    expected = {name: {id(p) for _, p in group} for name, group in lime.parameter_groups(made.model).items()}
    assert {name: {id(p) for p in g["params"]} for name, g in groups.items()} == expected
    assert LimeTrainingArguments(output_dir=str(tmp_path), use_cpu=True).get_warmup_steps(200) == 6


def test_resuming_equals_training_on(tmp_path: Path) -> None:
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "moe_lr": 0.02, "peft_lr": 0.02}
    make = lambda: small.apply_random(small.build("llava_onevision"))  # noqa: E731 - with routing noise
    whole = trainer("llava_onevision", tmp_path, model=make(), **options)
    whole.train()
    again = trainer("llava_onevision", tmp_path, model=make(), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, p in trained(whole.model).items():
        assert torch.equal(trained(again.model)[name], p), name
    losses = [[e["loss/task"] for e in t.state.log_history if e.get("step", 0) > 2 and "loss/task" in e]
              for t in (whole, again)]  # fmt: skip
    assert losses[0] == losses[1]
    saved, _ = lime.load(small.build("llava_onevision"), tmp_path / "checkpoint-4")
    assert all(torch.equal(p, trained(whole.model)[name]) for name, p in saved.named_parameters() if "lime_" in name)


@families
def test_activation_checkpointing(family: str, tmp_path: Path) -> None:
    plain, _ = step(family, tmp_path, ROWS[:2])
    checkpointed, _ = step(family, tmp_path, ROWS[:2], activation_checkpointing=True)
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], atol=1e-6, rtol=1e-3)
    with pytest.raises(ValueError, match="non-reentrant"):
        trainer(
            family, tmp_path, activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": True}
        )


def test_a_peft_type_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, _ = lime.apply(small.build("llava_onevision"), enabled=False)
    with caplog.at_level(logging.WARNING):
        made = trainer("llava_onevision", tmp_path, model=model, kl_coef=0.5)
    assert "no effect: kl_coef" in caplog.text
    made.train()
    (entry, *_) = (entry for entry in made.state.log_history if "loss/task" in entry)
    assert entry["loss"] == pytest.approx(entry["loss/task"], rel=1e-3)
    assert not any(key.startswith(("routing/", "loss/importance", "lr/modulators")) for key in entry)


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)kl_coef: expected at least 0.*learning_rate: has no effect"):
        LimeTrainingArguments(output_dir=str(tmp_path), kl_coef=-1.0, learning_rate=2e-4, use_cpu=True)
    with pytest.raises(TypeError, match="LimeTrainingArguments"):
        LimeTrainer(model=small.build("llava_onevision"), args=None)
    made = trainer("llava_onevision", tmp_path)
    made.optimizer_cls_and_kwargs = (torch.optim.SGD, {"params": []})
    with pytest.raises(ValueError, match="own parameter groups"):
        made.create_optimizer()
