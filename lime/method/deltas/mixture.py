"""Mixtures of PEFT experts with a learned router: the baselines that LiME is compared with.

Each is one low-rank product per layer, whatever its number of experts: no loop over experts, and nothing of shape
(tokens, d_out) for any one of them.

Shapes: B batch, T tokens, I input width, O output width, E experts, r rank of one expert, P rows of the stacked
down-projections, K columns of the stacked up-projections. Leading dimensions may be any; `BT` stands for them.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lime.method.deltas.base import Delta


class MixtureDelta(Delta):
    """`zhat = s mix(A x, w) B^T` with `s = lora_alpha / r`, and `w` the routing weights after selection, (B, T, E).

    A (P, I) stacks the experts' down-projections, B (O, K) their up-projections; `mix` spreads `A x` over the columns
    of B and weights it. A is Kaiming-uniform, B zero, so that a fresh adapter changes nothing.

    The other arguments are as in `Delta`.

    Args:
        num_experts: E.
        r: rank of one expert.
        lora_alpha: numerator of the scale.
    """

    ups = ("B",)
    straight_through: ClassVar[bool] = False
    """The selected weights act, and the probabilities before selection take their gradient."""
    sides: ClassVar[int] = 1
    """Number of equal parts of the E gates, each with its own softmax."""

    def __init__(
        self,
        base: nn.Linear,
        *,
        num_experts: int,
        r: int,
        lora_alpha: float,
        dropout: float = 0.0,
        dtype: torch.dtype = torch.float32,
        zero_init: bool = True,
    ):
        super().__init__(base, dropout=dropout, dtype=dtype, zero_init=zero_init)
        self.num_experts, self.r, self.scale = num_experts, r, lora_alpha / r
        down, up = self.widths(num_experts, r)
        device = base.weight.device
        self.A = nn.Parameter(torch.empty(down, base.in_features, dtype=dtype, device=device))
        self.B = nn.Parameter(torch.zeros(base.out_features, up, dtype=dtype, device=device))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        if not zero_init:
            nn.init.normal_(self.B, std=0.5 / r)

    @staticmethod
    def widths(num_experts: int, r: int) -> tuple[int, int]:
        """`(P, K)`: rows of A and columns of B."""
        raise NotImplementedError

    @staticmethod
    def router_features(d_in: int) -> int:
        """Width of what the router reads of an input of width `d_in`."""
        return d_in

    def mix(self, u_BTP: Tensor, w_BTE: Tensor) -> Tensor:
        """Coefficients of the columns of B, (B, T, K), from `u = A x` and the weights, of one dtype."""
        raise NotImplementedError

    def basis(self) -> Tensor:
        """Rows that span the update, its scale included; shape (K, O)."""
        return self.B.t() * self.scale

    def forward(self, x_BTI: Tensor, w_BTE: Tensor) -> Tensor:  # type: ignore[override]
        """The update before any gain, (B, T, O), from an input and its routing weights."""
        return self.mix(F.linear(self.drop(x_BTI), self.A), w_BTE.to(self.A.dtype)) @ self.basis()


def spread(w_BTE: Tensor, r: int) -> Tensor:
    """The weight of each of the r columns of every expert, (B, T, E r)."""
    return w_BTE.unsqueeze(-1).expand(*w_BTE.shape, r).flatten(-2)


def outer(w_BTE: Tensor, u_BTr: Tensor) -> Tensor:
    """Row-wise Kronecker product: `w_e u_k` in column `e r + k`, (B, T, E r)."""
    return (w_BTE.unsqueeze(-1) * u_BTr.unsqueeze(-2)).flatten(-2)
