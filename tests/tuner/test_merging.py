"""Types without LiME merge into the frozen weight; with LiME no weight equals the update."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import lime
from tests.tuner import small_models as small

MERGEABLE: list[dict[str, Any]] = [
    {"peft": "lora"},
    {"peft": "lora_fa"},
    {"peft": "dora"},
    {"peft": "slicefine"},
    {"peft": "slicefine", "orientation": "rows"},
    {"peft": "slicefine", "orientation": "both"},
]
IDS = torch.tensor([[3, 4, 5, 6, 7]])


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(config).eval()


def qwen2() -> nn.Module:
    return small.build("llava_onevision")


@torch.no_grad()
def out(model: Any) -> Tensor:
    logits: Tensor = model(input_ids=IDS).logits
    return logits


def adapted(build: Any, **options: Any) -> Any:
    torch.manual_seed(1)
    return get_peft_model(build(), lime.LimeConfig(enabled=False, init_weights=False, **options)).eval()


@pytest.mark.parametrize("build", [qwen2, gpt2])
@pytest.mark.parametrize("options", MERGEABLE, ids=str)
def test_merged_weights_compute_what_the_adapter_does(build: Any, options: dict[str, Any]) -> None:
    model = adapted(build, **options)
    expected, frozen = out(model), out(build())
    assert not torch.allclose(expected, frozen, atol=1e-2)
    layer = next(module for module in model.modules() if hasattr(module, "lime_delta"))
    weight = layer.base_layer.weight.clone()
    change = layer.get_delta_weight("default")
    for safe in (False, True):
        model.merge_adapter(safe_merge=safe)
        torch.testing.assert_close(layer.base_layer.weight, weight + change)
        torch.testing.assert_close(out(model), expected, atol=1e-5, rtol=1e-5)
        assert model.get_model_status().merged_adapters == ["default"]
        model.unmerge_adapter()
        assert torch.equal(layer.base_layer.weight, weight)
        assert torch.equal(out(model), expected)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(out(model), frozen)
    merged = model.merge_and_unload()
    torch.testing.assert_close(out(merged), expected, atol=1e-5, rtol=1e-5)
    assert {name for name, _ in merged.named_modules()} == {name for name, _ in build().named_modules()}
    assert not any(module._forward_pre_hooks for module in merged.modules())


def test_one_of_two_adapters_merges() -> None:
    model = adapted(qwen2, peft="slicefine")
    model.add_adapter("routed", lime.LimeConfig(target_modules=["q_proj"], init_weights=False))
    expected = out(model)
    model.merge_adapter(["default"])
    torch.testing.assert_close(out(model), expected, atol=1e-5, rtol=1e-5)
    model.unmerge_adapter()
    model.set_adapter("routed")
    with pytest.raises(NotImplementedError, match="depends on the input"):
        model.merge_adapter()
    with pytest.raises(NotImplementedError, match="depends on the input"):
        model.merge_and_unload(adapter_names=["default", "routed"])
    assert model.get_model_status().merged_adapters == [], "nothing changes before it is refused"


def test_what_cannot_be_merged_says_why() -> None:
    prompt, _ = lime.apply(qwen2(), peft="prompt_tuning", enabled=False)
    with pytest.raises(NotImplementedError, match="a prompt cannot be merged"):
        prompt.merge_and_unload()
    mixture, _ = lime.apply(qwen2(), peft="mola")
    with pytest.raises(NotImplementedError, match="depends on the input"):
        mixture.merge_adapter()
    broken = adapted(qwen2, peft="lora_fa")
    with torch.no_grad():
        next(module for module in broken.modules() if hasattr(module, "lime_delta")).lime_delta["default"].B.fill_(
            float("inf")
        )
    before = [p.clone() for p in broken.parameters()]
    with pytest.raises(ValueError, match=r"q_proj: the weight merged with adapter 'default' is not finite"):
        broken.merge_adapter(safe_merge=True)
    assert all(torch.equal(a, b) for a, b in zip(before, broken.parameters(), strict=True))
