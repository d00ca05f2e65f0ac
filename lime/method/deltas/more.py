"""MoRE (arXiv 2505.22694): the ranks of one LoRA are nested experts, one of which is picked for a sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from lime.method.deltas.mixture import MixtureDelta

ROUTER_FEATURES = 128
"""Width to which the router's input is pooled; the published total of 3.59 million parameters."""


class MoREDelta(MixtureDelta):
    """`zhat = s sum_e w_e (R_e / 2r) sum_{k <= R_e} b_k (a_k . x)`: one LoRA of rank 2r, of which expert e has the
    first `R_e` ranks, `R_e = round(2 r e / E)` for e = 1 … E; in the published runs E = 2r and R_e = e.

    As in the source the router picks the most probable rank, and its gradient passes straight through that choice;
    an expert is scaled by its rank, there over the number of tasks, here over the largest rank. Chosen here: the
    source routes a learned embedding of the task, trained by a contrastive loss on task labels. No task label is an
    input here, so the sequence's mean embedding at the layer's input, averaged over neighbouring features to a width
    of 128, stands in its place; no contrastive loss, no bias.

    The mean takes in the whole sequence of a forward pass: what a token gets then depends on later ones, which is not
    causal. `generate` decides on its prompt alone, and keeps the decision while it decodes.

    Trains `2 r (d_in + d_out)` parameters, and its router `E min(128, d_in)`.
    """

    straight_through = True

    @staticmethod
    def widths(num_experts: int, r: int) -> tuple[int, int]:
        return 2 * r, 2 * r

    @staticmethod
    def router_features(d_in: int) -> int:
        return min(ROUTER_FEATURES, d_in)

    def mix(self, u_BTP: Tensor, w_BTE: Tensor) -> Tensor:
        largest, E = 2 * self.r, self.num_experts
        expert_E = torch.arange(1, E + 1, device=w_BTE.device)
        rank_E1 = ((2 * largest * expert_E + E) // (2 * E)).unsqueeze(-1)
        has_EP = rank_E1 > torch.arange(largest, device=w_BTE.device)
        return u_BTP * (w_BTE @ (has_EP * (rank_E1 / largest)).to(w_BTE.dtype))
