"""The adapter format: its version, its keys, and how files of older versions are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import lime
from lime.tuner import saved as adapter_format
from lime.tuner.saved import FORMAT_VERSION, KEY_MAPS, upgrade_key, upgrade_keys
from tests.tuner import small_models as small

FAMILY = "llava_onevision"
COMMON = {"lime_experts", "lime_shared", "lime_gamma"}
KEYS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "lora": ({}, COMMON | {"lime_delta.A", "lime_delta.B"}),
    "lora_fa": ({"peft": "lora_fa"}, COMMON | {"lime_delta.A", "lime_delta.B"}),
    "dora": ({"peft": "dora"}, COMMON | {"lime_delta.A", "lime_delta.B", "lime_delta.magnitude"}),
    "columns": ({"peft": "slicefine"}, COMMON | {"lime_delta.columns", "lime_delta.column_change"}),
    "rows": ({"peft": "slicefine", "orientation": "rows"}, COMMON | {"lime_delta.rows", "lime_delta.row_change"}),
    "learned": ({"router": "learned"}, COMMON | {"lime_delta.A", "lime_delta.B", "lime_router.weight"}),
    "random": ({"feature_slice": "random"}, COMMON | {"lime_delta.A", "lime_delta.B", "lime_router.features"}),
    "alone": ({"shared_modulator": False}, {"lime_experts", "lime_delta.A", "lime_delta.B"}),
}
"""Format 1. Whoever changes this changes the format: see `lime.tuner.saved`."""


def saved(folder: Path, **options: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Saves an adapter; its model's logits and the content of its file."""
    model = small.apply_random(small.build(FAMILY), **options)
    model.save_pretrained(folder)
    return logits(model), load_file(folder / "adapter_model.safetensors")


def logits(model: Any) -> list[Tensor]:
    return small.logits(model.eval(), small.batch(FAMILY, [small.row(FAMILY, 7, 1), small.row(FAMILY, 12, 2)]))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(a, b, strict=True))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


@pytest.mark.parametrize("kind", KEYS)
def test_the_keys_of_this_version(kind: str, tmp_path: Path) -> None:
    options, expected = KEYS[kind]
    _, content = saved(tmp_path, **options)
    layer = "base_model.model.model.language_model.layers.0.self_attn.q_proj."
    assert {key.removeprefix(layer) for key in content if key.startswith(layer)} == expected
    assert len(content) == 8 * len(expected)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["format_version"] == FORMAT_VERSION == 1
    assert all(upgrade_key(key) == key for key in content), "the key map leaves present keys alone"


def test_the_keys_of_a_prompt(tmp_path: Path) -> None:
    _, content = saved(tmp_path, peft="prompt_tuning", r=2, num_virtual_tokens=3)
    place = "base_model.model.model.language_model.virtual_tokens."
    assert {key.removeprefix(place) for key in content} == COMMON | {"lime_delta.initial", "lime_delta.offset"}


def test_every_older_version_has_a_map() -> None:
    assert KEY_MAPS.keys() == set(range(FORMAT_VERSION))


def test_files_without_a_version(tmp_path: Path) -> None:
    before, _ = saved(tmp_path)
    edit_config(tmp_path, format_version=...)
    model, _ = lime.load(small.build(FAMILY), tmp_path)
    assert same(logits(model), before)
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["format_version"] == FORMAT_VERSION


@pytest.mark.parametrize(
    ("version", "message"), [(2, "up to 1; install a later one"), ("x", "expected a whole number")]
)
def test_versions_that_cannot_be_read(version: object, message: str, tmp_path: Path) -> None:
    saved(tmp_path)
    edit_config(tmp_path, format_version=version, option_of_the_future=3)
    with pytest.raises(ValueError, match=message):
        PeftConfig.from_pretrained(str(tmp_path))


def test_older_keys_are_read_under_their_present_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two renames, one version after the other, as an earlier file would need them."""
    monkeypatch.setattr(adapter_format, "FORMAT_VERSION", 2)
    maps = {
        0: {r"\.lime_delta\.lora_([AB])$": r".lime_delta.\1", r"\.modulators$": ".lime_p"},
        1: {r"\.lime_p$": ".lime_experts"},
    }
    monkeypatch.setattr(adapter_format, "KEY_MAPS", maps)
    before, content = saved(tmp_path)
    old = {
        key.replace(".lime_delta.", ".lime_delta.lora_").replace(".lime_experts", ".modulators"): value
        for key, value in content.items()
    }
    assert len(old.keys() - content.keys()) == 3 * 8
    save_file(old, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    edit_config(tmp_path, format_version=0)
    assert same(logits(PeftModel.from_pretrained(small.build(FAMILY), tmp_path)), before)
    model, _ = lime.load(small.build(FAMILY), tmp_path)
    assert same(logits(model), before)
    model.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "adapter_model.safetensors").keys() == content.keys()
    with pytest.raises(ValueError, match=r"adapter keys a\.modulators and a\.lime_experts are both a\.lime_experts"):
        upgrade_keys([("a.modulators", 1), ("a.lime_experts", 2)])


@pytest.mark.parametrize("change", ["lacks", "has more"])
def test_missing_and_left_over_keys_fail_loudly(change: str, tmp_path: Path) -> None:
    _, content = saved(tmp_path)
    key = next(key for key in content if key.endswith("lime_gamma"))
    if change == "lacks":
        del content[key]
    else:
        content[key + "_more"] = torch.zeros(1)
    save_file(content, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    for load in (PeftModel.from_pretrained, lime.load):
        with pytest.raises(ValueError, match=r"(?s)the file (lacks|has).* 1 tensors.*lime_gamma"):
            load(small.build(FAMILY), tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter_model.safetensors", b"", "not a whole safetensors file"),
        ("adapter_model.safetensors", None, "not a whole safetensors file"),  # its first half
        ("adapter_config.json", b"{", "not the configuration of a peft adapter"),
        ("adapter_config.json", b"[]", "not the configuration of a peft adapter"),
        ("adapter_config.json", b'{"peft_type": "FUTURE"}', "peft_type 'FUTURE' is not known"),
    ],
)
def test_damaged_files_are_named(file: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    with pytest.raises(ValueError, match=f"{file}: {message}"):
        lime.load(small.build(FAMILY), tmp_path)
