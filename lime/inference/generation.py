"""Answers from a model: greedy generation, and the log-likelihood of each allowed answer.

Both read rows through the collator that training uses, in batches of rows of like length, and return one
answer per row in the order of the rows. A row that the collator left out (damaged media, too long, where so
configured) has the answer None; how many there were is logged. Several processes divide the batches among them and
all return every answer; batches do not depend on their number, so neither do the answers.

Shapes: B rows, C candidate answers, T prompt tokens, L answer tokens.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import GenerationConfig

from lime.data.rows import Row
from lime.distributed import processes
from lime.evaluation.config import EvaluationConfig
from lime.evaluation.predictions import CutAnswer
from lime.inference.journal import Journal
from lime.inference.likelihood import AnswerTokens, base_model, score_batch
from lime.system import interrupts

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called after each batch with (rows done, rows in all)."""

SEQUENCES_PER_ROW = 4  # candidates are scored in chunks of at most this many sequences per row of the batch

Answer = TypeVar("Answer")


class Collator(Protocol):
    """What inference needs of `lime.data.collate.Collator`."""

    processor: Any
    end_token_id: int

    def prompt_length(self, row: Row) -> int: ...

    def prompt_batch(self, rows: Sequence[Row]) -> dict[str, Any]: ...

    def continuation_batch(self, pairs: Sequence[tuple[Row, str]]) -> dict[str, Any]: ...


def answer_rows(
    model: nn.Module,
    collator: Collator,
    rows: Sequence[Row],
    allowed: Mapping[str, Sequence[str] | None],
    config: EvaluationConfig,
    *,
    mode: str | None = None,
    num_workers: int = 0,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> list[str | None]:
    """Raw answers to `rows` by `config` (`mode` in place of `config.mode`): the one call an evaluation makes.

    In mode `likelihood`, rows of splits without a closed set of answers in `allowed` are generated, and
    counted in the log. `journal` keeps what was answered, and what it holds is not asked again. Returns one
    answer per row, None for a row the collator left out.
    """
    by_likelihood = (mode or config.mode) == "likelihood"
    closed = [index for index, row in enumerate(rows) if by_likelihood and allowed.get(row.split)]
    chosen = set(closed)
    opened = [index for index in range(len(rows)) if index not in chosen]
    if by_likelihood and opened:
        splits = sorted({rows[index].split for index in opened})
        log.info("%d rows without a closed set of answers are generated: %s", len(opened), ", ".join(splits))
    answers: list[str | None] = [None] * len(rows)
    found = score_likelihood(
        model,
        collator,
        [rows[index] for index in closed],
        {split: choices for split, choices in allowed.items() if choices},
        batch_size=config.batch_size,
        normalisation=config.likelihood_normalisation,
        num_workers=num_workers,
        progress=_part(progress, 0, len(rows)),
        journal=journal,
    )
    found += generate_answers(
        model,
        collator,
        [rows[index] for index in opened],
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens,
        num_workers=num_workers,
        progress=_part(progress, len(closed), len(rows)),
        journal=journal,
    )
    for index, answer in zip(closed + opened, found, strict=True):
        answers[index] = answer
    return answers


def generate_answers(
    model: nn.Module,
    collator: Collator,
    rows: Sequence[Row],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 50,
    num_workers: int = 0,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> list[str | None]:
    """Greedy answers with a key-value cache, left padded, each ending at the end token or after
    `max_new_tokens`.

    Sampling settings and penalties of the checkpoint's generation configuration are not used. Special tokens
    are left out of the text. An answer that had not ended then is a `CutAnswer`, and the log says how many there are.
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
    batches = batches_of(collator, rows, batch_size, lambda row: row.source_type)

    def generate(kept: Sequence[Row], inputs: dict[str, Tensor]) -> list[str]:
        tokens_BT = model.generate(**inputs, generation_config=settings)  # type: ignore[operator]
        new_BL = tokens_BT[:, inputs["input_ids"].shape[1] :]
        texts = [text.strip() for text in tokenizer.batch_decode(new_BL, skip_special_tokens=True)]
        if new_BL.shape[1] < max_new_tokens:
            return texts
        ended_B = torch.isin(new_BL.cpu(), torch.tensor(ends)).any(dim=1).tolist()
        return [text if ended else CutAnswer(text) for text, ended in zip(texts, ended_B, strict=True)]

    answers = _run(model, collator, rows, batches, generate, num_workers, progress, "generated", journal)
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
    found = [row for row, length in zip(opened, lengths, strict=True) if length > config.max_new_tokens]
    if found:
        log.warning(
            "%d of %d truths are longer than evaluation.max_new_tokens=%d and cannot be given as an answer: %s",
            len(found), len(opened), config.max_new_tokens, ", ".join(row.id for row in found[:5]),
        )  # fmt: skip
    return {row.id for row in found}


def score_likelihood(
    model: nn.Module,
    collator: Collator,
    rows: Sequence[Row],
    allowed: Mapping[str, Sequence[str]],
    *,
    batch_size: int = 64,
    normalisation: str = "mean",
    num_workers: int = 0,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> list[str | None]:
    """The allowed answer of the highest log-likelihood for each row; among equal ones the first in `allowed`.

    See `answer_likelihoods`.
    """
    scores = answer_likelihoods(
        model,
        collator,
        rows,
        allowed,
        batch_size=batch_size,
        normalisation=normalisation,
        num_workers=num_workers,
        progress=progress,
        journal=journal,
    )
    return [None if row is None else max(row, key=row.__getitem__) for row in scores]


def answer_likelihoods(
    model: nn.Module,
    collator: Collator,
    rows: Sequence[Row],
    allowed: Mapping[str, Sequence[str]],
    *,
    batch_size: int = 64,
    normalisation: str = "mean",
    num_workers: int = 0,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> list[dict[str, float] | None]:
    """Log-likelihood of every allowed answer of a row's split, given the prompt: {answer: log p} per row.

        log p(a | prompt) = sum_l log p(a_l | prompt, a_<l),    a = answer tokens and the end token

    in nats; `normalisation` "mean" divides it by the number of tokens, "sum" does not. The prompt, images and
    videos included, is encoded once per row; its key-value cache is repeated for the answers. A model whose
    tokens depend on later ones (LiME with window anchor `last`) is scored as it decodes, not as in one full
    pass.

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
    batches = batches_of(collator, rows, batch_size, lambda row: (row.source_type, *choices[row.split]))

    def score(kept: Sequence[Row], inputs: dict[str, Tensor]) -> list[dict[str, float]]:
        answers = choices[kept[0].split]
        table = tokens.of(answers, kept, inputs)
        scores_BC = score_batch(model, inputs, table, limit=SEQUENCES_PER_ROW * batch_size)
        if normalisation == "mean":
            scores_BC = scores_BC / torch.tensor([len(ids) for ids in table])
        return [dict(zip(answers, row, strict=True)) for row in scores_BC.tolist()]

    return _run(model, collator, rows, batches, score, num_workers, progress, "scored", journal)


def end_tokens(model: nn.Module, collator: Collator) -> list[int]:
    """Token ids that end an answer: that of the chat template and those of the model's generation settings."""
    configured = getattr(getattr(base_model(model), "generation_config", None), "eos_token_id", None)
    several = configured if isinstance(configured, list | tuple) else [configured]
    return sorted({int(token) for token in (collator.end_token_id, *several) if token is not None})


def batches_of(
    collator: Collator, rows: Sequence[Row], batch_size: int, group: Callable[[Row], object]
) -> list[list[Row]]:
    """Batches within groups, longest prompts first: padding stays short, and a lack of memory shows at once."""
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    groups: dict[object, list[Row]] = {}
    for row in rows:
        groups.setdefault(group(row), []).append(row)
    batches = []
    for members in groups.values():
        members.sort(key=lambda row: -collator.prompt_length(row))
        batches += [members[start : start + batch_size] for start in range(0, len(members), batch_size)]
    return batches


def _run(
    model: nn.Module,
    collator: Collator,
    rows: Sequence[Row],
    batches: list[list[Row]],
    answer: Callable[[Sequence[Row], dict[str, Tensor]], list[Answer]],
    num_workers: int,
    progress: Progress | None,
    verb: str,
    journal: Journal | None,
) -> list[Answer | None]:
    """Apply `answer` to every batch, in evaluation mode and without gradients; results in the order of
    `rows`."""
    if len({row.id for row in rows}) != len(rows):
        raise ValueError("row ids are not unique: results could not be told apart")
    if not rows:
        return []
    known = journal.answers if journal is not None else {}
    left = [batch for batch in batches if any(row.id not in known for row in batch)]
    results: dict[str, Answer | None] = {row.id: known[row.id] for row in rows if row.id in known}
    mine = left[processes.rank() :: processes.world_size()]
    device = next(model.parameters()).device
    loader: DataLoader[Any] = DataLoader(
        mine,  # type: ignore[arg-type]
        batch_size=None,
        shuffle=False,
        num_workers=num_workers,
        worker_init_fn=interrupts.worker_process if num_workers else None,
        collate_fn=collator.prompt_batch,
        generator=torch.Generator(),  # leaves torch's global generator alone
    )
    done, start = len(rows) - sum(len(batch) for batch in left), time.perf_counter()
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            for requested, batch in zip(mine, loader, strict=True):
                kept: list[Row] = list(batch["rows"])
                found: dict[str, Answer | None] = {row.id: None for row in requested}
                if kept:
                    inputs = {
                        key: value.to(device)
                        for key, value in batch.items()
                        if isinstance(value, Tensor) and key != "labels"
                    }
                    answers = answer(kept, inputs)
                    found.update(zip((row.id for row in kept), answers, strict=True))
                results.update(found)
                if journal is not None:
                    journal.add(found)
                interrupts.check()
                done += len(requested) * processes.world_size()
                if progress is not None:
                    progress(min(done, len(rows)), len(rows))
    finally:
        for module, training in modes:
            module.training = training
    for part in processes.gather(results):
        results.update(part)
    seconds = time.perf_counter() - start
    count = sum(len(batch) for batch in left)
    log.info("%s %d rows in %.1f s (%.0f rows/s)", verb, count, seconds, count / seconds)
    absent = [row.id for row in rows if results[row.id] is None]
    if absent:
        log.warning("%d of %d rows have no answer: %s", len(absent), len(rows), ", ".join(absent[:5]))
    return [results[row.id] for row in rows]


def _part(progress: Progress | None, offset: int, total: int) -> Progress | None:
    if progress is None:
        return None
    report = progress
    return lambda done, _: report(offset + done, total)
