"""Whole runs on checkpoints made on the spot: records, determinism, resuming, repeating an evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from safetensors.torch import load_file

import lime.inference.frozen
from lime.config.check import build
from lime.config.schema import EvalConfig
from lime.jobs.evaluate import evaluate
from lime.jobs.train import train
from tests.training.parts import config, metrics, values

RUN_FILES = {
    "config.yaml", "environment.json", "status.json", "metrics.csv", "routing.jsonl", "adapter", "checkpoints",
    "predictions.jsonl", "results.json", "results.csv",
}  # fmt: skip

DATA = {"data": values()["data"]}

# Dropout and routing noise on, accumulation on, a checkpoint after every optimiser step: 3 an epoch, 6 in all.
LONG = {
    "peft__dropout": 0.1,
    "trainer__accumulate_grad_batches": 2,
    "callbacks__checkpoint": True,
    "callbacks__checkpoint_every_n_steps": 1,
    "callbacks__keep_checkpoints": 10,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One uninterrupted run that the tests below compare with; treat it as read-only."""
    folder = tmp_path_factory.mktemp("run")
    train(config(**LONG), folder)
    return folder


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def assert_same_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_run_leaves_a_whole_record(run: Path) -> None:
    assert {path.name for path in run.iterdir()} >= RUN_FILES
    assert json.loads((run / "status.json").read_text())["status"] == "finished"
    environment = json.loads((run / "environment.json").read_text())
    assert environment["seed"] == 1
    assert len(environment["data_fingerprint"]) == 64
    assert environment["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LIME"
    assert len((run / "predictions.jsonl").read_text().splitlines()) == 12


def test_metrics_hold_every_quantity_at_every_step(run: Path) -> None:
    rows = metrics(run)
    assert [int(row["step"]) for row in rows] == list(range(1, 7))
    assert all(row[name] for row in rows for name in row if name != "val/loss")
    assert all(1 <= float(row["routing/experts_active"]) <= 4 for row in rows)
    usage = [json.loads(line)["usage"] for line in (run / "routing.jsonl").read_text().splitlines()]
    assert len(usage) == 6
    assert all(sum(shares) == pytest.approx(1, abs=1e-4) for step in usage for shares in step.values())


def test_one_seed_gives_identical_losses_and_another_does_not(run: Path, tmp_path: Path) -> None:
    train(config(**LONG), tmp_path / "again")
    assert metrics(tmp_path / "again") == metrics(run)
    assert_same_tensors(adapter(tmp_path / "again"), adapter(run))
    train(config(**LONG, seed=2), tmp_path / "other")
    assert metrics(tmp_path / "other")[0]["loss/task"] != metrics(run)[0]["loss/task"]


@pytest.mark.parametrize("step", [2, 3, 5])
def test_resumed_run_equals_the_uninterrupted_one(run: Path, tmp_path: Path, step: int) -> None:
    """From the middle of an epoch (2, 5) and from its end (3)."""
    train(config(**LONG, ckpt_path=str(run / "checkpoints" / f"step-{step}.ckpt")), tmp_path)
    assert metrics(tmp_path) == metrics(run)[step:]
    assert_same_tensors(adapter(tmp_path), adapter(run))


@pytest.mark.slow
def test_routing_that_reads_training_rows_resumes_too(tmp_path: Path) -> None:
    """The rows are read before training, and a checkpoint holds what was kept of them."""
    options = {
        **LONG, "lime__routing_norm": "standard", "lime__feature_slice": "variance", "lime__rank_modulation": True,
        "lime__modulator_range": 0.5, "lime__balance__start_ratio": 0.5,
    }  # fmt: skip
    train(config(**options), tmp_path / "whole")
    middle = tmp_path / "whole" / "checkpoints" / "step-2.ckpt"
    train(config(**options, ckpt_path=str(middle)), tmp_path / "resumed")
    assert metrics(tmp_path / "resumed") == metrics(tmp_path / "whole")[2:]
    assert_same_tensors(adapter(tmp_path / "resumed"), adapter(tmp_path / "whole"))
    kept = {name.rpartition("lime_router.")[2] for name in adapter(tmp_path / "whole") if "lime_router." in name}
    assert kept == {"features", "shift", "scale"}
    train(config(**LONG), tmp_path / "default")
    assert metrics(tmp_path / "whole") != metrics(tmp_path / "default")


def test_checkpoint_holds_the_adapters_and_not_the_base(run: Path) -> None:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert sum(t.numel() for t in checkpoint["state_dict"].values()) == sum(t.numel() for t in adapter(run).values())


def test_checkpoint_of_another_model_is_refused(run: Path, tmp_path: Path) -> None:
    last = str(run / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match=r"belongs to tiny_llava_onevision .* adapts tiny_qwen2vl"):
        train(config("qwen2_vl", **LONG, ckpt_path=last), tmp_path)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["status"], status["error"]["type"]) == ("failed", "ValueError")


def test_checkpoint_of_other_adapters_is_refused(run: Path, tmp_path: Path) -> None:
    last = str(run / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match="does not fit this run's adapters: it has other shapes"):
        train(config(**LONG, ckpt_path=last, lime__num_experts=3), tmp_path)


def test_evaluation_of_the_adapter_repeats_exactly(run: Path, tmp_path: Path) -> None:
    settings = build(EvalConfig, {**DATA, "adapter": str(run / "adapter")})
    evaluate(settings, tmp_path)
    assert (tmp_path / "predictions.jsonl").read_bytes() == (run / "predictions.jsonl").read_bytes()
    assert (tmp_path / "results.csv").read_bytes() == (run / "results.csv").read_bytes()


def test_command_line_wins_over_the_runs_configuration(run: Path, tmp_path: Path) -> None:
    splits = ["glue_test_sst2"]
    settings = build(
        EvalConfig, {**DATA, "adapter": str(run / "adapter"), "evaluation": {"splits": splits, "mode": "likelihood"}}
    )
    found = evaluate(settings, tmp_path, ["evaluation.splits=[glue_test_sst2]", "evaluation.mode=likelihood"])
    assert [score.split for score in found.splits] == splits
    assert found.splits[0].answered == 4  # likelihood always gives an allowed answer


def test_saved_predictions_score_the_same_without_a_model(run: Path, tmp_path: Path) -> None:
    settings = {**DATA, "predictions": str(run / "predictions.jsonl")}
    evaluate(build(EvalConfig, settings), tmp_path)
    assert (tmp_path / "results.csv").read_bytes() == (run / "results.csv").read_bytes()
    settings["evaluation"] = {"splits": ["glue_test_sst2"]}
    found = evaluate(build(EvalConfig, settings), tmp_path / "part")
    assert [score.split for score in found.splits] == ["glue_test_sst2"]
    settings["evaluation"] = {"splits": ["sst2"]}
    named = evaluate(build(EvalConfig, settings), tmp_path / "named")
    assert named == found
    assert named.absent == ()  # what was not asked for is not listed as lacking
    assert "Not scored" not in (tmp_path / "named" / "results.md").read_text()
    settings["evaluation"]["splits"] = ["glue_test_cola"]
    with pytest.raises(ValueError, match="holds no predictions of glue_test_cola"):
        evaluate(build(EvalConfig, settings), tmp_path / "none")


def test_adapter_of_another_backbone_is_refused(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run / "adapter", tmp_path / "adapter")
    model = values("qwen2_vl")["model"]
    settings = build(EvalConfig, {**DATA, "adapter": str(copy), "model": model})
    with pytest.raises(ValueError, match="was trained on tiny_llava_onevision"):
        evaluate(settings, tmp_path / "out", ["model=tiny_qwen2vl"])


def test_frozen_answers_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = lime.inference.frozen.answer_rows

    def counting(*arguments: Any, **options: Any) -> Any:
        calls.append(options["mode"])
        before = torch.get_rng_state()
        found = original(*arguments, **options)
        assert torch.equal(torch.get_rng_state(), before), "an adapter is drawn the same with answers from the cache"
        return found

    monkeypatch.setattr(lime.inference.frozen, "answer_rows", counting)
    short = {"trainer__max_steps": 1, "cache_dir": str(tmp_path / "cache")}
    train(config(**short), tmp_path / "a")
    train(config(**short, lime__num_experts=2), tmp_path / "b")
    assert calls == ["likelihood"]
    frozen = [
        [json.loads(line)["frozen"] for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()]
        for name in "ab"
    ]
    assert frozen[0] == frozen[1]
    train(config(**short, data__system_prompt="answer"), tmp_path / "c")
    assert len(calls) == 2


def test_plain_lora_runs_without_routing(tmp_path: Path) -> None:
    train(config("qwen2_vl", method="lora", lime__enabled=False, trainer__max_steps=2), tmp_path)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert not (tmp_path / "routing.jsonl").exists()
    assert all(row["loss/task"] and not row["loss/importance"] for row in metrics(tmp_path))


def test_validation_is_logged_on_held_out_rows(tmp_path: Path) -> None:
    train(config(data__validation_fraction=0.3, trainer__validate_every_n_epochs=1), tmp_path)
    assert sum(bool(row["val/loss"]) for row in metrics(tmp_path)) == 2


def test_gradient_checkpointing_trains_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recomputed = []
    original = torch.utils.checkpoint._checkpoint_without_reentrant_generator

    def counting(*arguments: Any, **options: Any) -> Any:
        recomputed.append(True)
        return original(*arguments, **options)

    monkeypatch.setattr(torch.utils.checkpoint, "_checkpoint_without_reentrant_generator", counting)
    for name, on in (("plain", False), ("checkpointed", True)):
        train(config(trainer__max_steps=2, trainer__gradient_checkpointing=on), tmp_path / name)
        assert bool(recomputed) is on
    assert metrics(tmp_path / "checkpointed") == metrics(tmp_path / "plain")
