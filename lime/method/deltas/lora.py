"""LoRA (arXiv 2106.09685): `zhat = s B A x` with `s = lora_alpha / r`."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lime.method.deltas.base import LowRankDelta


class LoRADelta(LowRankDelta):
    """`zhat = (lora_alpha / r) B A dropout(x)`; A (r, d_in) Kaiming-uniform, B (d_out, r) zero.

    The other arguments are as in `Delta`.

    Args:
        r: rank of the update.
        lora_alpha: numerator of the scale `s = lora_alpha / r`.

    Trains `r (d_in + d_out)` parameters.
    """

    ups = ("B",)

    def __init__(
        self,
        base: nn.Linear,
        *,
        r: int,
        lora_alpha: float,
        dropout: float = 0.0,
        dtype: torch.dtype = torch.float32,
        zero_init: bool = True,
    ):
        super().__init__(base, dropout=dropout, dtype=dtype, zero_init=zero_init)
        device = base.weight.device
        self.A = nn.Parameter(torch.empty(r, base.in_features, dtype=dtype, device=device))
        self.B = nn.Parameter(torch.zeros(base.out_features, r, dtype=dtype, device=device))
        self.scale = lora_alpha / r
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        if not zero_init:
            nn.init.normal_(self.B, std=0.5 / r)

    def rank_space(self, x_BTI: Tensor) -> Tensor:
        return F.linear(self.drop(x_BTI), self.A)

    def projection(self) -> Tensor:
        return self.A

    def basis(self) -> Tensor:
        return self.B.t() * self.scale

    def up_and_scale(self) -> tuple[Tensor, float]:
        return self.B, self.scale
