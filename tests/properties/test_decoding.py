"""Step-by-step decoding with a cache gives what one full pass gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tuner import small_models as small

families = pytest.mark.parametrize("family", small.FAMILIES)
n_grams = pytest.mark.parametrize("n_gram", [1, 2, 3, 4])
NEW = 7


def rows_of(family: str) -> list[dict[str, Any]]:
    return [small.row(family, 6, 1, with_image=True), small.row(family, 11, 2), small.row(family, 4, 3)]


def full_pass(family: str, model: Any, rows: list[dict[str, Any]], generated: Tensor) -> list[Tensor]:
    """Logits at the generated positions, each row alone, unpadded and without a cache."""
    out = []
    for one, tokens in zip(rows, generated, strict=True):
        (all_logits,) = small.logits(model, small.batch(family, [{**one, "ids": torch.cat([one["ids"], tokens])}]))
        out.append(all_logits[len(one["ids"]) - 1 : -1])
    return out


def decode(model: Any, inputs: dict[str, Tensor], **options: Any) -> Any:
    return model.generate(
        **inputs, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=small.PAD,
        suppress_tokens=list(range(small.WORDS, small.VOCABULARY)),
        return_dict_in_generate=True, output_logits=True, **options,
    )  # fmt: skip


@families
@n_grams
def test_cached_decoding_equals_one_full_pass(family: str, n_gram: int) -> None:
    model = small.apply_random(small.build(family), n_gram=n_gram, scope="both")
    rows = rows_of(family)
    inputs = small.batch(family, rows, "left")
    out = decode(model, inputs)
    steps = torch.stack(out.logits, 1)
    expected = full_pass(family, model, rows, out.sequences[:, inputs["input_ids"].shape[1] :])
    for i in range(len(rows)):
        torch.testing.assert_close(steps[i], expected[i], atol=1e-5, rtol=1e-5)


@families
@pytest.mark.parametrize("n_gram", [1, 3])
def test_beam_search_equals_uncached(family: str, n_gram: int) -> None:
    model = small.apply_random(small.build(family), n_gram=n_gram)
    inputs = small.batch(family, rows_of(family)[1:], "left")
    cached = decode(model, inputs, num_beams=3)
    uncached = decode(model, inputs, num_beams=3, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    torch.testing.assert_close(cached.sequences_scores, uncached.sequences_scores, atol=1e-5, rtol=1e-5)


@families
def test_chunked_prefill_and_cropping(family: str) -> None:
    """A cache filled in uneven chunks, and one cropped back, give the full pass's hidden states."""
    from transformers import DynamicCache

    model = small.apply_random(small.build(family), n_gram=3)
    language = model.get_base_model().model.language_model
    ids = small.row(family, 23, 5)["ids"].unsqueeze(0)
    embeddings = language.embed_tokens(ids)
    with torch.no_grad():
        full = language(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        cache, out, start = DynamicCache(config=language.config), [], 0
        for size in (7, 1, 9, 1, 5):
            if start == 8:  # three tokens that are then taken back
                language(inputs_embeds=embeddings[:, 15:18], past_key_values=cache, use_cache=True)
                cache.crop(-3)
            mask = torch.ones(1, start + size, dtype=torch.long)
            chunk = embeddings[:, start : start + size]
            out.append(language(inputs_embeds=chunk, attention_mask=mask, past_key_values=cache, use_cache=True)[0])
            start += size
    torch.testing.assert_close(torch.cat(out, 1), full, atol=1e-5, rtol=1e-5)


@families
def test_windows_need_the_cached_decisions(family: str) -> None:
    """A cache that was filled without the adapter is refused, not misread."""
    model = small.apply_random(small.build(family), n_gram=3)
    inputs = small.batch(family, [small.row(family, 8, 1)])
    with torch.no_grad():
        with model.disable_adapter():
            cache = model(**inputs, use_cache=True).past_key_values
        mask = torch.ones(1, 9, dtype=torch.long)
        with pytest.raises(RuntimeError, match="without this adapter"):
            model(input_ids=torch.tensor([[3]]), attention_mask=mask, past_key_values=cache)


@families
def test_a_cache_made_by_the_model_holds_the_decisions(family: str) -> None:
    model = small.apply_random(small.build(family), n_gram=4)
    one = small.row(family, 9, 1)
    (full,) = small.logits(model, small.batch(family, [one]))
    inputs = small.batch(family, [{**one, "ids": one["ids"][:6]}])
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        mask = torch.ones(1, 9, dtype=torch.long)
        rest = model(input_ids=one["ids"][None, 6:], attention_mask=mask, past_key_values=cache).logits[0]
    torch.testing.assert_close(rest, full[6:], atol=1e-5, rtol=1e-5)


def test_static_cache_is_refused_for_windows() -> None:
    model = small.apply_random(small.build("llava_onevision"), n_gram=3)
    inputs = small.batch("llava_onevision", [small.row("llava_onevision", 8, 1)])
    with pytest.raises(ValueError, match="static key-value cache"):
        decode(model, inputs, cache_implementation="static", disable_compile=True)
