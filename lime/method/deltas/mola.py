"""MoLA (arXiv 2402.08562): routed LoRA experts, whose number may vary with depth."""

from __future__ import annotations

from torch import Tensor

from lime.method.deltas.mixture import MixtureDelta, spread

INVERTED_TRIANGLE = (0.4, 0.8, 1.2, 1.6)
"""Experts of each quarter of the depth as multiples of their mean: 2, 4, 6, 8 at a mean of 5."""


class MoLADelta(MixtureDelta):
    """`zhat = s sum_e w_e B_e A_e x` over the two largest softmax weights of a token, renormalised.

    The number of experts of a layer is E everywhere, or grows with depth (`experts_of_block`), as the source
    recommends (MoLA-inverted-triangle). The published count holds for both where four divides the number of blocks.
    Chosen here: A Kaiming-uniform; the balance losses of LiME, where the source has that of Switch.

    Trains `E r (d_in + d_out)` parameters, and its router `E d_in`.
    """

    @staticmethod
    def widths(num_experts: int, r: int) -> tuple[int, int]:
        return num_experts * r, num_experts * r

    def mix(self, u_BTP: Tensor, w_BTE: Tensor) -> Tensor:
        return u_BTP * spread(w_BTE, self.r)


def experts_of_block(mean: int, block: int, blocks: int) -> int:
    """Number of experts in a block's layers under the inverted triangle, at least 1: 0.4, 0.8, 1.2 and 1.6 times the
    mean in the four quarters of the depth, rounded, which keeps the mean over the quarters from a mean of 2 on.

    Args:
        block: index of the block, from 0 at the input.
        blocks: number of blocks.
    """
    return max(1, round(mean * INVERTED_TRIANGLE[4 * block // blocks]))
