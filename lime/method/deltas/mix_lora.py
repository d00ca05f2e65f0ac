"""MixLoRA (arXiv 2402.15896, Conditional Mixture-of-LoRA): the rank-one factors of one LoRA are the experts."""

from __future__ import annotations

import torch
from torch import Tensor

from lime.method.deltas.mixture import MixtureDelta


class MixLoRADelta(MixtureDelta):
    """`zhat = s sum_k gB_k gA_k b_k (a_k . x)` over the r rank-one factors of A and B, each side by its own gates.

    The first half of the E gates belongs to A, the second to B: two routers of one kind, independent of each other
    (independent factor selection, its section 3.2). With G = E / 2 gates to a side, gate `floor(k G / r)` serves
    factor k; in the published runs E = 2 r, one gate to a factor. A gate is G times its softmax weight, so that even
    gates give LoRA itself.

    Chosen here, after the published count: the source picks r of a larger pool of factors for a whole sequence; here
    the pool is the r factors, all of which take part, and the gates are those of a token. Its further router, which
    makes the choice in B depend on that in A, is left out.

    Trains `r (d_in + d_out)` parameters, and its gates `E d_in`.
    """

    sides = 2

    @staticmethod
    def widths(num_experts: int, r: int) -> tuple[int, int]:
        return r, r

    def mix(self, u_BTP: Tensor, w_BTE: Tensor) -> Tensor:
        gates = self.num_experts // 2
        of_A_BTG, of_B_BTG = (self.num_experts * w_BTE).split(gates, -1)  # the weights of a side sum to 1/2
        gate_of_r = torch.arange(self.r, device=w_BTE.device) * gates // self.r
        return u_BTP * (of_A_BTG * of_B_BTG).index_select(-1, gate_of_r)
