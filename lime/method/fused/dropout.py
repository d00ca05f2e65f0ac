"""Dropout of the update's input that costs no pass over it: a few masks for each call, which its tokens take in turn.

With a mask of its own for every token the input would have to be written anew. Instead, `MASKS` masks are drawn over
the features and multiplied into the projection, `A (.) m_k`, and token n takes number n mod MASKS. A feature of a token
is so dropped with probability p and independently of the token's other features, as usual; tokens of one call that lie
a multiple of MASKS apart drop the same ones. No mask is kept: the backward pass draws them again.

Shapes: N tokens, I inputs, R rank, S rows beside the projection that nothing drops, K masks, M tokens of each mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MASKS = 64


@dataclass(frozen=True)
class Dropout:
    """One drawing of `x * m / (1 - p)`, `m` 1 with probability `1 - p`, else 0.

    Attributes:
        p: probability of dropping a feature of a token.
        state: of torch's generator when the masks were drawn.
    """

    p: float
    state: Tensor

    @classmethod
    def draw(cls, x_NI: Tensor, p: float) -> Dropout:
        """New masks; `project` draws them from torch's generator."""
        return cls(p, _state(x_NI.device))

    def project(self, projection_RI: Tensor, x_NI: Tensor) -> Tensor:
        """`projection (x * m / (1 - p))`, (R, N), in the dtype of `x`. To be called once, right after `draw`."""
        rows_KRI = self._masks(projection_RI).mul_(projection_RI).to(x_NI.dtype)
        parts = [torch.bmm(x_KMI, rows_KRI[: len(x_KMI)].mT) for x_KMI in _in_turn(x_NI)]
        return torch.cat([u_KMR.permute(2, 1, 0).flatten(1) for u_KMR in parts], 1)

    def backward(
        self,
        grad_projected: Tensor,
        projection_RI: Tensor,
        others_SI: Tensor,
        x_NI: Tensor | None,
        grad_x_NI: Tensor | None,
    ) -> Tensor | None:
        """Gradient of the projection, where `x` is given; adds that of the input to `grad_x_NI`, where it is given.

        Args:
            grad_projected: of the projection's output and of those of the other rows, (R + S, N).
            others_SI: the rows that nothing drops.
        """
        if x_NI is None and grad_x_NI is None:
            return None
        dtype, R = grad_projected.dtype, len(projection_RI)
        before = _state(grad_projected.device)
        _set_state(grad_projected.device, self.state)
        try:
            mask_KRI = self._masks(projection_RI)
        finally:
            _set_state(grad_projected.device, before)
        grads = list(_in_turn(grad_projected.t()))
        if grad_x_NI is not None:
            dropped_KRI = (mask_KRI * projection_RI).to(dtype)
            rows_KPI = torch.cat([dropped_KRI, others_SI.to(dtype).expand(MASKS, -1, -1)], 1)
            for grad_x_KMI, grad_KMP in zip(_in_turn(grad_x_NI), grads, strict=True):
                grad_x_KMI.baddbmm_(grad_KMP, rows_KPI[: len(grad_KMP)])
        if x_NI is None:
            return None
        total = torch.zeros_like(projection_RI, dtype=mask_KRI.dtype)
        for x_KMI, grad_KMP in zip(_in_turn(x_NI), grads, strict=True):
            product_KRI = torch.bmm(grad_KMP[..., :R].mT, x_KMI)
            total.add_((product_KRI * mask_KRI[: len(product_KRI)]).sum(0))
        return total.to(projection_RI.dtype)

    def _masks(self, projection_RI: Tensor) -> Tensor:
        """`m / (1 - p)` once for every row of the projection, (K, R, I), at least float32."""
        width, wide = projection_RI.shape[1], torch.promote_types(projection_RI.dtype, torch.float32)
        mask_K1I = torch.empty(MASKS, 1, width, dtype=wide, device=projection_RI.device).bernoulli_(1 - self.p)
        return mask_K1I.div_(1 - self.p).repeat(1, len(projection_RI), 1)


def _in_turn(values_NI: Tensor) -> Iterator[Tensor]:
    """The tokens by their mask: views (K, M, I) of as many as fill whole rounds, and (K', 1, I) of those left over."""
    rounds = len(values_NI) // MASKS
    if rounds:
        yield values_NI[: rounds * MASKS].unflatten(0, (rounds, MASKS)).transpose(0, 1)
    if len(values_NI) > rounds * MASKS:
        yield values_NI[rounds * MASKS :].unsqueeze(1)


def _state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
