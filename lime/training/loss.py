"""Task loss as a sum over answer tokens, so that it can be normalised over a whole accumulation window.

Shapes: B rows, T positions, K kept positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lime.data.collate import IGNORED
from lime.distributed import processes


def answer_positions(labels_BT: Tensor) -> tuple[Tensor, int]:
    """Positions whose *next* token is part of an answer in at least one row, and how many answer tokens there are.

    Computed where the labels are (before they go to a GPU), so that a training step needs no synchronisation. Logits
    are needed at these positions only; at a vocabulary of 152k that saves most of the memory of the loss.

    Raises:
        ValueError: when no row has an answer token.
    """
    answer_BT = labels_BT[:, 1:] != IGNORED
    count = int(answer_BT.sum())
    if count == 0:
        raise ValueError("a batch without a single answer token; expected each row to have an answer")
    return answer_BT.any(dim=0).nonzero().squeeze(1), count


def answer_loss_sum(model: Any, inputs: dict[str, Tensor], labels_BT: Tensor, positions_K: Tensor) -> Tensor:
    """Sum over answer tokens of ``-log p(token | everything before it)``, in float32. Scalar."""
    logits_BKV = model(**inputs, logits_to_keep=positions_K, use_cache=False).logits.float()
    targets_BK = labels_BT[:, positions_K + 1]
    return functional.cross_entropy(
        logits_BKV.flatten(0, 1), targets_BK.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def normalise_gradients(parameters: list[torch.nn.Parameter], answer_tokens: Tensor) -> None:
    """Divide gradients of summed losses by the number of answer tokens of the window, over all processes.

    Distributed training averages gradients over processes, hence the factor ``world_size``.
    """
    if processes.world_size() > 1:
        torch.distributed.all_reduce(answer_tokens)
    factor = processes.world_size() / answer_tokens
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
