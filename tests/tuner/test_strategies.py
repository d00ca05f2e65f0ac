"""Every decoding strategy computes what the plain one computes, or is refused; state-space models, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from transformers import BambaConfig, BambaForCausalLM, MambaConfig, MambaForCausalLM, RwkvConfig, RwkvForCausalLM

import lime
from tests.tuner.test_running import adapted, llama

TYPES: dict[str, dict[str, Any]] = {
    "lora": {},
    "windows": {"n_gram": 3},
    "moe_lora": {"peft": "moe_lora", "n_gram": 2},
    "mocle": {"peft": "mocle"},
    "more": {"peft": "more"},
    "prompt_tuning": {"peft": "prompt_tuning", "num_virtual_tokens": 3},
}
BY_SEQUENCE = ("mocle", "more", "prompt_tuning")
types = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("windows", "mocle") else pytest.mark.slow) for name in TYPES]
)
STRATEGIES: dict[str, dict[str, Any]] = {
    "no cache": {"use_cache": False},
    "assisted": {"assistant_model": llama},
    "assisted by itself": {"assistant_model": lambda: adapted()},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "early exit": {"assistant_early_exit": 1},
    "chunked prefill": {"prefill_chunk_size": 2},
}
PROMPT = torch.tensor([[7, 8, 9, 10, 11, 12, 7, 8, 9]])


def model_of(name: str) -> Any:
    model = adapted(**TYPES[name])
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "lime_delta" in key or "lime_router" in key:
                p.mul_(2.0)
    return model


def generate(model: Any, prompt: Tensor = PROMPT, **options: Any) -> Any:
    return model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=7, do_sample=False, eos_token_id=None,
        output_logits=True, return_dict_in_generate=True, **options,
    )  # fmt: skip


@types
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_computes_the_same_or_is_refused(name: str, strategy: str) -> None:
    model = model_of(name)
    options = {key: value() if callable(value) else value for key, value in STRATEGIES[strategy].items()}
    if strategy == "chunked prefill" and name in BY_SEQUENCE:
        with pytest.raises(ValueError, match="routes once for a whole sequence, by its prompt"):
            generate(model, **options)
        model.generation_config.prefill_chunk_size = 2
        with pytest.raises(ValueError, match="prefill_chunk_size"):
            generate(model)
        with model.disable_adapter():
            generate(model)
        return
    expected, found = generate(model), generate(model, **options)
    assert torch.equal(found.sequences, expected.sequences)
    for one, other in zip(expected.logits, found.logits, strict=True):
        torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-4)


@types
def test_each_beam_has_its_own_decisions(name: str) -> None:
    model, prompt = model_of(name), torch.cat([PROMPT, PROMPT.flip(-1)])
    options = {"num_beams": 3, "num_return_sequences": 2}
    cached, uncached = generate(model, prompt, **options), generate(model, prompt, use_cache=False, **options)
    assert torch.equal(cached.sequences, uncached.sequences)
    torch.testing.assert_close(cached.sequences_scores, uncached.sequences_scores, atol=1e-4, rtol=1e-4)


@types
def test_a_run_goes_on_from_the_cache_of_another(name: str) -> None:
    model = model_of(name)
    expected = generate(model)
    first = model.generate(
        input_ids=PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=3, do_sample=False, eos_token_id=None,
        return_dict_in_generate=True,
    )  # fmt: skip
    sequences = first.sequences
    second = model.generate(
        input_ids=sequences, attention_mask=torch.ones_like(sequences), past_key_values=first.past_key_values,
        max_new_tokens=4, do_sample=False, eos_token_id=None,
    )  # fmt: skip
    assert torch.equal(second, expected.sequences)


# -- state-space models --------------------------------------------------------------------------------------


def state_space(family: str, options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    base: Any
    if family == "mamba":
        base = MambaForCausalLM(
            MambaConfig(vocab_size=64, hidden_size=32, state_size=4, num_hidden_layers=2, pad_token_id=0)
        )
        targets = ["in_proj", "x_proj", "out_proj"]
    elif family == "rwkv":
        base = RwkvForCausalLM(
            RwkvConfig(vocab_size=64, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2, pad_token_id=0)
        )
        targets = ["key", "value", "receptance", "output"]
    else:
        base = BambaForCausalLM(
            BambaConfig(
                vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8,
                mamba_n_groups=1, mamba_chunk_size=4, pad_token_id=0,
            )
        )  # fmt: skip
        targets = ["in_proj", "out_proj", "q_proj", "o_proj"]
    settings = lime.tuner.preset_settings(target_modules=targets, num_experts=2, **options)
    return get_peft_model(base, lime.LimeConfig.from_settings(settings, init_weights=False)).eval()


@pytest.mark.parametrize("name", ["lora", "windows", "mocle"])
@pytest.mark.parametrize("family", ["mamba", "rwkv", "bamba"])
def test_a_state_space_model_decodes_right_or_refuses(family: str, name: str) -> None:
    model = state_space(family, TYPES[name])
    expected = generate(model, use_cache=False)
    if name != "lora" and family != "bamba":
        with pytest.raises(ValueError, match="run with use_cache=False"):
            generate(model)
        return
    found = generate(model)
    assert torch.equal(found.sequences, expected.sequences)
    for one, other in zip(expected.logits, found.logits, strict=True):
        torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-3)
