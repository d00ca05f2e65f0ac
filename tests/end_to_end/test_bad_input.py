"""Wrong input ends with a clear message, without a traceback, and a non-zero exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lime.jobs.train import train
from tests.data import tiny
from tests.end_to_end.command import Command
from tests.training.parts import config, tiny_overrides


@pytest.fixture
def base(tmp_path: Path) -> list[str]:
    """Overrides of a short run on a checkpoint made on the spot."""
    return [*tiny_overrides(), "trainer.max_steps=2", "evaluation.max_new_tokens=3"]


def content(**changes: Any) -> dict[str, list[dict[str, str]]]:
    """Rows of a small root; ``changes`` replace fields of the first image row of the training split."""
    splits = tiny.splits(train=6, test=2)
    row = next(row for row in splits["train"] if row["source_type"] == "image")
    row.update(changes)
    return splits


def assert_refused(outcome: Any, *parts: str) -> None:
    assert outcome.code == 2, outcome.said
    assert "Traceback" not in outcome.said
    for part in parts:
        assert part in outcome.said, outcome.said


def test_good_input_ends_with_a_table(command: Command, base: list[str], tmp_path: Path) -> None:
    outcome = command("train.py", *base)
    assert outcome.code == 0, outcome.said
    assert "Macro" in outcome.said
    assert (tmp_path / "out" / "train.log").stat().st_size > 0
    again = command("eval.py", f"adapter={tmp_path / 'out' / 'adapter'}", out="again")
    assert again.code == 0, again.said
    assert (tmp_path / "again/results.csv").read_bytes() == (tmp_path / "out/results.csv").read_bytes()
    scored = command("eval.py", f"predictions={tmp_path / 'out'}", out="scored")
    assert scored.code == 0, scored.said
    assert (tmp_path / "scored/results.csv").read_bytes() == (tmp_path / "out/results.csv").read_bytes()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lime.num_expert=3", "lime.num_expert: unknown key; did you mean lime.num_experts?"),
        ("lime.num_experts=four", "lime.num_experts: expected a whole number, got 'four' (text)"),
        ("lime.num_experts=0", "lime.num_experts: expected at least 1 expert, got 0"),
        ("model=tiny_lava", "model: no choice named 'tiny_lava'; did you mean tiny_llava_onevision?"),
        ("data.root=/nowhere/at/all", "/nowhere/at/all"),
        ("ckpt_path=/nowhere/last.ckpt", "ckpt_path: /nowhere/last.ckpt: no such file"),
    ],
)
def test_configuration_is_refused_before_a_model_is_loaded(
    command: Command, base: list[str], override: str, message: str
) -> None:
    outcome = command("train.py", *base, override)
    assert_refused(outcome, message)
    assert "loaded tiny" not in outcome.said


def test_more_experts_than_the_layer_is_wide(command: Command, base: list[str]) -> None:
    assert_refused(command("train.py", *base, "lime.num_experts=33"), "num_experts", "33", "_proj")


def test_targets_that_match_nothing(command: Command, base: list[str], tmp_path: Path) -> None:
    assert_refused(command("train.py", *base, "peft.target_modules=[no_such_proj]"), "target_modules", "no_such_proj")
    status = json.loads((tmp_path / "out" / "status.json").read_text())
    assert status["status"] == "failed"
    assert "no_such_proj" in status["error"]["message"]


def test_split_with_a_missing_column(command: Command, base: list[str], tmp_path: Path) -> None:
    splits = tiny.splits(train=6, test=2)
    splits["glue_test_sst2"] = [{k: v for k, v in row.items() if k != "answer"} for row in splits["glue_test_sst2"]]
    root = tiny.write_root(tmp_path / "root", splits)
    assert_refused(command("train.py", *base, f"data.root={root}"), "glue_test_sst2", "answer")


def test_missing_image(command: Command, base: list[str], tmp_path: Path) -> None:
    splits = content(media_path="media/gone.png")
    root = tiny.write_root(tmp_path / "root", splits)
    (root / "media/gone.png").unlink()
    assert_refused(command("train.py", *base, f"data.root={root}"), "media/gone.png", "train/", "no such file")


@pytest.mark.parametrize("workers", [0, 1])
def test_truncated_video(command: Command, base: list[str], tmp_path: Path, workers: int) -> None:
    root = tiny.write_root(tmp_path / "root", content())
    for path in root.glob("media/train_*.mp4"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert_refused(command("train.py", *base, f"data.root={root}", f"data.num_workers={workers}"), ".mp4", "train/")


def test_empty_answer(command: Command, base: list[str], tmp_path: Path) -> None:
    root = tiny.write_root(tmp_path / "root", content(answer=" "))
    assert_refused(command("train.py", *base, f"data.root={root}"), "train/", "answer is empty")


def test_checkpoint_of_another_model(command: Command, base: list[str], tmp_path: Path) -> None:
    train(config("qwen2_vl", trainer__max_steps=1, callbacks__checkpoint=True), tmp_path / "qwen")
    last = next((tmp_path / "qwen" / "checkpoints").glob("*.ckpt"))
    assert_refused(command("train.py", *base, f"ckpt_path={last}"), "ckpt_path", "tiny_qwen2vl", "tiny_llava_onevision")
    adapter = tmp_path / "qwen" / "adapter"
    assert_refused(command("eval.py", f"adapter={adapter}", base[0], "model.family=llava_onevision"), "tiny_qwen2vl")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_file_that_is_no_checkpoint(command: Command, base: list[str], tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "step-1.ckpt"
    if content is None:  # the first half of one
        torch.save({"state_dict": torch.zeros(1000)}, path)
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    assert_refused(command("train.py", *base, f"ckpt_path={path}"), f"ckpt_path: {path}: not a checkpoint of a run")


def test_divergence_is_told(command: Command, base: list[str]) -> None:
    rates = ["optim.peft_lr=1e30", "optim.moe_lr=1e30", "trainer.max_steps=3", "evaluation.mode=none"]
    outcome = command("train.py", *base, *rates)
    assert outcome.code == 0, outcome.said
    assert "training diverged: the last step's loss is nan" in outcome.said


def test_eval_of_what_is_not_there(command: Command, tmp_path: Path) -> None:
    assert_refused(command("eval.py", "adapter=nowhere"), "adapter: nowhere")
    assert_refused(command("eval.py", "predictions=nowhere.jsonl"), "nowhere.jsonl")
    (tmp_path / "broken.jsonl").write_text('{"id": "a/0"\n')
    assert_refused(command("eval.py", "predictions=broken.jsonl"), "broken.jsonl, line 1")
    record = {"id": "a/0", "split": "a", "question": "?", "media_path": "", "raw": "x", "extracted": "x", "truth": "x"}
    (tmp_path / "other.jsonl").write_text(json.dumps({**record, "correct": True}) + "\n")
    assert_refused(command("eval.py", "predictions=other.jsonl"), "predictions of unknown splits: a")
    (tmp_path / "adapter").mkdir()
    for content, message in (
        ("config: {}", "lacks 'config' or 'backbone'"),
        ("config: {}\nbackbone: {}", "fingerprint"),
    ):
        (tmp_path / "adapter" / "run.yaml").write_text(content)
        assert_refused(command("eval.py", "adapter=adapter"), message)
