"""Wrapped adapters in peft's life: saving, loading, switching, copying, leaving."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

import lime
from tests.tuner import small_models as small
from tests.tuner.test_over import TARGETS, adapted, close, every, families, inputs_of, layers, over

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Equal but for the order of sums, which depends on how tensors lie in memory."""
    return all(torch.allclose(one, other, atol=2e-6, rtol=0.0) for one, other in zip(a, b, strict=True))


def tensors_of(model: Any) -> dict[str, Tensor]:
    return get_peft_model_state_dict(model)


@every
def test_save_and_load_are_exact(name: str, tmp_path: Path) -> None:
    model = over(name, n_gram=2)
    inputs = inputs_of()
    before = small.logits(model, inputs)
    model.save_pretrained(tmp_path)
    keys = load_file(tmp_path / "adapter_model.safetensors")
    assert not any("default" in key or key.endswith(("base_layer.weight", "base_layer.bias")) for key in keys)
    assert len([key for key in keys if key.endswith(("vera_A", "vera_B"))]) == (2 if name == "vera" else 0)

    again = PeftModel.from_pretrained(small.build("llava_onevision"), tmp_path).eval()
    lean = PeftModel.from_pretrained(small.build("llava_onevision"), tmp_path, low_cpu_mem_usage=True).eval()
    loaded, report = lime.load(small.build("llava_onevision"), tmp_path, is_trainable=True)
    for other in (again, lean, loaded.eval()):
        assert same(small.logits(other, inputs), before)
    for other in (again, lean, loaded):
        assert all(torch.equal(value, tensors_of(model)[key]) for key, value in tensors_of(other).items())
    assert report.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert not any(p.requires_grad for p in again.parameters())


@families
@pytest.mark.parametrize("name", ["lora", "vera", "adalora"])
def test_missing_and_unexpected_tensors_fail(family: str, name: str, tmp_path: Path) -> None:
    over(name, family).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    inner = next(key for key in sorted(tensors) if ".base_layer." in key)
    modulator = next(key for key in sorted(tensors) if ".lime_experts" in key)
    for key in (inner, modulator):
        save_file({other: value for other, value in tensors.items() if other != key}, path)
        for load in (PeftModel.from_pretrained, lime.load):
            with pytest.raises(ValueError, match=f"lacks 1 tensors, first .*{key.rpartition('.layers.')[2]}"):
                load(small.build(family), tmp_path)
        save_file({**tensors, f"{key}x": tensors[key].clone()}, path)
        for load in (PeftModel.from_pretrained, lime.load):
            with pytest.raises(ValueError, match="1 tensors"):
                load(small.build(family), tmp_path)


def test_transformers_cannot_load_it_and_says_so(tmp_path: Path) -> None:
    """Its loader renames the tensors of one prefix, and would leave those of the base type at random."""
    over("lora").save_pretrained(tmp_path)
    base = small.build("llava_onevision")
    with pytest.raises(ValueError, match=r"load it with lime\.load or PeftModel\.from_pretrained"):
        base.load_adapter(str(tmp_path))
    assert not any(isinstance(module, BaseTunerLayer) for module in base.modules())


def test_an_adapter_trained_alone_goes_on_under_lime() -> None:
    """Its tensors are taken as they are; targets outside the default ones are found again."""
    alone = adapted("lora", "qwen2_vl")
    trained = {key: p.clone() for key, p in alone.named_parameters() if "lora_" in key}
    model, report = lime.apply(alone, num_experts=3)
    now = {key.replace("base_layer.lora", "lora"): p for key, p in model.named_parameters() if "lora_" in key}
    assert all(torch.equal(now[key], value) for key, value in trained.items())
    assert {row.module.rpartition(".")[2] for row in report.rows} == set(TARGETS)
    config = model.peft_config["default"]
    assert (config.peft, config.base, config.num_experts) == ("any", "lora", 3)
    assert config.base_options == {"r": 4, "init_lora_weights": False}


def test_an_adapter_of_another_name_keeps_it() -> None:
    torch.manual_seed(0)
    alone = get_peft_model(small.build("llava_onevision"), LoraConfig(target_modules=TARGETS), adapter_name="mine")
    model, report = lime.apply(alone)
    assert list(model.peft_config) == ["mine"]
    assert report.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad) > 0
    assert not close(small.logits(model.eval(), inputs_of()), [torch.zeros(1)] * 2)


@families
@pytest.mark.parametrize("name", ["lora", "loha", "oft"])
def test_second_adapter_switch_and_delete(family: str, name: str, tmp_path: Path) -> None:
    inputs = inputs_of(family)
    model = over(name, family)
    first = small.logits(model, inputs)
    options = model.peft_config["default"].base_options
    base = model.peft_config["default"].base
    torch.manual_seed(7)
    second_config = lime.LimeConfig(
        peft="any", base=base, base_options=options, num_experts=2, target_modules=["q_proj", "v_proj"]
    )
    model.add_adapter("second", second_config)
    assert same(small.logits(model, inputs), first), "adding an adapter does not switch to it"
    assert not any(".second" in key for key, p in model.named_parameters() if p.requires_grad)
    model.set_adapter("second")
    second = small.logits(model.eval(), inputs)
    assert not close(second, first, 1e-2)
    trained = [key for key, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(".second" in key for key in trained)
    model.save_pretrained(tmp_path)
    model.base_model.set_adapter(["default", "second"])
    both = small.logits(model, inputs)
    assert not close(both, first, 1e-2)
    assert not close(both, second, 1e-2)
    model.set_adapter("default")
    assert same(small.logits(model, inputs), first)
    model.delete_adapter("second")
    assert not any("second" in key for key in model.state_dict())
    assert same(small.logits(model.eval(), inputs), first)
    again = PeftModel.from_pretrained(small.build(family), tmp_path / "second").eval()
    assert same(small.logits(again, inputs), second)


@pytest.mark.parametrize("name", ["lora", "vera", "hra"])
def test_disable_unload_and_merge(name: str) -> None:
    inputs = inputs_of()
    frozen = small.logits(small.build("llava_onevision"), inputs)
    model = over(name)
    before = small.logits(model, inputs)
    with model.disable_adapter():
        assert same(small.logits(model, inputs), frozen)
    assert same(small.logits(model, inputs), before)
    with pytest.raises(NotImplementedError, match="depends on the input through the routing weights"):
        model.merge_and_unload()
    base = model.unload()
    assert same(small.logits(base, inputs), frozen)
    assert not any(isinstance(module, BaseTunerLayer) for module in base.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks_always_called for module in base.modules())


@pytest.mark.parametrize("name", ["vera", "oft"])
def test_copies_and_pickles_are_independent(name: str) -> None:
    model = over(name, n_gram=2)
    others = (copy.deepcopy(model), pickle.loads(pickle.dumps(model)))
    inputs = inputs_of()
    before = small.logits(model, inputs)
    for other in others:
        assert same(small.logits(other, inputs), before)
        with lime.record(other) as theirs, lime.record(model) as ours:
            small.logits(other, inputs)
        assert (len(theirs), len(ours)) == (len(layers(model)), 0)


def test_modules_to_save_go_with_the_base(tmp_path: Path) -> None:
    options: dict[str, Any] = {"peft": "any", "base": "lora", "modules_to_save": ["multi_modal_projector"]}
    model, report = lime.apply(small.build("llava_onevision"), **options)
    assert report.saved_modules > 0
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "modules_to_save" in key or "lora_B" in key:
                p.add_(0.1)
    before = small.logits(model.eval(), inputs_of())
    model.save_pretrained(tmp_path)
    again, _ = lime.load(small.build("llava_onevision"), tmp_path)
    assert same(small.logits(again, inputs_of()), before)
