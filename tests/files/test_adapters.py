"""What is loaded is what was saved, and a stranger's adapter decides nothing but the method."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import lime.tuner
from lime.config.adapters import hub_name
from lime.config.check import build
from lime.config.reuse import TAKEN, check_settings, is_own_run, read_run, taken_from, with_run_config
from lime.config.schema import EvalConfig
from lime.integrations.hub import export_adapter
from lime.jobs.evaluate import evaluate
from lime.jobs.train import train
from lime.models.loading import load_backbone
from lime.runs.adapter import adapter_folder
from lime.system.ownership import MARKER, mark
from lime.system.signature import key_file
from tests.training.parts import config, values

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(config(trainer__max_steps=1, evaluation__mode="none", lime__feature_slice="random"), folder)
    return folder


@pytest.fixture
def adapter(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "run") / "adapter"


def load(adapter: Path) -> None:
    lime.tuner.load(load_backbone(config().model).model, adapter)


def edit_weights(adapter: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(adapter / WEIGHTS)
    change(tensors)
    save_file(tensors, adapter / WEIGHTS, metadata={"format": "pt"})


def set_first(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[min(tensors)].view(-1)[0] = value

    return change


def cast(dtype: torch.dtype) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        first = next(key for key in sorted(tensors) if tensors[key].is_floating_point())
        tensors[first] = tensors[first].to(dtype)

    return change


def out_of_range(tensors: dict[str, torch.Tensor]) -> None:
    first = next(key for key in sorted(tensors) if key.endswith("features"))
    tensors[first][0] = 10**6


def as_floats(tensors: dict[str, torch.Tensor]) -> None:
    first = next(key for key in sorted(tensors) if key.endswith("features"))
    tensors[first] = tensors[first].float()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(adapter: Path, value: float):
    (adapter / MARKER).unlink()
    edit_weights(adapter, set_first(value))
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: .*1 of \d+ values are not finite"):
        load(adapter)


@pytest.mark.parametrize(
    "change",
    [
        cast(torch.float64), cast(torch.int8), cast(torch.int64), cast(torch.bool), cast(torch.complex64),
        cast(torch.float8_e4m3fn), out_of_range, as_floats,
    ],
)  # fmt: skip
def test_values_of_another_type_are_refused(adapter: Path, change: Callable[[dict[str, torch.Tensor]], None]):
    (adapter / MARKER).unlink()
    edit_weights(adapter, change)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: .*(expected|features)"):
        load(adapter)


def test_a_flipped_value_is_refused(adapter: Path):
    edit_weights(adapter, set_first(0.5))
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: is not what was saved"):
        load(adapter)
    settings = {key: values()[key] for key in ("data", "model")} | {"adapter": str(adapter)}
    (adapter / MARKER).unlink()  # the record beside it knows as well
    with pytest.raises(ValueError, match="not the one that the run recorded"):
        evaluate(build(EvalConfig, settings), adapter.parent.parent / "eval")


@pytest.mark.parametrize("name", ["adapter_config.json", "run.yaml"])
def test_changed_settings_are_refused(adapter: Path, name: str):
    path = adapter / name
    path.write_text(path.read_text().replace("0.7", "0.3"))
    with pytest.raises(ValueError, match=f"{name}.*not what was saved"):
        read_run(adapter)
    if name == "adapter_config.json":
        with pytest.raises(ValueError, match=f"{name}.*not what was saved"):
            load(adapter)


@pytest.mark.parametrize(
    ("option", "value"),
    [("r", 3), ("num_experts", 5), ("gamma_routing", 0.1), ("n_gram", 2), ("enabled", False), ("peft", "dora"),
     ("selection", "dense"), ("scope", "both"), ("max_experts", 1)],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(adapter: Path, option: str, value: Any):
    (adapter / MARKER).unlink()
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {option: value}))
    with pytest.raises(ValueError, match=rf"{option} is .* but run\.yaml says"):
        read_run(adapter)


METHODS = [
    {}, {"peft__type": "dora", "method": "lime_dora"}, {"method": "lora", "lime__enabled": False},
    {"method": "dora", "peft__type": "dora", "lime__enabled": False}, {"method": "moe_lora", "peft__type": "moe_lora"},
    {"method": "lime_any", "peft__type": "any", "peft__base": "vera"},
    {"method": "lora_fa", "peft__type": "lora_fa", "lime__enabled": False},
    {"method": "lime_lora", "peft__target_modules": ["q_proj", "k_proj"], "lime__temperature": 1},
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_what_training_saves_contradicts_nothing(method: dict[str, Any], tmp_path: Path):
    made = config(**method)
    model, _ = lime.tuner.apply(load_backbone(made.model).model, made.settings())
    model.save_pretrained(tmp_path)
    check_settings(tmp_path, yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(values(**method))))))
    load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"megatron_core": "antigravity", "megatron_config": {"a": 1}}, "megatron"),
        ({"peft_type": "LORA", "megatron_core": "this"}, "megatron_core"),
        ({"base_options": {"shadow_model": "someone/model"}}, "shadow_model"),
        ({"peft_type": "SHADOW", "shadow_model": "someone/model"}, "shadow_model"),
        ({"peft_type": "XLORA", "adapters": {"0": "someone/model"}}, "adapters"),
        ({"peft_type": "XLORA"}, "XLORA"),
        ({"peft_type": "PROMPT_TUNING", "tokenizer_kwargs": {"trust_remote_code": True}}, "tokenizer_kwargs"),
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING"),
        ({"corda_config": {"cache_file": "x.pt"}}, "corda_config"),
        ({"peft_type": ["LIME"]}, "peft_type"),
        ({"peft_type": "NO_SUCH"}, "NO_SUCH"),
    ],
)
def test_options_that_lead_elsewhere_are_refused(adapter: Path, options: dict[str, Any], message: str):
    (adapter / MARKER).unlink()
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))
    with pytest.raises(ValueError, match=rf"adapter_config\.json.*{message}"):
        load(adapter)


EVIL: dict[str, Any] = {
    "model": {"path": "someone/evil", "name": "evil", "family": "hf", "device_map": "auto", "quantization": "4bit",
              "attn_implementation": "eager", "dtype": "float16", "revision": "main"},
    "data": {"root": "/tmp/evil", "name": "mmt47", "frame_cache": {"dir": "/tmp/evil"}, "num_workers": 64,
             "mini": {"workers": 64}, "on_missing_media": "skip", "rows_per_split": 1},
    "evaluation": {"splits": ["glue_test_sst2"], "scorer": "authors", "batch_size": 10**6},
    "cache_dir": "/tmp/evil", "seed": 7, "logger": {"wandb": {"project": "evil"}}, "name": "evil",
}  # fmt: skip


def leaves(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_a_strangers_settings_are_not_taken():
    before = EvalConfig(data=build(EvalConfig, {"data": {"root": "mine"}}).data)
    assert with_run_config(before, EVIL, [], own=False) == before
    assert not set(leaves(EVIL)) & set(TAKEN)
    theirs = {"data": {"max_length": 100, "system_prompt": "Be brief."}, "model": {"video": {"num_frames": 4}}}
    taken = with_run_config(before, theirs, ["model=tiny_qwen2vl", "data.max_length=50"], own=False)
    assert (taken.data.max_length, taken.data.system_prompt, taken.model.video.num_frames) == (2048, "Be brief.", 4)


@pytest.mark.parametrize(
    ("key", "value"),
    [("model.video.num_frames", 10**9), ("data.max_length", -1), ("evaluation.max_new_tokens", 1e9),
     ("data.system_prompt", ["x"]), ("model.image.max_pixels", True), ("model.budget", 3)],
)  # fmt: skip
def test_what_is_taken_is_bounded(key: str, value: Any):
    content: dict[str, Any] = {}
    section, *inner, last = key.split(".")
    place = content.setdefault(section, {})
    for part in inner:
        place = place.setdefault(part, {})
    place[last] = value
    with pytest.raises(ValueError, match=key):
        taken_from(content)
    assert taken_from({"model": "x", "data": None, "evaluation": [1]}) == {}


def test_one_s_own_run_is_known_by_its_signature(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert key_file().stat().st_mode & 0o777 == 0o600
    assert is_own_run(adapter)
    assert is_own_run(shutil.copytree(adapter, tmp_path / "moved"))
    said = json.loads((adapter / MARKER).read_text())
    run_file = adapter / "run.yaml"
    before = run_file.read_text()
    run_file.write_text(before.replace("seed: 1", "seed: 2"))
    assert not is_own_run(adapter)
    (adapter / MARKER).write_text(json.dumps({**said, "files": {}}))  # a list that says nothing
    assert not is_own_run(adapter)
    run_file.write_text(before)
    (adapter / MARKER).write_text(json.dumps({**said, "signature": "0" * 64}))
    assert not is_own_run(adapter)
    (adapter / MARKER).write_text(json.dumps(said))
    assert is_own_run(adapter)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "another user"))
    assert not is_own_run(adapter)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))  # no key can be kept
    assert not is_own_run(adapter)


def test_a_strangers_run_is_evaluated_as_the_command_line_says(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """The whole run of somebody else, whose run.yaml and marks all fit, with settings that would lead elsewhere."""
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "stranger"))
    content = yaml.safe_load((adapter / "run.yaml").read_text())
    for section in ("model", "data"):
        content["config"][section] |= EVIL[section]
    content["config"]["data"]["system_prompt"] = "\x1b[31mBe brief."
    (adapter / "run.yaml").write_text(yaml.safe_dump(content))
    (adapter / MARKER).unlink()
    mark(adapter, "adapter", files=True)
    stranger = shutil.copytree(adapter, tmp_path / "downloads" / "theirs")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "me"))
    settings = {key: values()[key] for key in ("data", "model")} | {"adapter": str(stranger), "evaluation": FAST}
    evaluate(build(EvalConfig, settings), tmp_path / "eval")
    used = yaml.safe_load((tmp_path / "eval" / "config.yaml").read_text())
    for section in ("model", "data"):
        mine = values()[section]
        assert {key: used[section][key] for key in mine} == mine
        assert not {key for key, value in EVIL[section].items() if key not in mine and used[section][key] == value}
    assert used["data"]["system_prompt"] == "\x1b[31mBe brief."
    assert "not marked as of a run of yours" in caplog.text
    assert "data.system_prompt='\\x1b[31mBe brief.'" in caplog.text


FAST = {"splits": ["glue_test_sst2"], "baseline_frozen": False}


def test_hub_names():
    assert hub_name("someone/name") == ("someone/name", None)
    assert hub_name("someone/name@0123abc") == ("someone/name", "0123abc")
    assert hub_name("someone/name@refs/pr/1") == ("someone/name", "refs/pr/1")
    assert hub_name("someone/adapter@main") == ("someone/adapter", "main")
    for path in ("RUN/adapter", "outputs/x", "a/b/c", "/a/b", "./a", "a", "tests/nothing", "someone/name@", "a/b@c@d"):
        assert hub_name(path) is None, path


def test_a_run_without_an_adapter_asks_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lime.runs.adapter.snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    (tmp_path / "RUN").mkdir()
    for name in ("RUN/adapter", "GONE/adapter", "RUN/other"):
        with pytest.raises(FileNotFoundError, match=f"{name}: no such folder"):
            adapter_folder(name)
        with pytest.raises(ValueError, match=f"adapter: {name}: no such file or folder"):
            build(EvalConfig, {"adapter": name, "data": {"root": "x"}})


def test_a_pinned_adapter_is_fetched_at_its_commit(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    caplog.set_level(logging.INFO)
    commit, asked = "a" * 40, []
    folder = export_adapter(run, tmp_path / commit)

    def snapshot(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, set(allow_patterns) >= {"run.yaml", MARKER, WEIGHTS}))
        return str(folder)

    monkeypatch.setattr("lime.runs.adapter.snapshot_download", snapshot)
    assert adapter_folder(f"someone/name@{commit}") == folder
    assert "repeats this evaluation" not in caplog.text
    assert adapter_folder("someone/name") == folder
    assert f"adapter=someone/name@{commit} repeats this evaluation" in caplog.text
    assert asked == [("someone/name", commit, True), ("someone/name", None, True)]
