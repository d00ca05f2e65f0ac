"""An exported adapter: a card that says what is in it, no folder of this machine, the same answers after loading."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lime.config.adapters import hub_name
from lime.config.check import build
from lime.config.schema import EvalConfig
from lime.data.tools.sources import CONSTITUENTS
from lime.integrations.hub import export_adapter, model_card
from lime.jobs.evaluate import evaluate
from lime.jobs.train import train
from lime.runs.adapter import adapter_folder
from lime.system.ownership import MARKER
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
    for part in (
        "# A test",
        "which `python scripts/data.py download FOLDER` lists",
        "num_experts: 4",
        "| GLUE",
        "**Seed**: 1",
    ):
        assert part in card, part
    settings = {key: values()[key] for key in ("data", "model")} | {"adapter": str(folder)}
    overrides = [f"data.root={values()['data']['root']}", f"model.path={values()['model']['path']}"]
    evaluate(build(EvalConfig, settings), tmp_path / "again", overrides)
    first, again = ((tmp_path / name / "predictions.jsonl").read_bytes() for name in ("run", "again"))
    assert first == again


def test_the_card_s_snippet_runs(tmp_path: Path) -> None:
    train(config(trainer__max_steps=1, evaluation__mode="none"), tmp_path / "run")
    folder = export_adapter(tmp_path / "run", tmp_path / "shared")
    (snippet,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    snippet = snippet.replace("FOLDER OF THIS ADAPTER", str(folder))
    checkpoint, code = values()["model"]["path"], "from transformers import AutoModelForImageTextToText as Auto\n"
    code += f"base_model = Auto.from_pretrained({checkpoint!r})\n{snippet}\nprint(report.layers)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


@pytest.mark.parametrize(
    ("changes", "says", "not_"),
    [
        ({}, ("one shared lora update, 4 expert modulators, zero-parameter routing", "mixture-of-experts"), "baseline"),
        ({"lime__router": "learned"}, ("a learned router",), "zero-parameter"),
        ({"method": "lora", "lime__enabled": False}, ("a plain lora adapter, without experts",), "mixture"),
        (
            {"method": "moe_lora", "peft__type": "moe_lora"},
            ("a mixture of 4 experts with a learned router",),
            "zero-param",
        ),
    ],
)
def test_the_card_says_what_the_run_was(
    changes: dict[str, Any], says: tuple[str, ...], not_: str, tmp_path: Path
) -> None:
    settings = json.loads(json.dumps(dataclasses.asdict(config(**changes))))
    backbone = {"name": "x", "fingerprint": "0" * 64}
    card = model_card(tmp_path, settings, backbone, licence="other", title=None)
    assert all(part in card for part in says)
    assert not_ not in card.split("## Settings")[0]
    for source in CONSTITUENTS:  # no fingerprint tells whether rows are those as published
        assert f"{source.name}: " not in card.split("## Licences")[1]
    assert "rows of one's own carry their own terms" in card
    settings["data"]["name"] = "mmt47_mini"
    assert "GPL" not in model_card(tmp_path, settings, backbone, licence="other", title=None)


def test_what_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="finished run"):
        export_adapter(tmp_path, tmp_path / "out")
    assert hub_name("someone/an-adapter") == ("someone/an-adapter", None)
    assert hub_name("a/b/c") is None
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"hf download someone/no-such-adapter"):
        adapter_folder("someone/no-such-adapter")
