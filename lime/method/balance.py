"""Balance losses (Eq. 5) from sums of routing probabilities.

Sums and counts, not means, are what is collected: they add up exactly over calls, micro-batches and
processes.

Shapes: L layers, N tokens, E experts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class BalanceTerms(NamedTuple):
    """Balance losses, averaged over the adapted layers; scalars that carry gradient.

    Attributes:
        importance: `L_imp = E sum_i pbar_i^2 - 1`, 0 where the load is even, at most E - 1.
        kl: `L_KL = sum_i pbar_i log(E pbar_i)`, 0 where the load is even, at most log E (in nats).
    """

    importance: Tensor
    kl: Tensor

    def total(self, importance_weight: float, kl_weight: float) -> Tensor:
        """`alpha L_imp + beta L_KL`."""
        return importance_weight * self.importance + kl_weight * self.kl


def masked_sum(values_LNE: Tensor, real_N: Tensor | None) -> Tensor:
    """Sum over the real tokens; shape (L, E).

    Args:
        real_N: 1 at real tokens, 0 at padding, in the dtype of the values; all real when absent.
    """
    if real_N is None:
        return values_LNE.sum(-2)
    return torch.einsum("lne,n->le", values_LNE, real_N)


def importance(mean_LE: Tensor) -> Tensor:
    """`E sum_i pbar_i^2 - 1` of the mean probabilities of each layer; shape (L,)."""
    return mean_LE.shape[-1] * mean_LE.square().sum(-1) - 1


def kl_to_uniform(mean_LE: Tensor) -> Tensor:
    """`sum_i pbar_i log(E pbar_i)` of the mean probabilities of each layer, in nats; shape (L,)."""
    floor = torch.finfo(mean_LE.dtype).tiny
    return (mean_LE * (mean_LE.clamp_min(floor).log() + math.log(mean_LE.shape[-1]))).sum(-1)


def balance_losses(sum_LE: Tensor, count_L: Tensor) -> tuple[Tensor, Tensor]:
    """Importance and KL losses of each layer, from the sum of its routing probabilities and its number of
    real tokens.

    A layer without tokens has no load to balance: both its losses are 0.

    Returns:
        Two tensors of shape (L,).
    """
    seen_L = count_L > 0
    mean_LE = sum_LE / count_L.clamp_min(1).unsqueeze(-1)
    zero = sum_LE.new_zeros(())
    return torch.where(seen_L, importance(mean_LE), zero), torch.where(seen_L, kl_to_uniform(mean_LE), zero)
