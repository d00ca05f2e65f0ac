"""HydraLoRA (arXiv 2404.19245): one down-projection, several up-projections."""

from __future__ import annotations

from torch import Tensor

from lime.method.deltas.mixture import MixtureDelta, outer


class HydraLoRADelta(MixtureDelta):
    """`zhat = s sum_e w_e B_e A x`: one A for all, E routed Bs (its equation of the asymmetric structure).

    As in the source every expert takes part, weighted by the softmax of a learned router of each token. Chosen here:
    the number of experts is given; the source finds it by clustering the training data.

    Trains `r d_in + E r d_out` parameters, and its router `E d_in`.
    """

    @staticmethod
    def widths(num_experts: int, r: int) -> tuple[int, int]:
        return r, num_experts * r

    def mix(self, u_BTP: Tensor, w_BTE: Tensor) -> Tensor:
        return outer(w_BTE, u_BTP)
