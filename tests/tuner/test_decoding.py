"""Decoding with a cache: its own short way gives what a full pass gives, and stays away where it does not apply."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import lime
from lime.method import fused
from tests.tuner.small_models import apply_random, build, lime_layers

OPTIONS: dict[str, dict[str, Any]] = {
    "auto": {},
    "all": {"auto_topk_threshold": 0.0},
    "largest": {"auto_topk_threshold": 1.0},
    "topk": {"selection": "topk"},
    "capped": {"max_experts": 2},
    "dense": {"selection": "dense"},
    "alone": {"shared_modulator": False},
    "random features": {"feature_slice": "random", "num_experts": 6},
    "slicefine": {"peft": "slicefine"},
    "lora_fa": {"peft": "lora_fa"},
}
NOT_ITS_OWN = {
    "soft": {"soft": True},
    "windows": {"n_gram": 2},
    "learned": {"router": "learned"},
    "token": {"routing_norm": "token"},
    "dora": {"peft": "dora"},
}


def model_of(**options: Any) -> Any:
    return apply_random(build("llava_onevision", dtype=torch.float64), **options)


def rows() -> tuple[Tensor, Tensor]:
    """Two rows of eight tokens, one of them padded on the left."""
    ids = torch.randint(1, 70, (2, 8), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    return ids, mask


@torch.no_grad()
def step_by_step(model: Any, start: int = 5) -> Tensor:
    """Logits of the tokens from `start` on, each computed with a cache."""
    ids, mask = rows()
    cache = model(input_ids=ids[:, :start], attention_mask=mask[:, :start], use_cache=True).past_key_values
    logits = []
    for end in range(start + 1, ids.shape[1] + 1):
        out = model(
            input_ids=ids[:, end - 1 : end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True
        )
        logits.append(out.logits)
    return torch.cat(logits, 1)


@torch.no_grad()
def at_once(model: Any, start: int = 5) -> Tensor:
    ids, mask = rows()
    return model(input_ids=ids, attention_mask=mask).logits[:, start:]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_decoding_equals_one_full_pass(options: dict[str, Any]) -> None:
    model = model_of(**options)
    found = step_by_step(model)
    assert all(layer.decoding is not None for layer in lime_layers(model))
    torch.testing.assert_close(found, at_once(model), rtol=1e-9, atol=1e-10)
    assert all(layer.decoding is None for layer in lime_layers(model))  # an empty cache forgets


@pytest.mark.parametrize("options", NOT_ITS_OWN.values(), ids=NOT_ITS_OWN)
def test_what_it_does_not_compute_goes_the_other_way(options: dict[str, Any]) -> None:
    model = model_of(**options)
    torch.testing.assert_close(step_by_step(model), at_once(model), rtol=1e-9, atol=1e-10)
    assert all(layer.decoding is None for layer in lime_layers(model))


def test_a_changed_adapter_is_seen() -> None:
    model = model_of()
    before = step_by_step(model)
    for layer in lime_layers(model):
        layer.lime_delta["default"].B.data.mul_(2.0)  # unseen by version counters
    after = step_by_step(model)
    assert (after - before).abs().max() > 1e-6
    torch.testing.assert_close(after, at_once(model), rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_an_adapter_that_changes_within_a_generation_is_seen() -> None:
    model = model_of()
    ids, mask = rows()
    cache = model(input_ids=ids[:, :6], attention_mask=mask[:, :6], use_cache=True).past_key_values
    model(input_ids=ids[:, 6:7], attention_mask=mask[:, :7], past_key_values=cache, use_cache=True)
    for layer in lime_layers(model):
        layer.lime_experts["default"].mul_(1.5)
    inputs = {"input_ids": ids[:, 7:], "attention_mask": mask, "use_cache": False}
    cache_again = type(cache)(config=model.config.get_text_config())
    for index, kept in enumerate(cache.layers[:2]):
        cache_again.update(kept.keys.clone(), kept.values.clone(), index)
    found = model(**inputs, past_key_values=cache).logits
    with fused.use("torch"):
        expected = model(**inputs, past_key_values=cache_again).logits
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_recorded_and_switched_off_decoding() -> None:
    model = model_of()
    with lime.record(model) as recorder:
        recorded = step_by_step(model)
    assert len(recorder) > 0
    torch.testing.assert_close(recorded, step_by_step(model), rtol=1e-9, atol=1e-10)
    with model.disable_adapter():
        off = step_by_step(model)
    torch.testing.assert_close(off, step_by_step(build("llava_onevision", dtype=torch.float64).eval()))


def test_training_mode_keeps_its_noise() -> None:
    model = model_of(jitter_noise=0.5).train()
    assert not torch.equal(step_by_step(model), step_by_step(model))


@torch.no_grad()
def test_a_padded_new_token_keeps_the_frozen_output() -> None:
    model, (ids, mask) = model_of(), rows()
    mask[1, 6:] = 0
    logits = []
    for path in ("auto", "torch"):
        with fused.use(path):
            cache = model(input_ids=ids[:, :5], attention_mask=mask[:, :5], use_cache=True).past_key_values
            new = model(input_ids=ids[:, 5:], attention_mask=mask, past_key_values=cache, use_cache=True).logits
        logits.append(new)
        assert all((layer.decoding is None) == (path == "torch") for layer in lime_layers(model))
    torch.testing.assert_close(*logits, rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_the_pass_that_fills_a_given_cache_goes_this_way_too() -> None:
    model, (ids, mask) = model_of(), rows()
    cache = DynamicCache(config=model.config.get_text_config())
    found = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True).logits
    known = [layer.decoding for layer in lime_layers(model)]
    assert all(known)
    torch.testing.assert_close(found[:, 5:], at_once(model), rtol=1e-9, atol=1e-10)
    model(input_ids=ids, attention_mask=mask, past_key_values=DynamicCache(config=model.config.get_text_config()))
    assert not any(layer.decoding is before for layer, before in zip(lime_layers(model), known, strict=True))
