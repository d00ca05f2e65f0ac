"""What the peft library asks of every adapter, asked of every type: its life in a model, and what is refused and why
(the table in docs/method.md)."""

from __future__ import annotations

import copy
import functools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

import lime
from tests.conformance.test_battery import disturb
from tests.conformance.types import TYPES
from tests.tuner import small_models as small

FAMILY = "llava_onevision"
LIBRARY = ("lora", "dora")  # alone these two are the library's own
LAYERED = [name for name, type_ in TYPES.items() if type_.options["peft"] != "prompt_tuning"]
every_type = pytest.mark.parametrize("name", TYPES)
every_layer = pytest.mark.parametrize("name", LAYERED)


@functools.cache
def frozen() -> Any:
    """The base of this file's models alone: a library's hooks on a model that others ran cannot be pickled."""
    return small.build(FAMILY).requires_grad_(False)


def fresh_base() -> Any:
    return copy.deepcopy(frozen())


def apply(name: str, seed: int, **options: Any) -> tuple[Any, Any]:
    """A fresh adapter of a type on the base model, and the report."""
    base = fresh_base()
    torch.manual_seed(seed)
    model, report = lime.apply(base, **{**TYPES[name].options, "scope": "language_model"}, **options)
    lime.tuner.calibrate(model, [rows()])
    return model, report


@functools.cache
def adapted(name: str) -> tuple[Any, Any]:
    """A model with an adapter that has an effect, and the report; tests leave both as they are."""
    model, report = apply(name, seed=1)
    disturb(model)
    return model.eval(), report


def rows(seed: int = 1) -> dict[str, Tensor]:
    return small.batch(FAMILY, [small.row(FAMILY, 9, seed), small.row(FAMILY, 6, seed + 1)])


def out(model: Any, inputs: dict[str, Tensor] | None = None) -> Tensor:
    inputs = rows() if inputs is None else inputs
    return torch.cat(small.logits(model, inputs))


# -- life ------------------------------------------------------------------------------------------------------


@every_type
def test_load_under_another_name_switch_and_delete(name: str, tmp_path: Path) -> None:
    model, _ = adapted(name)
    expected, start = out(model), out(fresh_base())
    model.save_pretrained(tmp_path)
    other, _ = apply(name, seed=4, adapter_name="first")
    first = out(other.eval())
    other.load_adapter(str(tmp_path), adapter_name="second")
    assert torch.equal(out(other.eval()), first), "loading does not switch"
    other.set_adapter("second")
    assert torch.equal(out(other.eval()), expected)
    with other.disable_adapter():
        assert torch.equal(out(other), start)
    other.delete_adapter("first")
    assert list(other.peft_config) == ["second"]
    assert not any(".first" in key for key in other.state_dict())
    assert torch.equal(out(other.eval()), expected)
    with pytest.raises(ValueError, match="first"):
        other.delete_adapter("first")


@every_type
def test_two_adapters_act_together_and_apart(name: str) -> None:
    model = copy.deepcopy(adapted(name)[0])
    expected = out(model)
    torch.manual_seed(4)
    model.add_adapter("second", copy.deepcopy(model.peft_config["default"]))
    lime.tuner.calibrate(model, [rows()])
    model.base_model.set_adapter(["default", "second"])
    together = out(model.eval())
    if TYPES[name].starts_frozen:
        torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-5)
    model.set_adapter("default")
    assert torch.equal(out(model.eval()), expected)


@every_type
def test_a_model_on_the_meta_device_first(name: str, tmp_path: Path) -> None:
    model, _ = adapted(name)
    model.save_pretrained(tmp_path)
    lean = PeftModel.from_pretrained(fresh_base(), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(out(lean.eval()), out(model))
    assert not any(p.is_meta for p in lean.parameters())


@every_type
def test_state_dict_there_and_back(name: str) -> None:
    model, _ = adapted(name)
    state = get_peft_model_state_dict(model)
    assert state
    assert not any("default" in key for key in state)
    other, _ = apply(name, seed=6)
    result = set_peft_model_state_dict(other, state)
    assert not result.unexpected_keys
    torch.testing.assert_close(out(other.eval()), out(model))


@every_type
def test_status_and_counts(name: str) -> None:
    model, report = adapted(name)
    status = model.get_model_status()
    assert status.peft_types == {"default": "LORA" if name in LIBRARY else "LIME"}
    assert status.num_adapter_layers == report.layers
    assert (status.enabled, status.active_adapters, status.available_adapters) == (True, ["default"], ["default"])
    assert status.merged_adapters == []
    assert status.trainable_params == report.trainable == model.get_nb_trainable_parameters()[0]


@every_type
def test_inference_mode_freezes(name: str) -> None:
    model = copy.deepcopy(adapted(name)[0])
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    model.set_adapter("default", inference_mode=True)
    assert not any(p.requires_grad for p in model.parameters())
    model.set_adapter("default")
    assert {key for key, p in model.named_parameters() if p.requires_grad} == trained


@every_type
def test_copies_and_pickles(name: str) -> None:
    model, _ = adapted(name)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(out(other), out(model))


@every_type
def test_unload_gives_the_base_back(name: str) -> None:
    model = copy.deepcopy(adapted(name)[0])
    base = model.unload()
    assert torch.equal(out(base), out(fresh_base()))
    assert {key for key, _ in base.named_parameters()} == {key for key, _ in frozen().named_parameters()}


@every_type
def test_merging(name: str) -> None:
    """The update is a fixed matrix, or it is refused."""
    model = copy.deepcopy(adapted(name)[0])
    expected = out(model)
    if TYPES[name].routed or name == "prompt_tuning":
        with pytest.raises(NotImplementedError, match=r"depends on the input|a prompt cannot be merged"):
            model.merge_and_unload()
        assert torch.equal(out(model), expected)
    else:
        torch.testing.assert_close(out(model.merge_and_unload()), expected, atol=1e-4, rtol=1e-4)


@every_layer
def test_a_module_trained_in_full_beside_it(name: str, tmp_path: Path) -> None:
    model, report = apply(name, seed=1, modules_to_save=["lm_head"])
    assert report.saved_modules > 0
    disturb(model)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(fresh_base(), tmp_path)
    assert torch.equal(out(again.eval()), out(model.eval()))


# -- what is refused ---------------------------------------------------------------------------------------------


def test_what_no_type_of_lime_can_is_refused_by_name() -> None:
    model, _ = adapted("lime lora")
    with pytest.raises(AttributeError, match="add_weighted_adapter"):
        model.add_weighted_adapter(["default"], [1.0], "sum")
    with pytest.raises(NotImplementedError, match="adapter_names: the rows of a batch"):
        model(**rows(), adapter_names=["default", "__base__"])
    wrapped, _ = lime.apply(fresh_base(), peft="any", base="lora")
    config = wrapped.peft_config["default"]
    with pytest.raises(ValueError, match="transformers cannot load or add an adapter over another type"):
        fresh_base().add_adapter(config)
    with pytest.raises(ValueError, match="'embed_tokens' matches no linear layer"):
        get_peft_model(fresh_base(), lime.LimeConfig(target_modules=["embed_tokens"]))
