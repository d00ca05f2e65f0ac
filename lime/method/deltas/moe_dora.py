"""MoE-DoRA: MoE-LoRA with a learned magnitude for each routed expert."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lime.method.deltas.moe_lora import MoELoRADelta


class MoEDoRADelta(MoELoRADelta):
    """Each routed expert is a DoRA (arXiv 2402.09353, equation 5) of its own; the shared one a plain LoRA:

        out = b0 + sum_e w_e g_e * (W0 x + s B_e A_e x) + s B_s A_s x,   g_e = m_e / ||W0 + s B_e A_e||

    elementwise over the outputs, with norms of rows, which count as constants in the backward pass (section 4.3 of the
    source), and learned magnitudes `m_e`, initially `||W0||`. With routing weights that sum to one,

        out = z + (W0 x) * sum_e w_e (g_e - 1) + s sum_e w_e g_e * (B_e A_e x) + s B_s A_s x

    so the experts differ in the two small factors alone, and no expert has a product with W0 of its own. The norms
    come for all experts at once, without any changed weight in full:

        ||W0 + s B_e A_e||^2 = ||W0||^2 + 2 s B_e . (W0 A_e^T) + s^2 B_e . (B_e A_e A_e^T)      (dot products of rows)

    No paper was found that fixes this baseline; that the shared expert has no magnitude follows the published count.
    Dropout acts on the update alone.

    The other arguments are as in `MixtureDelta`.

    Args:
        weight: frozen weight (d_out, d_in) in floating point, where `base` keeps it in another form.

    Trains `(E + 1) r (d_in + d_out) + E d_out` parameters, `magnitude` (E, d_out) among them, and its router `E d_in`.
    """

    reads_weight = True

    def __init__(self, base: nn.Linear, *, weight: Tensor | None = None, **options: Any):
        super().__init__(base, **options)
        weight_OI = (base.weight if weight is None else weight).detach()
        square_O = _row_squares(weight_OI.to(self.B.dtype))
        self.magnitude = nn.Parameter(square_O.sqrt().repeat(self.num_experts, 1))

    @torch.no_grad()
    def norms(self, weight_OI: Tensor) -> Tensor:
        """Norms of the rows of `W0 + s B_e A_e` without gradient, in the parameters' dtype, (E, O).

        At `B = 0` they are bit for bit the initial magnitudes; under autocast too.
        """
        E, r = self.num_experts, self.r
        with torch.autocast(weight_OI.device.type, enabled=False):
            weight_OI = weight_OI.to(self.B.dtype)
            A_EI, B_OEr = self.A[: E * r], self.B[:, : E * r].unflatten(-1, (E, r))
            A_ErI = A_EI.unflatten(0, (E, r))
            gram_Err = A_ErI @ A_ErI.mT
            # One dot product gives both terms: B . (2 s W0 A^T + s^2 B A A^T).
            with_weight_OEr = (weight_OI @ A_EI.t()).unflatten(-1, (E, r))
            with_itself_OEr = torch.einsum("oek,ekl->oel", B_OEr, gram_Err)
            change_OE = (B_OEr * (2 * self.scale * with_weight_OEr + self.scale**2 * with_itself_OEr)).sum(-1)
            square_OE = _row_squares(weight_OI).unsqueeze(-1) + change_OE
            return square_OE.clamp_min(0).sqrt().t()

    def gain(self, weight_OI: Tensor) -> Tensor:
        """`g_e = m_e / ||W0 + s B_e A_e||`, (E, O); 0 where a row vanishes and its magnitude with it."""
        norm_EO = self.norms(weight_OI)
        return self.magnitude / norm_EO.clamp_min(torch.finfo(norm_EO.dtype).tiny)

    def gained_basis(self, gain_EO: Tensor) -> Tensor:
        """`basis` with the gain of each routed expert, (K, O)."""
        rows_KO = torch.cat([gain_EO.repeat_interleave(self.r, 0), gain_EO.new_ones(self.r, gain_EO.shape[1])])
        return self.basis() * rows_KO


def _row_squares(weight_OI: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight_OI, dim=1).square()
