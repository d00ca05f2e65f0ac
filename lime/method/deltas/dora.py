"""DoRA (arXiv 2402.09353): a low-rank change of direction, and a learned magnitude of each output feature."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lime.method.deltas.lora import LoRADelta


class DoRADelta(LoRADelta):
    """With `s = lora_alpha / r`, the row norms `c = ||W0 + s B A||` and the learned magnitude `m`, initially `||W0||`:

        mag = m / c,   z' = mag * (W0 x) + b0,   zhat = mag * s B A dropout(x)

    `c` counts as a constant in the backward pass (section 4.3 of the source). `z' + zhat` is standard DoRA. Dropout
    acts on the update alone; the peft library's DoRA drops the input of the frozen product as well.

    The other arguments are as in `LoRADelta`.

    Args:
        weight: frozen weight (d_out, d_in) in floating point, where `base` keeps it in another form.

    Trains `r (d_in + d_out) + d_out` parameters: A, B and `magnitude` (d_out,).
    """

    reads_weight = True

    def __init__(
        self,
        base: nn.Linear,
        *,
        r: int,
        lora_alpha: float,
        dropout: float = 0.0,
        dtype: torch.dtype = torch.float32,
        zero_init: bool = True,
        weight: Tensor | None = None,
    ):
        super().__init__(base, r=r, lora_alpha=lora_alpha, dropout=dropout, dtype=dtype, zero_init=zero_init)
        weight_OI = (base.weight if weight is None else weight).detach()
        self.magnitude = nn.Parameter(_row_norms(weight_OI.to(dtype)))

    @torch.no_grad()
    def norms(self, weight_OI: Tensor) -> Tensor:
        """`c = ||W0 + s B A||` of each row, without gradient and in the parameters' dtype, shape (O,).

        At `B = 0` it is bit for bit the initial magnitude, so that a fresh adapter changes nothing; under autocast
        too, which would round the sum.
        """
        with torch.autocast(weight_OI.device.type, enabled=False):
            return _row_norms(torch.addmm(weight_OI.to(self.B.dtype), self.B, self.A, alpha=self.scale))

    def gain(self, weight_OI: Tensor) -> Tensor:
        """`mag = m / c`, shape (O,); 0 where a row of `W0 + s B A` vanishes and `m` with it."""
        c_O = self.norms(weight_OI)
        return self.magnitude / c_O.clamp_min(torch.finfo(c_O.dtype).tiny)


def _row_norms(weight_OI: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight_OI, dim=1)
