"""Prompts among the adapters of the `peft` library: saving, loading, switching, copying, leaving."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

import lime
from lime.tuner.prompt.layer import PromptLayer
from tests.tuner import small_models as small
from tests.tuner.test_prompt import V, batch, families, modulated, prompted, rows_of


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Equal but for the order of sums, which depends on how tensors lie in memory."""
    return all(torch.allclose(one, other, atol=2e-6, rtol=0.0) for one, other in zip(a, b, strict=True))


def tensors_of(model: Any) -> dict[str, Tensor]:
    return get_peft_model_state_dict(model)


def generated(model: Any, family: str, **options: Any) -> Tensor:
    inputs = batch(family, rows_of(family), "left")
    tokens: Tensor = model.generate(
        **inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=small.PAD,
        suppress_tokens=list(range(small.WORDS, small.VOCABULARY)), **options,
    )  # fmt: skip
    return tokens


@families
@modulated
def test_save_and_load_are_exact(family: str, enabled: bool, tmp_path: Path) -> None:
    model = prompted(family, enabled)
    inputs = batch(family, rows_of(family))
    before, tokens = small.logits(model, inputs), generated(model, family, use_cache=False)
    model.save_pretrained(tmp_path)
    keys = {key.rpartition("virtual_tokens.")[2] for key in load_file(tmp_path / "adapter_model.safetensors")}
    modulators = {"lime_experts", "lime_shared", "lime_gamma"} if enabled else set()
    assert keys == {"lime_delta.initial", "lime_delta.offset"} | modulators

    again = PeftModel.from_pretrained(small.build(family), tmp_path).eval()
    lean = PeftModel.from_pretrained(small.build(family), tmp_path, low_cpu_mem_usage=True).eval()
    loaded, report = lime.load(small.build(family), tmp_path, is_trainable=True)
    plain = small.build(family)
    plain.load_adapter(str(tmp_path))
    for other in (again, lean, loaded.eval(), plain.eval()):
        assert same(small.logits(other, inputs), before)
        assert torch.equal(generated(other, family, use_cache=False), tokens)
    for other in (again, lean, loaded):
        assert all(torch.equal(value, tensors_of(model)[key]) for key, value in tensors_of(other).items())
    assert report.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_files_of_another_prompt_are_refused(tmp_path: Path) -> None:
    prompted("llava_onevision").save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    lacking = {key: value for key, value in tensors.items() if "initial" not in key}
    save_file(lacking, path)
    for load in (PeftModel.from_pretrained, lime.load):
        with pytest.raises(ValueError, match=r"lacks 1 tensors, first .*lime_delta\.initial"):
            load(small.build("llava_onevision"), tmp_path)
    save_file({**tensors, "base_model.model.extra": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"1 tensors, first base_model\.model\.extra"):
        PeftModel.from_pretrained(small.build("llava_onevision"), tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace(f'"num_virtual_tokens": {V}', '"num_virtual_tokens": 7'))
    save_file(tensors, path)
    with pytest.raises(ValueError, match=rf"has shape \({V}, 32\), expected \(7, 32\)"):
        lime.load(small.build("llava_onevision"), tmp_path)


@families
def test_disable_switch_delete_and_unload(family: str) -> None:
    inputs = batch(family, rows_of(family))
    frozen = small.logits(small.build(family), inputs)
    model = prompted(family)
    first = small.logits(model, inputs)
    with model.disable_adapter():
        assert same(small.logits(model, inputs), frozen)
    assert same(small.logits(model, inputs), first)

    torch.manual_seed(5)
    second_config = lime.LimeConfig(peft="prompt_tuning", num_virtual_tokens=3, enabled=False, init_weights=False)
    model.add_adapter("second", second_config)
    assert same(small.logits(model, inputs), first), "adding an adapter does not switch to it"
    model.set_adapter("second")
    second = small.logits(model.eval(), inputs)
    assert not same(second, first)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "base_model.model.model.language_model.virtual_tokens.lime_delta.second.offset"
    ]
    model.base_model.set_adapter(["default", "second"])
    both = small.logits(model, inputs)
    assert not same(both, first)
    assert not same(both, second)
    model.set_adapter("default")
    model.delete_adapter("second")
    assert same(small.logits(model, inputs), first)

    base = model.unload()
    assert same(small.logits(base, inputs), frozen)
    assert not any(isinstance(module, PromptLayer) for module in base.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks_always_called for module in base.modules())
    assert "generate" not in vars(base)


@families
def test_a_prompt_beside_adapted_layers(family: str) -> None:
    """Two adapters that act together: adapted layers see the virtual tokens as real ones, in windows too."""
    model = small.apply_random(small.build(family), n_gram=3)
    config = lime.LimeConfig(peft="prompt_tuning", num_virtual_tokens=4, init_weights=False)
    model.add_adapter("prompt", config)
    model.base_model.set_adapter(["default", "prompt"])
    model.eval()
    rows = rows_of(family)
    together = small.logits(model, batch(family, rows, "left"))
    for row, got in zip(rows, together, strict=True):
        torch.testing.assert_close(got, small.logits(model, batch(family, [row]))[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(generated(model, family), generated(model, family, use_cache=False))


@families
def test_copies_and_pickles_are_independent(family: str) -> None:
    model = prompted(family)
    others = (copy.deepcopy(model), pickle.loads(pickle.dumps(model)))
    inputs = batch(family, rows_of(family))
    before, tokens = small.logits(model, inputs), generated(model, family, use_cache=False)
    for other in others:
        assert same(small.logits(other, inputs), before)
        assert torch.equal(generated(other, family, use_cache=False), tokens)
        assert other.get_base_model().generate.model is other.get_base_model()
        with lime.record(other) as theirs, lime.record(model) as ours:
            small.logits(other, inputs)
        assert (len(theirs), len(ours)) == (1, 0)


def test_language_models_alone(tmp_path: Path) -> None:
    """A causal language model, and a bare one that is the root itself."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(vocab_size=50, num_key_value_heads=2, bos_token_id=0, eos_token_id=0, pad_token_id=0, **sizes)
    ids = torch.randint(1, 50, (2, 6))
    for build in (lambda: Qwen2ForCausalLM(config), lambda: Qwen2ForCausalLM(config).model):
        torch.manual_seed(3)
        model, report = lime.apply(build().eval(), peft="prompt_tuning", num_virtual_tokens=V)
        assert report.layers == 1
        with torch.no_grad():
            prompt = next(module for module in model.modules() if isinstance(module, PromptLayer))
            prompt.lime_delta["default"].offset.normal_()
            out = model.eval()(ids)[0]
            with model.disable_adapter():
                without = model(ids)[0]
        assert out.shape == without.shape
        assert not torch.allclose(out, without)
        model.save_pretrained(tmp_path)
        torch.manual_seed(3)
        again, _ = lime.load(build().eval(), tmp_path)
        with torch.no_grad():
            torch.testing.assert_close(again(ids)[0], out, atol=2e-6, rtol=0.0)
