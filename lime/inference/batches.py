"""Rows answered batch by batch, in batches of rows of like length, by all processes together.

Rows come through the collator that training uses. One that it leaves out (damaged media, too long, where so configured)
has the answer None; how many there were is logged. Several processes divide the batches among them and all return every
answer; batches do not depend on their number, so neither do the answers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypedDict, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lime.data.rows import Row
from lime.distributed import processes
from lime.inference.journal import Journal
from lime.system import interrupts

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class Collator(Protocol):
    """What inference needs of `lime.data.collate.Collator`."""

    processor: Any
    end_token_id: int

    def prompt_length(self, row: Row) -> int: ...

    def prompt_batch(self, rows: Sequence[Row]) -> dict[str, Any]: ...

    def continuation_batch(self, pairs: Sequence[tuple[Row, str]]) -> dict[str, Any]: ...


class Options(TypedDict, total=False):
    """How rows are answered, whatever is asked of them.

    num_workers: processes that read the rows. progress: called after each batch with the number of rows that are done
    since the last call. journal: keeps what was answered; what it holds is not asked again.
    """

    num_workers: int
    progress: Callable[[int], None] | None
    journal: Journal | None


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


def answer_batches(
    model: nn.Module,
    collator: Collator,
    rows: Sequence[Row],
    batches: list[list[Row]],
    answer: Callable[[Sequence[Row], dict[str, Tensor]], list[Answer]],
    verb: str,
    *,
    num_workers: int = 0,
    progress: Callable[[int], None] | None = None,
    journal: Journal | None = None,
) -> list[Answer | None]:
    """`answer` of every batch of `rows`, in the order of the rows; without gradients, the model in evaluation mode."""
    ids = [row.id for row in rows]
    if len(set(ids)) != len(ids):
        raise ValueError("row ids are not unique: results could not be told apart")
    if not ids:
        return []
    known = journal.answers if journal is not None else {}
    results: dict[str, Answer | None] = {row: known[row] for row in ids if row in known}
    left = [batch for batch in batches if any(row.id not in known for row in batch)]
    mine = left[processes.rank() :: processes.world_size()]
    count = sum(len(batch) for batch in left)
    if progress is not None:
        progress(len(ids) - count)
    device = next(model.parameters()).device
    loader = _loader(collator, mine, num_workers)
    start = time.perf_counter()
    with _evaluating(model), torch.no_grad():
        for requested, batch in zip(mine, loader, strict=True):
            answers: dict[str, Answer | None] = {row.id: None for row in requested}
            if kept := list(batch["rows"]):
                inputs = {k: v.to(device) for k, v in batch.items() if isinstance(v, Tensor) and k != "labels"}
                answers.update(zip((row.id for row in kept), answer(kept, inputs), strict=True))
            results.update(answers)
            if journal is not None:
                journal.add(answers)
            interrupts.check()
            if progress is not None:
                progress(len(requested) * processes.world_size())
    for part in processes.gather(results):
        results.update(part)
    seconds = time.perf_counter() - start
    log.info("%s %d rows in %.1f s (%.0f rows/s)", verb, count, seconds, count / seconds)
    if absent := [row for row in ids if results[row] is None]:
        log.warning("%d of %d rows have no answer: %s", len(absent), len(ids), ", ".join(absent[:5]))
    return [results[row] for row in ids]


def _loader(collator: Collator, batches: list[list[Row]], num_workers: int) -> DataLoader[Any]:
    return DataLoader(
        batches,  # type: ignore[arg-type]
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=interrupts.worker_process if num_workers else None,
        collate_fn=collator.prompt_batch,
        generator=torch.Generator(),  # leaves torch's global generator alone
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each module's own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def base_model(model: Any) -> nn.Module:
    """The transformers model inside a peft model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
