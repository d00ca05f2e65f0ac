"""An exported adapter: a card that says what is in it, no folder of this machine, the same answers after loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lime.config.adapters import hub_name
from lime.config.check import build
from lime.config.schema import EvalConfig
from lime.integrations.hub import adapter_folder, export_adapter
from lime.ownership import MARKER
from lime.training.evaluate import evaluate
from lime.training.job import train
from tests.training.parts import config, values


def test_exported_and_loaded_back(tmp_path: Path) -> None:
    train(config(trainer__max_steps=1), tmp_path / "run")
    folder = export_adapter(tmp_path / "run", tmp_path / "shared", licence="apache-2.0", title="A test")
    names = {MARKER, "README.md", "adapter_config.json", "adapter_model.safetensors", "run.yaml"}
    assert {path.name for path in folder.iterdir()} == names
    for path in folder.glob("*.*"):
        if path.suffix != ".safetensors":
            assert "/tmp/" not in path.read_text()
    card = (folder / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "apache-2.0"
    assert header["base_model"] == "tiny_llava_onevision"
    for part in ("# A test", "ChartQA: GPL-3.0", "num_experts: 4", "| GLUE", "**Seed**: 1"):
        assert part in card, part
    settings = {key: values()[key] for key in ("data", "model")} | {"adapter": str(folder)}
    overrides = [f"data.root={values()['data']['root']}", f"model.path={values()['model']['path']}"]
    evaluate(build(EvalConfig, settings), tmp_path / "again", overrides)
    first, again = ((tmp_path / name / "predictions.jsonl").read_bytes() for name in ("run", "again"))
    assert first == again


def test_what_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="finished run"):
        export_adapter(tmp_path, tmp_path / "out")
    assert hub_name("someone/an-adapter") == ("someone/an-adapter", None)
    assert hub_name("a/b/c") is None
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"hf download someone/no-such-adapter"):
        adapter_folder("someone/no-such-adapter")
