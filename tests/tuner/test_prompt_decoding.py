"""Prompt tuning in every way of decoding: greedy and beam search, with a key-value cache and without."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from lime.inference.likelihood import score_batch
from tests.tuner import small_models as small
from tests.tuner.test_prompt import batch, families, modulated, prompted, rows_of

NEW = 5


def decode(model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> Any:
    return model.generate(
        **inputs, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=small.PAD,
        suppress_tokens=list(range(small.WORDS, small.VOCABULARY)),
        return_dict_in_generate=True, output_logits=True, **options,
    )  # fmt: skip


@families
@modulated
@pytest.mark.parametrize("beams", [1, 3])
def test_cached_equals_uncached(family: str, enabled: bool, beams: int) -> None:
    """Left padding, images and videos; with LiME the routing is that of the prompt in every step."""
    model = prompted(family, enabled)
    inputs = batch(family, rows_of(family), "left")
    cached = decode(model, inputs, num_beams=beams)
    uncached = decode(model, inputs, num_beams=beams, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    for a, b in zip(cached.logits, uncached.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@families
@modulated
def test_the_prompt_has_an_effect_on_every_step(family: str, enabled: bool) -> None:
    model = prompted(family, enabled)
    inputs = batch(family, rows_of(family), "left")
    for options in ({}, {"use_cache": False}, {"num_beams": 2}):
        with_prompt = decode(model, inputs, **options)
        with model.disable_adapter():
            without = decode(model, inputs, **options)
        frozen = decode(small.build(family), inputs, **options)
        assert torch.equal(without.sequences, frozen.sequences)
        assert all((a - b).abs().max() > 1e-3 for a, b in zip(with_prompt.logits, without.logits, strict=True))


@families
def test_decoding_equals_one_full_pass(family: str) -> None:
    """Without LiME; with it the full pass takes the mean over the answer as well."""
    model = prompted(family, enabled=False)
    rows = rows_of(family)
    inputs = batch(family, rows, "left")
    out = decode(model, inputs)
    steps = torch.stack(out.logits, 1)
    for i, (row, tokens) in enumerate(zip(rows, out.sequences[:, inputs["input_ids"].shape[1] :], strict=True)):
        (full,) = small.logits(model, batch(family, [{**row, "ids": torch.cat([row["ids"], tokens])}]))
        torch.testing.assert_close(steps[i], full[len(row["ids"]) - 1 : -1], atol=1e-5, rtol=1e-5)


@families
@modulated
def test_rows_decode_as_they_do_alone(family: str, enabled: bool) -> None:
    model = prompted(family, enabled)
    rows = rows_of(family)
    together = decode(model, batch(family, rows, "left"))
    for i, row in enumerate(rows):
        alone = decode(model, batch(family, [row]))
        assert torch.equal(alone.sequences[0, -NEW:], together.sequences[i, -NEW:])


@families
def test_a_cache_counts_the_user_s_tokens(family: str) -> None:
    """Chunks, cropping, and a mask of the user's tokens alone; or no mask at all."""
    model = prompted(family, enabled=False)
    one = small.row(family, 12, 1)
    (full,) = small.logits(model, batch(family, [one]))
    cache = DynamicCache(config=model.get_base_model().model.language_model.config)
    ids, out = one["ids"][None], []
    with torch.no_grad():
        for start, end in ((0, 5), (5, 6), (6, 9)):
            mask = torch.ones(1, end, dtype=torch.long) if start != 5 else None
            out.append(model(input_ids=ids[:, start:end], attention_mask=mask, past_key_values=cache).logits[0])
            assert cache.get_seq_length() == end
        with pytest.raises(ValueError, match="cannot remove 10 of 9 tokens"):
            cache.crop(-10)
        cache.crop(-2)
        assert cache.get_seq_length() == 7
        mask = torch.ones(1, 12, dtype=torch.long)
        out[-1] = out[-1][:1]
        out.append(model(input_ids=ids[:, 7:], attention_mask=mask, past_key_values=cache).logits[0])
    torch.testing.assert_close(torch.cat(out), full, atol=1e-5, rtol=1e-5)


@families
def test_generation_continues_from_its_own_cache(family: str) -> None:
    model = prompted(family, enabled=False)
    inputs = small.batch(family, [small.row(family, 7, 2)])
    first = decode(model, inputs)
    ids = torch.cat([first.sequences, torch.tensor([[3, 4]])], 1)
    again = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family == "qwen2_vl":
        again["mm_token_type_ids"] = torch.zeros_like(ids)
    continued = decode(model, again, past_key_values=copy.deepcopy(first.past_key_values))
    whole = decode(model, again)
    assert torch.equal(continued.sequences, whole.sequences)
    torch.testing.assert_close(continued.logits[0], whole.logits[0], atol=1e-5, rtol=1e-5)


@families
def test_likelihoods_by_a_repeated_cache_equal_full_passes(family: str) -> None:
    model = prompted(family, enabled=False)
    rows = [small.row(family, 6, 1, with_image=True), small.row(family, 9, 3)]
    answers = [[5, 9, 2], [7], [8, 8]]
    with torch.no_grad():
        scores = score_batch(model, small.batch(family, rows, "left"), answers, limit=4)
    for i, row in enumerate(rows):
        for j, answer in enumerate(answers):
            (full,) = small.logits(
                model, small.batch(family, [{**row, "ids": torch.cat([row["ids"], torch.tensor(answer)])}])
            )
            log = full[len(row["ids"]) - 1 : -1].log_softmax(-1)
            expected = log[range(len(answer)), answer].sum()
            torch.testing.assert_close(scores[i, j], expected, atol=1e-5, rtol=1e-5)


@families
def test_a_cache_of_another_prompt_is_refused(family: str) -> None:
    model = prompted(family)
    inputs = small.batch(family, [small.row(family, 8, 1)])
    mask = torch.ones(1, 9, dtype=torch.long)
    step = {"input_ids": torch.tensor([[3]]), "attention_mask": mask}
    with torch.no_grad():
        with model.disable_adapter():
            without = model(**inputs, use_cache=True).past_key_values
        with_prompt = model(**inputs, use_cache=True).past_key_values
        with pytest.raises(RuntimeError, match="filled with no prompt, now the prompt of default is active"):
            model(**step, past_key_values=without)
        with model.disable_adapter(), pytest.raises(RuntimeError, match="the prompt of default, now no prompt"):
            model(**step, past_key_values=with_prompt)
        assert model(**step, past_key_values=with_prompt).logits.shape[1] == 1, "a refusal leaves the cache alone"


def test_what_cannot_hold_a_prompt_is_refused() -> None:
    model = prompted("llava_onevision")
    inputs = small.batch("llava_onevision", [small.row("llava_onevision", 8, 1)])
    with pytest.raises(ValueError, match="needs a dynamic key-value cache with full attention, got Static"):
        decode(model, inputs, cache_implementation="static", disable_compile=True)
    with pytest.raises(ValueError, match=r"an attention mask of shape \(batch, tokens\), got shape \(1, 1, 8, 8\)"):
        model(input_ids=inputs["input_ids"], attention_mask=torch.ones(1, 1, 8, 8))
    with pytest.raises(ValueError, match="the attention mask covers 7 tokens, expected 8"):
        model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"][:, :7])
    assert model(**inputs).logits.shape[1] == 8
