"""Log-likelihood of candidate answers: prompts are encoded once, their key-value cache repeated per answer.

Shapes: B rows, C candidate answers, N = B C sequences, T prompt tokens, L answer tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from lime.data.collate import IGNORED
from lime.data.rows import Row
from lime.inference.batches import Collator, Options, answer_batches, base_model, batches_of

SEQUENCES_PER_ROW = 4  # candidates are scored in chunks of at most this many sequences per row of the batch


def score_likelihood(
    model: nn.Module, collator: Collator, rows: Sequence[Row], allowed: Mapping[str, Sequence[str]], **options: Any
) -> list[str | None]:
    """The allowed answer of the highest log-likelihood for each row; among equal ones the first in `allowed`.

    `options` are those of `answer_likelihoods`.
    """
    scores = answer_likelihoods(model, collator, rows, allowed, **options)
    return [None if row is None else max(row, key=row.__getitem__) for row in scores]


def answer_likelihoods(
    model: nn.Module,
    collator: Collator,
    rows: Sequence[Row],
    allowed: Mapping[str, Sequence[str]],
    *,
    batch_size: int = 64,
    normalisation: str = "mean",
    **options: Unpack[Options],
) -> list[dict[str, float] | None]:
    """Log-likelihood of every allowed answer of a row's split, given the prompt: {answer: log p} per row.

        log p(a | prompt) = sum_l log p(a_l | prompt, a_<l),    a = answer tokens and the end token

    in nats; `normalisation` "mean" divides it by the number of tokens, "sum" does not. The prompt, images and videos
    included, is encoded once per row; its key-value cache is repeated for the answers. A model whose tokens depend on
    later ones (LiME with window anchor `last`) is scored as it decodes, not as in one full pass.

    Raises ValueError for a row whose split has no allowed answers, or an unknown normalisation.
    """
    if normalisation not in ("mean", "sum"):
        raise ValueError(f"normalisation: expected mean or sum, got {normalisation!r}")
    lacking = sorted({row.split for row in rows if not allowed.get(row.split)})
    if lacking:
        raise ValueError(
            f"no allowed answers for {', '.join(lacking)}: likelihood needs a closed set; generate instead"
        )
    choices = {split: tuple(dict.fromkeys(answers)) for split, answers in allowed.items()}
    tokens = AnswerTokens(collator)

    def score(kept: Sequence[Row], inputs: dict[str, Tensor]) -> list[dict[str, float]]:
        answers = choices[kept[0].split]
        table = tokens.of(answers, kept, inputs)
        scores_BC = score_batch(model, inputs, table, limit=SEQUENCES_PER_ROW * batch_size)
        if normalisation == "mean":
            scores_BC = scores_BC / torch.tensor([len(ids) for ids in table])
        return [dict(zip(answers, row, strict=True)) for row in scores_BC.tolist()]

    batches = batches_of(collator, rows, batch_size, lambda row: (row.source_type, *choices[row.split]))
    return answer_batches(model, collator, rows, batches, score, "scored", **options)


class AnswerTokens:
    """Token ids of answers, end token included, as the collator writes them after a prompt."""

    def __init__(self, collator: Collator):
        self.collator = collator
        self.known: dict[str, list[int]] = {}

    def of(self, answers: Sequence[str], rows: Sequence[Row], inputs: dict[str, Tensor]) -> list[list[int]]:
        """Ids of `answers`; those not met before are read off a batch made for the shortest of `rows`."""
        new = [answer for answer in answers if answer not in self.known]
        if new:
            mask_BT = inputs["attention_mask"].bool()
            shortest = int(mask_BT.sum(-1).argmin())
            prompt = inputs["input_ids"][shortest][mask_BT[shortest]].cpu()
            batch = self.collator.continuation_batch([(rows[shortest], answer) for answer in new])
            if len(batch["rows"]) != len(new):
                raise ValueError(
                    f"row {rows[shortest].id}: its prompt fits, with an answer it does not; raise data.max_length"
                )
            for index, answer in enumerate(new):
                labelled = batch["labels"][index] != IGNORED
                start = int(labelled.int().argmax())
                real = batch["attention_mask"][index, :start].bool()
                if not torch.equal(batch["input_ids"][index, :start][real], prompt):
                    raise RuntimeError(
                        f"row {rows[shortest].id}: the prompt with the answer {answer!r} begins otherwise "
                        "than the prompt alone; the collator's prompt_batch and continuation_batch disagree"
                    )
                self.known[answer] = batch["labels"][index][labelled].tolist()
        return [self.known[answer] for answer in answers]


def score_batch(model: nn.Module, inputs: dict[str, Tensor], answers: Sequence[Sequence[int]], *, limit: int) -> Tensor:
    """Summed log-likelihoods (B, C), on the CPU, of `answers` (token ids) after the left-padded prompts of `inputs`.

    limit: most sequences in one forward pass over answers.
    """
    mask_BT = inputs["attention_mask"]
    rows = mask_BT.shape[0]
    positions = _prompt_positions(model, inputs)
    output = model(**inputs, position_ids=positions, use_cache=True, logits_to_keep=1)
    first_BV = output.logits[:, -1].float().log_softmax(-1)
    last = positions.masked_fill(mask_BT == 0, -1).amax(-1)  # (B,) or (3, B)
    next_B = (last.amax(0) if positions.dim() == 3 else last) + 1

    scores_BC = first_BV[:, [ids[0] for ids in answers]].cpu()
    size = max(1, limit // rows)
    chunks = [range(start, min(start + size, len(answers))) for start in range(0, len(answers), size)]
    for chunk in chunks:
        cache = output.past_key_values if chunk is chunks[-1] else copy.deepcopy(output.past_key_values)
        scores_BC[:, chunk.start : chunk.stop] += _score_continuations(
            model, cache, mask_BT, next_B, [answers[index] for index in chunk], positions.dim() == 3
        ).to(scores_BC.device)
    return scores_BC


def _score_continuations(
    model: nn.Module,
    cache: Any,
    mask_BT: Tensor,
    next_B: Tensor,
    answers: Sequence[Sequence[int]],
    multimodal_positions: bool,
) -> Tensor:
    """Log-likelihood (B, C) of the tokens of each answer after its first. Consumes `cache`."""
    rows, count = mask_BT.shape[0], len(answers)
    length = max(len(ids) for ids in answers) - 1
    if length == 0:
        return mask_BT.new_zeros((rows, count), dtype=torch.float32)
    given_CL = mask_BT.new_zeros((count, length))
    target_CL = mask_BT.new_zeros((count, length))
    mask_CL = mask_BT.new_zeros((count, length))
    for index, ids in enumerate(answers):
        n = len(ids) - 1
        given_CL[index, :n] = torch.tensor(ids[:-1])
        target_CL[index, :n] = torch.tensor(ids[1:])
        mask_CL[index, :n] = 1
    cache.batch_repeat_interleave(count)
    positions = (next_B[:, None] + torch.arange(length, device=next_B.device)).repeat_interleave(count, 0)
    output = model(
        input_ids=given_CL.repeat(rows, 1),
        attention_mask=torch.cat([mask_BT.repeat_interleave(count, 0), mask_CL.repeat(rows, 1)], -1),
        position_ids=positions.expand(3, -1, -1) if multimodal_positions else positions,
        past_key_values=cache,
        use_cache=True,
    )
    logits_NLV = output.logits.float()  # N = B C, rows outermost
    target_NL = target_CL.repeat(rows, 1)
    chosen_NL = logits_NLV.gather(-1, target_NL[..., None])[..., 0] - logits_NLV.logsumexp(-1)
    return (chosen_NL * mask_CL.repeat(rows, 1)).sum(-1).view(rows, count)


def _prompt_positions(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Positions of left-padded prompts: (B, T), or (3, B, T) for multimodal rotary embeddings (Qwen2-VL).

    Given explicitly because Qwen2-VL otherwise falls back on offsets of an earlier batch when a cache is
    continued.
    """
    mask_BT = inputs["attention_mask"]
    positions_BT = (mask_BT.long().cumsum(-1) - 1).clamp_min(0)
    inner: Any = getattr(base_model(model), "model", None)
    if not hasattr(inner, "get_rope_index"):
        return positions_BT
    grids = {key: inputs[key] for key in ("image_grid_thw", "video_grid_thw") if key in inputs}
    if not grids:
        return positions_BT.expand(3, -1, -1)
    positions, _ = inner.get_rope_index(
        inputs["input_ids"], mm_token_type_ids=inputs["mm_token_type_ids"], attention_mask=mask_BT, **grids
    )
    return positions
