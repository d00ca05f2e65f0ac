"""trainer.precision=bf16-true: a backbone in bfloat16 without autocast; the adapters train in float32 all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lime
from lime.config.check import ConfigError, build
from lime.config.schema import EvalConfig, TrainConfig
from lime.jobs.evaluate import evaluate
from lime.jobs.train import train
from tests.training.parts import config, metrics, values
from tests.tuner import small_models as small

TRUE: dict[str, Any] = {"trainer__precision": "bf16-true", "model__dtype": "bfloat16"}
EVERY_STEP: dict[str, Any] = {
    "trainer__max_steps": 4, "peft__dropout": 0.1, "callbacks__checkpoint": True, "callbacks__keep_checkpoints": 10,
    "callbacks__checkpoint_every_n_steps": 1,
}  # fmt: skip


@pytest.mark.parametrize("family", small.FAMILIES)
@pytest.mark.parametrize("options", [{}, {"peft": "dora"}, {"peft": "moe_lora"}, {"enabled": False}], ids=str)
def test_a_fresh_adapter_over_a_bfloat16_base_changes_nothing(family: str, options: dict[str, Any]) -> None:
    inputs = small.batch(family, [small.row(family, 9, 1, with_image=family == "qwen2_vl"), small.row(family, 6, 2)])
    base = small.build(family, dtype=torch.bfloat16)
    expected = small.logits(base, inputs)
    model, _ = lime.apply(base, scope="all", **options)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert all(map(torch.equal, small.logits(model.eval(), inputs), expected))


@pytest.mark.parametrize("family", small.FAMILIES)
def test_a_run_resumes_bit_for_bit_and_its_evaluation_repeats(family: str, tmp_path: Path) -> None:
    train(config(family, **TRUE, **EVERY_STEP), tmp_path / "whole")
    checkpoints = tmp_path / "whole" / "checkpoints"
    train(config(family, **TRUE, **EVERY_STEP, ckpt_path=str(checkpoints / "step-2.ckpt")), tmp_path / "resumed")
    whole, resumed = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "resumed")
    )
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert {tensor.dtype for tensor in whole.values()} == {torch.float32}
    state = torch.load(checkpoints / "step-4.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    assert {moment.dtype for one in state.values() for name, moment in one.items() if name != "step"} == {torch.float32}
    losses = [float(row["loss/task"]) for row in metrics(tmp_path / "whole")]
    assert len(losses) == 4
    assert all(0 < loss < 20 for loss in losses)
    settings = {"data": values()["data"], "adapter": str(tmp_path / "whole" / "adapter")}
    evaluate(build(EvalConfig, settings), tmp_path / "again")
    assert (tmp_path / "again" / "predictions.jsonl").read_bytes() == (
        tmp_path / "whole" / "predictions.jsonl"
    ).read_bytes()


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", "bfloat16"), ("16-true", "float16")])
def test_the_backbone_must_be_of_that_dtype(precision: str, dtype: str) -> None:
    with pytest.raises(ConfigError, match=f"trainer.precision: {precision} .* set model.dtype={dtype} too"):
        build(TrainConfig, values(trainer__precision=precision))
    assert build(TrainConfig, values(trainer__precision=precision, model__dtype=dtype)).trainer.precision == precision
