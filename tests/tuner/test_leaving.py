"""Adapting a model again under a name that it has: nothing of the first adapter stays."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

import lime
from lime.tuner.routing.hooks import OpenCall
from tests.tuner import small_models as small

WAYS: dict[str, dict[str, Any]] = {
    "lime": {},
    "lime of two layers' queries": {"target_modules": ["q_proj"], "shared_modulator": False, "r": 1},
    "lime over both towers, with a module": {"scope": "both", "modules_to_save": ["embed_tokens"], "router": "learned"},
    "lime over a random slice": {"feature_slice": "random", "peft": "dora"},
    "lora": {"enabled": False},
    "lora of queries": {"enabled": False, "target_modules": ["q_proj"]},
    "slicefine": {"peft": "slicefine", "enabled": False, "target_modules": "all-linear"},
    "prompt_tuning": {"peft": "prompt_tuning", "num_virtual_tokens": 3},
    "mocle": {"peft": "mocle", "target_modules": ["v_proj"]},
    "any": {"peft": "any", "base": "lora"},
    "any, other layers": {"peft": "any", "base": "ia3", "target_modules": ["k_proj"]},
}
FOREIGN = ("lora", "lora of queries")
"""Adapters of the peft library's own, which only another of those replaces."""
PAIRS = [
    pytest.param(a, b, id=f"{a} then {b}", marks=() if "lime" in (a, b) else pytest.mark.slow)
    for a, b in itertools.product(WAYS, WAYS)
    if a not in FOREIGN or b in FOREIGN
]


def hooks(model: torch.nn.Module) -> int:
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_hooks) + ("generate" in vars(module))
        for module in model.modules()
    )


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any, dict[str, Any], int]]:
    """Each way on a fresh model: tensors in its file, its configuration there, trained parameters, hooks."""
    found = {}
    for way, options in WAYS.items():
        base = small.build("llava_onevision", layers=1)
        model, report = lime.apply(base, **options)
        folder = tmp_path_factory.mktemp("asked")
        model.save_pretrained(folder)
        tensors = {key: value.shape for key, value in load_file(folder / "adapter_model.safetensors").items()}
        config = json.loads((folder / "adapter_config.json").read_text())
        found[way] = (tensors, config, {row.module: row.trainable for row in report.rows}, hooks(base))
    return found


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_adapting_again_is_adapting_afresh(first: str, second: str, asked: Any, tmp_path: Path) -> None:
    base = small.build("llava_onevision", layers=1)
    lime.apply(base, **WAYS[first])
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    model, report = lime.apply(base, **WAYS[second])
    tensors, config, trained, count = asked[second]
    assert {row.module: row.trainable for row in report.rows} == trained
    assert sum(p.numel() for p in base.parameters() if p.requires_grad) == report.trainable
    assert hooks(base) == count
    inputs = small.batch("llava_onevision", [small.row("llava_onevision", 7, 1)])
    before = small.logits(model.eval(), inputs)
    if second != "prompt_tuning":
        start = small.logits(small.build("llava_onevision", layers=1), inputs)
        torch.testing.assert_close(before, start, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path)
    assert {key: value.shape for key, value in load_file(tmp_path / "adapter_model.safetensors").items()} == tensors
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    for one in (saved, config):
        one["target_modules"] = sorted(one["target_modules"] or [])
    assert saved == config
    again, _ = lime.load(small.build("llava_onevision", layers=1), tmp_path)
    assert torch.equal(small.logits(again, inputs)[0], before[0])


def test_other_adapters_of_the_model_stay() -> None:
    base = small.build("llava_onevision")
    inputs = small.batch("llava_onevision", [small.row("llava_onevision", 7, 1)])
    torch.manual_seed(1)
    lime.apply(base, lime.LimeConfig(init_weights=False), adapter_name="kept")
    expected = small.logits(base.eval(), inputs)
    lime.apply(base, peft="dora", modules_to_save=["lm_head"], adapter_name="gone")
    model, _ = lime.apply(base, target_modules=["q_proj"], adapter_name="gone")
    assert set(model.peft_config) == {"kept", "gone"}
    assert model.peft_config["gone"].peft == "lora"
    model.set_adapter("kept")
    assert torch.equal(small.logits(model.eval(), inputs)[0], expected[0])
    assert sum(isinstance(hook, OpenCall) for m in base.modules() for hook in m._forward_pre_hooks.values()) == 1


def test_peft_alone_replaces_it_too(tmp_path: Path) -> None:
    base = small.build("llava_onevision")
    get_peft_model(base, lime.LimeConfig())
    with pytest.warns(UserWarning, match="second time"):
        model = get_peft_model(base, lime.LimeConfig(shared_modulator=False))
    model.save_pretrained(tmp_path)
    assert not any("shared" in key or "gamma" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    PeftModel.from_pretrained(small.build("llava_onevision"), tmp_path)


def test_a_refused_adapter_leaves_the_first_one() -> None:
    base = small.build("llava_onevision")
    lime.apply(base)
    for options in ({"target_modules": ["nowhere"]}, {"num_experts": 1000}):
        with pytest.raises(ValueError, match=r"nowhere|1000"):
            lime.apply(base, **options)
    assert len(small.lime_layers(base)) == 8


def test_what_stays_is_refused_by_name() -> None:
    """A type of the library's own beside LiME layers of another name, and LiME over such a type of the same name."""
    base = small.build("llava_onevision")
    lime.apply(base, adapter_name="other")
    with pytest.raises(ValueError, match=r"LiME adapters \(other\).* call unload\(\) first"):
        lime.apply(base, enabled=False)
    base = small.build("llava_onevision")
    get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(TypeError, match=r"q_proj: LiME adapts plain linear layers, got Linear; .* peft='any'"):
        lime.apply(base, adapter_name="other")


@pytest.mark.parametrize("second", [way for way in WAYS if way not in FOREIGN])
def test_one_of_the_library_of_that_name_is_refused(second: str) -> None:
    """On layers of its own too: it would stay, and be saved with the new one."""
    base = small.build("llava_onevision", layers=1)
    lime.apply(base, enabled=False, target_modules=["gate_proj"])
    before = {key: value.clone() for key, value in base.state_dict().items()}
    message = r"gate_proj: has an adapter 'default' of the peft library already, a Linear; call unload\(\) first"
    with pytest.raises(ValueError, match=message):
        lime.apply(base, **WAYS[second])
    with pytest.raises(ValueError, match=message):
        get_peft_model(base, lime.LimeConfig(**WAYS[second]))
    assert before.keys() == base.state_dict().keys()
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())


def test_a_layer_that_another_adapter_trains_in_full_is_no_target() -> None:
    model, _ = lime.apply(small.build("llava_onevision"), target_modules=["q_proj"], modules_to_save=["up_proj"])
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj: another adapter trains it in full"):
        model.add_adapter("second", lime.LimeConfig(target_modules="all-linear"))
