"""MoE-LoRA: routed LoRA experts beside one that is always on."""

from __future__ import annotations

import torch
from torch import Tensor

from lime.method.deltas.mixture import MixtureDelta, spread


class MoELoRADelta(MixtureDelta):
    """`zhat = s (sum_e w_e B_e A_e x + B_s A_s x)`: E routed LoRAs of rank r and a shared one.

    Sources: LoRA experts behind a softmax router with top-k selection are MoELoRA's (arXiv 2402.12851); the
    always-on expert is that of DeepSeekMoE (arXiv 2401.06066), and is what the published parameter counts hold.
    Chosen here: the two largest weights, renormalised; the balance losses of LiME instead of MoELoRA's own, and no
    contrastive loss. The routed experts come first in A and B, the shared one last.

    Trains `(E + 1) r (d_in + d_out)` parameters, and its router `E d_in`.
    """

    @staticmethod
    def widths(num_experts: int, r: int) -> tuple[int, int]:
        return (num_experts + 1) * r, (num_experts + 1) * r

    def mix(self, u_BTP: Tensor, w_BTE: Tensor) -> Tensor:
        always_BT1 = torch.ones_like(w_BTE[..., :1])
        return u_BTP * spread(torch.cat([w_BTE, always_BT1], -1), self.r)
