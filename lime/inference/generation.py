"""Answers from a model: greedy generation, or the likeliest of the allowed answers (`lime.inference.likelihood`).

Shapes: B rows, T prompt and answer tokens, L answer tokens.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Unpack

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from lime.data.rows import Row
from lime.evaluation.config import EvaluationConfig
from lime.evaluation.predictions import CutAnswer
from lime.inference.batches import Collator, Options, answer_batches, base_model, batches_of
from lime.inference.likelihood import score_likelihood

log = logging.getLogger(__name__)


def answer_rows(
    model: nn.Module,
    collator: Collator,
    rows: Sequence[Row],
    allowed: Mapping[str, Sequence[str] | None],
    config: EvaluationConfig,
    *,
    mode: str | None = None,
    **options: Unpack[Options],
) -> list[str | None]:
    """Raw answers to `rows` by `config` (`mode` in place of `config.mode`): the one call an evaluation makes.

    In mode `likelihood`, rows of splits without a closed set of answers in `allowed` are generated, and counted in the
    log. Returns one answer per row, None for a row the collator left out.
    """
    by_likelihood = (mode or config.mode) == "likelihood"
    closed = [row for row in rows if by_likelihood and allowed.get(row.split)]
    chosen = {row.id for row in closed}
    opened = [row for row in rows if row.id not in chosen]
    if by_likelihood and opened:
        splits = sorted({row.split for row in opened})
        log.info("%d rows without a closed set of answers are generated: %s", len(opened), ", ".join(splits))
    choices = {split: answers for split, answers in allowed.items() if answers}
    how = {"batch_size": config.batch_size, "normalisation": config.likelihood_normalisation}
    answers = score_likelihood(model, collator, closed, choices, **how, **options)
    answers += generate_answers(
        model, collator, opened, batch_size=config.batch_size, max_new_tokens=config.max_new_tokens, **options
    )
    by_row = dict(zip((row.id for row in closed + opened), answers, strict=True))
    return [by_row[row.id] for row in rows]


def generate_answers(
    model: nn.Module,
    collator: Collator,
    rows: Sequence[Row],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 50,
    **options: Unpack[Options],
) -> list[str | None]:
    """Greedy answers with a key-value cache, left padded, each ending at the end token or after `max_new_tokens`.

    Sampling settings and penalties of the checkpoint's generation configuration are not used. Special tokens are left
    out of the text. An answer that had not ended then is a `CutAnswer`, and the log says how many there are.
    """
    tokenizer, ends = collator.processor.tokenizer, end_tokens(model, collator)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        use_cache=True,
    )

    def generate(kept: Sequence[Row], inputs: dict[str, Tensor]) -> list[str]:
        tokens_BT = model.generate(**inputs, generation_config=settings)  # type: ignore[operator]
        new_BL = tokens_BT[:, inputs["input_ids"].shape[1] :]
        texts = [text.strip() for text in tokenizer.batch_decode(new_BL, skip_special_tokens=True)]
        if new_BL.shape[1] < max_new_tokens:
            return texts
        ended_B = torch.isin(new_BL.cpu(), torch.tensor(ends)).any(dim=1).tolist()
        return [text if ended else CutAnswer(text) for text, ended in zip(texts, ended_B, strict=True)]

    batches = batches_of(collator, rows, batch_size, lambda row: row.source_type)
    answers = answer_batches(model, collator, rows, batches, generate, "generated", **options)
    cut = Counter(row.split for row, answer in zip(rows, answers, strict=True) if isinstance(answer, CutAnswer))
    if cut:
        log.warning(
            "%d of %d generated answers had not ended at evaluation.max_new_tokens=%d and were cut: %s",
            cut.total(), len(rows), max_new_tokens, ", ".join(f"{split} {count}" for split, count in cut.items()),
        )  # fmt: skip
    return answers


def truths_too_long(
    collator: Collator, rows: Sequence[Row], allowed: Mapping[str, Sequence[str] | None], config: EvaluationConfig
) -> set[str]:
    """Ids of the rows whose truth has more tokens than `config.max_new_tokens`, so that generation cannot give it.

    Rows that are scored by likelihood have no such bound. The log says how many there are.
    """
    opened = [row for row in rows if config.mode == "generate" or not allowed.get(row.split)]
    tokenizer, texts = collator.processor.tokenizer, [row.answer.strip() for row in opened]
    lengths = [len(ids) for ids in (tokenizer(texts, add_special_tokens=False).input_ids if texts else ())]
    long = [row.id for row, length in zip(opened, lengths, strict=True) if length > config.max_new_tokens]
    if long:
        log.warning(
            "%d of %d truths are longer than evaluation.max_new_tokens=%d and cannot be given as an answer: %s",
            len(long), len(opened), config.max_new_tokens, ", ".join(long[:5]),
        )  # fmt: skip
    return set(long)


def end_tokens(model: nn.Module, collator: Collator) -> list[int]:
    """Token ids that end an answer: that of the chat template and those of the model's generation settings."""
    configured = getattr(getattr(base_model(model), "generation_config", None), "eos_token_id", None)
    several = configured if isinstance(configured, list | tuple) else [configured]
    return sorted({int(token) for token in (collator.end_token_id, *several) if token is not None})
