"""SliceFine (arXiv 2510.08513): trains a slice of the frozen weight itself, as a change D of its columns or rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lime.method.deltas.base import LowRankDelta
from lime.method.deltas.table import ORIENTATIONS


class SliceFineDelta(LowRankDelta):
    """Change of r consecutive columns, r consecutive rows, or both, of the frozen weight W0 (d_out, d_in):

        columns:  zhat = D x[columns]                 D (d_out, r)
        rows:     zhat[rows] = D' x, zero elsewhere   D' (r, d_in)
        both:     the sum of the two

    D and D' start at zero. Where the slice lies is drawn uniformly when the adapter is made, for each layer anew, from
    torch's global generator (the source: any slice wide enough will do, drawn at random), and is stored with the
    adapter as the integer buffers `columns` and `rows`, shape (r,). The source moves the slice during training; here
    it stays.

    The other arguments are as in `Delta`.

    Args:
        r: width of the slice.
        orientation: `columns`, `rows` or `both`.

    Trains `r d_out` (columns), `r d_in` (rows) or `r (d_in + d_out)` (both) parameters.

    Raises:
        ValueError: unknown orientation, or a slice wider than the weight.
    """

    columns: Tensor
    rows: Tensor

    def __init__(
        self,
        base: nn.Linear,
        *,
        r: int,
        orientation: str = "columns",
        dropout: float = 0.0,
        dtype: torch.dtype = torch.float32,
        zero_init: bool = True,
    ):
        super().__init__(base, dropout=dropout, dtype=dtype, zero_init=zero_init)
        if orientation not in ORIENTATIONS:
            raise ValueError(f"orientation: expected one of {', '.join(ORIENTATIONS)}, got {orientation!r}")
        d_in, d_out, device = base.in_features, base.out_features, base.weight.device
        self.d_in, self.d_out = d_in, d_out
        self.has_columns, self.has_rows = orientation != "rows", orientation != "columns"
        if self.has_columns:
            self.register_buffer("columns", _slice(r, d_in, "columns").to(device))
            self.column_change = nn.Parameter(torch.zeros(d_out, r, dtype=dtype, device=device))
        if self.has_rows:
            self.register_buffer("rows", _slice(r, d_out, "rows").to(device))
            self.row_change = nn.Parameter(torch.zeros(r, d_in, dtype=dtype, device=device))
        if not zero_init:
            for change in self.parameters():
                nn.init.normal_(change, std=0.5)

    def rank_space(self, x_BTI: Tensor) -> Tensor:
        x_BTI = self.drop(x_BTI)
        parts = []
        if self.has_columns:
            parts.append(x_BTI.index_select(-1, self.columns))
        if self.has_rows:
            product_BTr = F.linear(x_BTI, self.row_change)
            parts.append(product_BTr)
        return parts[0] if len(parts) == 1 else torch.cat([parts[0].to(parts[1].dtype), parts[1]], -1)

    def projection(self) -> Tensor:
        parts = []
        if self.has_columns:
            parts.append(_one_hot(self.columns, self.d_in, self.column_change.dtype))
        if self.has_rows:
            parts.append(self.row_change)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def basis(self) -> Tensor:
        parts = []
        if self.has_columns:
            parts.append(self.column_change.t())
        if self.has_rows:
            parts.append(_one_hot(self.rows, self.d_out, self.row_change.dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _one_hot(index: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Rows of the unit matrix, (r, width)."""
    return (index.unsqueeze(-1) == torch.arange(width, device=index.device)).to(dtype)


def _slice(r: int, width: int, what: str) -> Tensor:
    """Indices of r consecutive ones of `width` rows or columns, at a random place."""
    if r > width:
        raise ValueError(f"r: a slice of {r} {what} does not fit a weight with {width}")
    return torch.randint(width - r + 1, (1,), device="cpu") + torch.arange(r, device="cpu")
