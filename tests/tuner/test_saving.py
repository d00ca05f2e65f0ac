"""What an adapter's file says is what was asked, and every way of loading reads it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, inject_adapter_in_model
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, T5Config, T5ForConditionalGeneration

import lime
from tests.conformance.types import TYPES
from tests.tuner import small_models as small


def llava() -> Any:
    torch.manual_seed(0)
    text = {"model_type": "qwen2", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    vision = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 16, "patch_size": 8}  # fmt: skip
    return LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_index=82))


def t5() -> Any:
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4))


def disturbed(model: Any) -> Any:
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def adapter_of(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Tensors of an adapter, by their keys without its name."""
    part, found = f".{name}.", model.state_dict()
    return {f"{key}.".replace(part, ".")[:-1]: value for key, value in found.items() if part in f"{key}."}


QUICK = ("lime lora", "lora", "lime any lora", "mocle")
CASES = [
    pytest.param(name, scope, marks=() if name in QUICK and scope == "both" else pytest.mark.slow)
    for name, type_ in TYPES.items()
    if type_.options["peft"] != "prompt_tuning"
    for scope in ("language_model", "vision_tower", "both")
]


@pytest.mark.parametrize(("name", "scope"), CASES)
def test_all_linear_is_saved_as_asked_and_loads_everywhere(name: str, scope: str, tmp_path: Path) -> None:
    options = {**TYPES[name].options, "scope": scope, "target_modules": "all-linear"}
    model = disturbed(lime.apply(llava(), **options)[0])
    model.save_pretrained(tmp_path)
    plain = name in ("lora", "dora")  # of the library's own, which the layers were named to
    saved = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert saved == "all-linear" or plain
    expected = adapter_of(model, "default")
    loaded, _ = lime.load(llava(), tmp_path)
    by_peft = PeftModel.from_pretrained(llava(), tmp_path)
    by_peft.load_adapter(str(tmp_path), adapter_name="again")
    by_peft.add_adapter("added", copy.deepcopy(model.peft_config["default"]))
    for other, adapter in ((loaded, "default"), (by_peft, "default"), (by_peft, "again"), (by_peft, "added")):
        found = adapter_of(other, adapter)
        assert found.keys() == expected.keys()
        assert adapter == "added" or all(torch.equal(found[key], expected[key]) for key in expected)
    if name not in ("lime any lora", "dora"):  # transformers' loader knows neither, and loses magnitudes of the latter
        by_transformers = llava()
        by_transformers.load_adapter(str(tmp_path))
        found = {f"base_model.model.{key}": value for key, value in adapter_of(by_transformers, "default").items()}
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert found.keys() == expected.keys()


@pytest.mark.parametrize("build", [t5, lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))])
def test_all_linear_on_other_architectures(build: Any, tmp_path: Path) -> None:
    model = disturbed(lime.apply(build(), target_modules="all-linear")[0])
    model.save_pretrained(tmp_path)
    loaded, _ = lime.load(build(), tmp_path)
    expected = adapter_of(model, "default")
    assert expected
    assert all(torch.equal(value, expected[key]) for key, value in adapter_of(loaded, "default").items())


def test_a_long_list_of_targets_is_saved_as_given(tmp_path: Path) -> None:
    """peft shortens lists of 20 names and more."""
    base = small.build("llava_onevision", layers=6)
    names = [name for name, _ in base.named_modules() if name.endswith(("q_proj", "k_proj", "v_proj", "o_proj"))]
    names = sorted(name for name in names if "language_model" in name)
    assert len(names) == 24
    model, _ = lime.apply(base, target_modules=names)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == names


@pytest.mark.parametrize("options", [{}, {"peft": "prompt_tuning"}, {"peft": "any"}, {"enabled": False}], ids=str)
def test_adapters_saved_with_embeddings_load(options: dict[str, Any], tmp_path: Path) -> None:
    def resized(count: int) -> Any:
        base = small.build("llava_onevision")
        base.resize_token_embeddings(count)
        return base

    model = disturbed(lime.apply(resized(100), **options)[0])
    inputs = small.batch("llava_onevision", [small.row("llava_onevision", 7, 1)])
    with torch.no_grad():
        model.get_input_embeddings().weight[96:] += 1
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    loaded, _ = lime.load(resized(100), tmp_path)
    assert torch.equal(small.logits(loaded, inputs)[0], small.logits(model, inputs)[0])
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)
    if options.get("enabled", True):
        for load in (lime.load, PeftModel.from_pretrained):
            with pytest.raises(ValueError, match=r"shape \(100, 32\), .* call resize_token_embeddings\(100\)"):
                load(resized(96), tmp_path)  # type: ignore[operator]


def test_status_names_the_type_and_counts_each_layer_once() -> None:
    for options in ({}, {"peft": "any", "base": "lora"}, {"peft": "any", "base": "ia3"}, {"peft": "mola"}):
        model, report = lime.apply(small.build("llava_onevision"), **options)  # type: ignore[arg-type]
        status = model.get_model_status()
        assert status.peft_types == {"default": "LIME"}
        assert status.num_adapter_layers == report.layers == 8
        assert status.trainable_params == report.trainable
        assert status.enabled is True
        assert status.active_adapters == ["default"]
        assert {each.name for each in model.get_layer_status()} == {f"model.{row.module}" for row in report.rows}
        names = [name for name, _ in model.base_model.named_parameters()]
        assert len(names) == len(list(model.base_model.parameters())) == len(list(model.parameters()))


def test_a_compiled_model_takes_an_adapter_from_a_state_dict() -> None:
    from peft import get_peft_model_state_dict

    config = lime.LimeConfig(target_modules="all-linear")
    state = get_peft_model_state_dict(inject_adapter_in_model(config, small.build("llava_onevision")))
    compiled = torch.compile(small.build("llava_onevision"))
    inject_adapter_in_model(config, compiled, state_dict=state)  # type: ignore[arg-type]
    assert len(small.lime_layers(compiled)) == 14  # type: ignore[arg-type]


@pytest.mark.parametrize("base", ["poly", "trainable_tokens", "prefix_tuning", "vblora"])
def test_types_that_cannot_be_wrapped_are_refused_at_once(base: str) -> None:
    model = small.build("llava_onevision")
    before = {name for name, _ in model.named_modules()}
    with pytest.raises(ValueError, match=rf"base: '{base}' "):
        lime.apply(model, peft="any", base=base)
    assert {name for name, _ in model.named_modules()} == before
