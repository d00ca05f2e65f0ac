"""A PEFT type or mixture of one's own is two files, a module and a YAML: it trains, is counted and is titled."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from lime.config.reuse import read_run
from lime.method.deltas.table import TYPES, PeftType, register
from tests import processes
from tests.config.line import ROOT, line

DOCUMENT = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
PYTHON, YAML = re.search(r"```python\n(\"\"\"LoRA-XS.*?)```.*?```yaml\n(.*?)```", DOCUMENT, re.DOTALL).groups()  # type: ignore[union-attr]
MIXTURE = '''
from lime.method.deltas.mixture import MixtureDelta, spread
from lime.method.deltas.table import TOP_2, PeftType, register

class TinyMixtureDelta(MixtureDelta):
    @staticmethod
    def widths(num_experts, r):
        return num_experts * r, num_experts * r

    def mix(self, u_BTP, w_BTE):
        return u_BTP * spread(w_BTE, self.r)

def even(settings):
    yield "num_experts", settings.num_experts % 2 == 0, "an even number"

register(PeftType("tiny_mixture", "Tiny Mixture", TinyMixtureDelta, routing={**TOP_2, "top_k": 1}, limits=even))
'''  # fmt: skip
SHORT = ("debug=fast", "data.mini.train_per_task=2", "data.mini.test_per_task=1", "trainer.preflight=false",
         "evaluation.baseline_frozen=false", "evaluation.splits=[sst2]", "model.recipe.rank=4")  # fmt: skip


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    folder = tmp_path / "mine" / "peft"
    folder.mkdir(parents=True)
    (tmp_path / "lora_xs.py").write_text(PYTHON)
    (tmp_path / "tiny_mixture.py").write_text(MIXTURE)
    (folder / "lora_xs.yaml").write_text(YAML)
    (folder / "tiny_mixture.yaml").write_text("defaults: [lora]\ntype: tiny_mixture\nmodule: tiny_mixture\n")
    return tmp_path


def run(folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    return processes.run([sys.executable, str(ROOT / program), *arguments], folder, environment)


def lora_xs(d_in: int, d_out: int) -> int:
    return 4 * 4 + (4 + 1) * d_out + 1  # R, and LiME's modulators


def tiny_mixture(d_in: int, d_out: int) -> int:
    return 4 * 4 * (d_in + d_out) + 4 * d_in  # A and B of all experts, and the router


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "method", "title", "of_a_layer"),
    [
        ("peft=lora_xs", "lime_lora_xs", "LiME LoRA-XS", lora_xs),
        ("method=tiny_mixture", "tiny_mixture", "Tiny Mixture", tiny_mixture),
    ],
)
def test_a_type_of_ones_own_trains_is_counted_titled_and_evaluated(
    mine: Path, choice: str, method: str, title: str, of_a_layer: Callable[[int, int], int]
) -> None:
    done = run(mine, "train.py", "--config-dir", "mine", choice, "hydra.run.dir=run", *SHORT)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((mine / "run" / "record.json").read_text(encoding="utf-8"))
    assert record["config"]["method"] == method
    assert record["status"] == "finished"
    saved = load_file(mine / "run" / "adapter" / "adapter_model.safetensors")
    widths = [(saved[key].shape[1], saved[key[:-1] + "B"].shape[0]) for key in saved if key.endswith("lime_delta.A")]
    assert record["parameters"]["trainable"] == sum(of_a_layer(*each) for each in widths) > 0
    code = f"import {record['config']['peft']['module']}; from lime.experiments.figures.efficiency import label; "
    (mine / "titled.py").write_text(f"{code}print(label({method!r}))")
    assert run(mine, str(mine / "titled.py")).stdout == f"{title}\n"
    done = run(mine, "eval.py", "run", "hydra.run.dir=again")
    assert done.returncode == 0, done.stderr[-2000:]
    again, first = (json.loads((mine / place / "results.json").read_text()) for place in ("again", "run"))
    assert again["macro"] == first["macro"]


@pytest.mark.slow
def test_what_is_wrong_with_a_type_of_ones_own_is_told(mine: Path) -> None:
    (mine / "mine" / "peft" / "odd.yaml").write_text("type: odd\n")
    done = run(mine, "train.py", "--config-dir", "mine", "method=tiny_mixture", "lime.num_experts=3")
    assert "lime.num_experts: expected an even number, got 3" in done.stderr
    done = run(mine, "train.py", "--config-dir", "mine", "method=tiny_mixture", "lime.router=learned")
    assert "lime.router: 'learned' has no effect without LiME; tiny_mixture has neither modulators" in done.stderr
    done = run(mine, "train.py", "--config-dir", "mine", "peft=odd")
    assert "peft.type: expected one of lora, lora_fa, " in done.stderr
    for place in ("--config-dir=mine", f"hydra.searchpath=[file://{mine}/mine]"):
        for choice in ("peft=lora_xs", "method=lime_lora_xs"):
            assert "\nmethod: lime_lora_xs\n" in run(mine, "train.py", place, choice, "--cfg", "job").stdout
    (mine / "lora_xs.py").write_text("import nothing_of_that_name")
    done = run(mine, "train.py", "--config-dir", "mine", "peft=lora_xs")
    assert done.returncode == 2
    assert "peft.module: lora_xs: cannot be imported (ModuleNotFoundError: No module named 'nothing" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_module_that_is_not_there_is_told() -> None:
    for program, key in (("train", "peft.module"), ("eval", "peft_module")):
        told = line(f"{key}=nothing_of_that_name", program=program).said
        assert f"{key}: nothing_of_that_name: cannot be imported (ModuleNotFoundError" in told


def test_a_name_is_taken_once() -> None:
    for name in ("lora", "lime_lora", "mola"):
        with pytest.raises(ValueError, match=f"{name}: there is a PEFT type or method of that name already"):
            register(PeftType(name, "Mine"))
    before = list(TYPES)
    register(TYPES["lora"])
    assert list(TYPES) == before


def test_only_a_run_of_ones_own_chooses_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"peft": {"type": "lora", "module": "nothing_of_that_name"}}
    text = yaml.safe_dump({"config": config, "backbone": {"name": "x", "fingerprint": "y"}})
    (tmp_path / "run.yaml").write_text(text)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert read_run(tmp_path)["config"] == config
    monkeypatch.setattr("lime.config.reuse.is_own_run", lambda adapter: True)
    with pytest.raises(ValueError, match="nothing_of_that_name: cannot be imported"):
        read_run(tmp_path)
