"""Encoder-decoders: which tokens a layer sees, and a cache of two parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import lime
from lime.tuner.towers import find_towers

TOKENS: dict[str, Any] = {
    "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3,
}  # fmt: skip
WIDTHS: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
}  # fmt: skip


def build(family: str) -> Any:
    torch.manual_seed(0)
    model: Any
    if family == "bart":
        model = BartForConditionalGeneration(BartConfig(**TOKENS, **WIDTHS, forced_eos_token_id=None))
    elif family == "marian":
        model = MarianMTModel(MarianConfig(**TOKENS, **WIDTHS, forced_eos_token_id=None))
    elif family == "t5":
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        model = T5ForConditionalGeneration(T5Config(**TOKENS, **sizes))
    else:
        model = WhisperForConditionalGeneration(
            WhisperConfig(
                **TOKENS, **WIDTHS, num_mel_bins=8, max_source_positions=12, max_target_positions=32,
                begin_suppress_tokens=None, suppress_tokens=None,
            )
        )  # fmt: skip
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(4.0)
    return model.eval()


FAMILIES = ("bart", "t5", "marian", "whisper")
LEAVES = {"t5": ["q", "k", "v", "o", "wi", "wo"]}
OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {},
    "windows": {"n_gram": 3},
    "last": {"n_gram": 3, "window_anchor": "last"},
    "dora": {"peft": "dora"},
    "moe_lora": {"peft": "moe_lora", "n_gram": 2},
    "mocle": {"peft": "mocle"},
    "any": {"peft": "any", "n_gram": 2},
}
families = pytest.mark.parametrize(
    "family", ["bart", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[1:])]
)
every_type = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def adapted(family: str, options: dict[str, Any], init_weights: bool = False) -> Any:
    targets = LEAVES.get(family, ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"])
    settings = lime.tuner.preset_settings(target_modules=targets, num_experts=2, scope="language_model", **options)
    base = build(family)
    kinds = {tower.kind for tower in find_towers(base)}
    settings.scope = "both" if len(kinds) > 1 else next(iter(kinds))
    torch.manual_seed(1)
    model = get_peft_model(base, lime.LimeConfig.from_settings(settings, init_weights=init_weights)).eval()
    if not init_weights:
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lime_delta" in name or "lime_router" in name or "lora_B" in name:
                    p.add_(torch.randn(p.shape) * 0.2)
    return model


def source(family: str, rows: int = 2) -> dict[str, Tensor]:
    """Rows of which all but the first are padded, where the family has padding."""
    generator = torch.Generator().manual_seed(0)
    if family == "whisper":
        return {"input_features": torch.randn(rows, 8, 24, generator=generator)}
    ids = torch.randint(4, 64, (rows, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[1:, 4:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def row(inputs: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """One row without its padding."""
    if "input_features" in inputs:
        return {name: value[index : index + 1] for name, value in inputs.items()}
    length = int(inputs["attention_mask"][index].sum())
    return {name: value[index : index + 1, :length] for name, value in inputs.items()}


ANSWERS = torch.tensor([[3, 9, 8, 7, 6, 5, 4], [3, 5, 9, 33, 12, 17, 40]])
"""As many tokens as the sources have, so that their masks are easily taken for one another."""


@families
@every_type
def test_a_fresh_adapter_changes_nothing(family: str, options: dict[str, Any]) -> None:
    x = {**source(family), "decoder_input_ids": ANSWERS}
    with torch.no_grad():
        assert torch.equal(adapted(family, options, init_weights=True)(**x).logits, build(family)(**x).logits)


@families
@every_type
def test_rows_and_padding_are_independent(family: str, options: dict[str, Any]) -> None:
    model, x = adapted(family, options), source(family)
    with torch.no_grad():
        both = model(**x, decoder_input_ids=ANSWERS).logits
        for index in range(2):
            alone = model(**row(x, index), decoder_input_ids=ANSWERS[index : index + 1]).logits
            torch.testing.assert_close(both[index : index + 1], alone, atol=2e-4, rtol=1e-4)
        mask = torch.ones_like(ANSWERS)
        mask[1, 4:] = 0
        padded = model(**x, decoder_input_ids=ANSWERS, decoder_attention_mask=mask).logits
        alone = model(**row(x, 1), decoder_input_ids=ANSWERS[1:, :4]).logits
    torch.testing.assert_close(padded[1:, :4], alone, atol=2e-4, rtol=1e-4)


@families
@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "last"])
@pytest.mark.parametrize("strategy", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generation_with_a_cache_equals_without(family: str, name: str, strategy: dict[str, Any]) -> None:
    model, x = adapted(family, OPTIONS[name]), source(family)
    start = ANSWERS[:, :1]
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True,
               "output_logits": True, **strategy}  # fmt: skip
    cached = model.generate(**x, decoder_input_ids=start, **options)
    uncached = model.generate(**x, decoder_input_ids=start, use_cache=False, **options)
    for one, other in zip(cached.logits, uncached.logits, strict=True):
        torch.testing.assert_close(one, other, atol=5e-4, rtol=1e-3)
    if name != "mocle" and not strategy:  # the others are causal
        with torch.no_grad():
            whole = model(**x, decoder_input_ids=cached.sequences).logits
        found = torch.stack(cached.logits, 1)
        torch.testing.assert_close(found, whole[:, -found.shape[1] - 1 : -1], atol=5e-4, rtol=1e-3)


@families
@every_type
def test_checkpointing_changes_no_gradient(family: str, options: dict[str, Any]) -> None:
    grads = []
    for checkpointing in (False, True):
        model = adapted(family, {**options, "jitter_noise": 0.0}).double().train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        for module in model.modules():  # dropout draws other numbers
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for module in model.modules():
            for attribute in ("dropout", "layerdrop", "activation_dropout"):
                if isinstance(getattr(module, attribute, None), float) and "lime" not in type(module).__module__:
                    setattr(module, attribute, 0.0)
        with lime.record(model) as recorder:
            x = source(family)
            x = {name: value.double() if value.is_floating_point() else value for name, value in x.items()}
            loss = model(**x, labels=ANSWERS).loss
        (loss + recorder.balance().total(1.0, 1.0)).backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if "lime_" in name and p.grad is not None})
    assert grads[0]
    assert grads[0].keys() == grads[1].keys()
    for name, gradient in grads[0].items():
        torch.testing.assert_close(grads[1][name], gradient, atol=1e-9, rtol=1e-7, msg=name)


def test_a_decoder_counts_the_encoder_s_tokens() -> None:
    """Keys and values of the attention to the encoder are of its tokens: 7 and 4, not those of the decoder."""
    model = adapted("bart", {})
    with lime.record(model) as recorder:
        model(**source("bart"), decoder_input_ids=ANSWERS[:, :5])
    counts = {name: int(one.token_count) for name, one in recorder.statistics().items() if "decoder" in name}
    assert {count for name, count in counts.items() if "encoder_attn.k" in name} == {11}
    assert {count for name, count in counts.items() if "encoder_attn.q" in name} == {10}


def test_prompt_tuning_and_hidden_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="needs one language model"):
        lime.apply(build("bart"), peft="prompt_tuning")
    model = adapted("bart", {"peft": "mocle"})
    for option in ({"prompt_lookup_num_tokens": 2}, {"assistant_model": build("bart")}):
        with pytest.raises(ValueError, match="routes once for a whole sequence"):
            model.generate(**source("bart", 1), max_new_tokens=3, **option)
