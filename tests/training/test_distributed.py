"""Runs over several processes: the same losses whatever the strategy, answers that do not depend on their number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lime
from lime.config.check import build
from lime.config.schema import EvalConfig
from lime.jobs.evaluate import evaluate
from lime.jobs.train import train
from lime.models.loading import load_backbone
from tests.training.parts import config, metrics, values

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")

SHORT: dict[str, Any] = {
    "trainer__max_epochs": 1,
    "trainer__batch_size": 3,
    "trainer__num_threads": 1,
    "lime__jitter_noise": 0.0,
    "peft__scope": "both",
    "evaluation__baseline_frozen": False,
    "callbacks__checkpoint": True,
}


def losses(folder: Path) -> list[float]:
    return [float(row["loss/total"]) for row in metrics(folder)]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in two processes, with adapters in both towers and batches of text alone among the others."""
    folder = tmp_path_factory.mktemp("ddp")
    train(config(**SHORT, trainer__devices=2, trainer__strategy="ddp"), folder)
    return folder


def test_two_processes_leave_one_whole_record(ddp: Path) -> None:
    assert json.loads((ddp / "status.json").read_text())["status"] == "finished"
    assert [int(row["step"]) for row in metrics(ddp)] == list(range(1, len(metrics(ddp)) + 1))
    assert len((ddp / "predictions.jsonl").read_text().splitlines()) == 12
    assert not (ddp / "partial").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl"])
def test_a_sharded_base_gives_the_losses_of_ddp(family: str, ddp: Path, tmp_path: Path) -> None:
    """And its adapter loads in one process."""
    if family != "llava_onevision":
        ddp = tmp_path / "ddp"
        train(config(family, **SHORT, trainer__devices=2, trainer__strategy="ddp"), ddp)
    train(config(family, **SHORT, trainer__devices=2, trainer__strategy="fsdp"), tmp_path / "fsdp")
    found, expected = losses(tmp_path / "fsdp"), losses(ddp)
    assert found == pytest.approx(expected, abs=1e-5)
    assert len(found) == 6
    saved, wanted = adapter(tmp_path / "fsdp"), adapter(ddp)
    assert saved.keys() == wanted.keys()
    assert all(torch.allclose(saved[name], wanted[name], atol=1e-5) for name in wanted)
    backbone = load_backbone(config(family).model)
    lime.tuner.load(backbone.model, tmp_path / "fsdp" / "adapter")
    sharded, whole = ((folder / "predictions.jsonl").read_bytes() for folder in (tmp_path / "fsdp", ddp))
    assert sharded == whole


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["generate", "likelihood"])
def test_answers_do_not_depend_on_the_number_of_processes(ddp: Path, tmp_path: Path, mode: str) -> None:
    found = []
    for count in (1, 3):
        settings = {"data": values()["data"], "adapter": str(ddp / "adapter"), "devices": count}
        settings["evaluation"] = {"mode": mode, "batch_size": 2}
        overrides = [f"evaluation.mode={mode}", "evaluation.batch_size=2"]
        evaluate(build(EvalConfig, settings), tmp_path / str(count), overrides)
        found.append([(tmp_path / str(count) / name).read_bytes() for name in ("predictions.jsonl", "results.csv")])
    assert found[0] == found[1]


@pytest.mark.slow
def test_what_the_user_can_mend_comes_back_from_the_processes(tmp_path: Path) -> None:
    changes = {"trainer__devices": 2, "peft__target_modules": ["nothing"]}
    with pytest.raises(ValueError, match="nothing"):
        train(config(**changes), tmp_path)
