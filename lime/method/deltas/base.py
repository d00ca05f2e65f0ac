"""What a PEFT update is to LiME: `zhat = delta(x)`, zero at the start.

A new PEFT type of linear layers is a subclass of `Delta` and its entry in the table of types (`table.py`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Delta(nn.Module):
    """The shared update of one adapted linear layer, `zhat = delta(x)`.

    Subclasses register their parameters and buffers directly on themselves, not on submodules: adapter files are
    keyed one level deep.

    Args of every subclass:
        base: the adapted layer, of which shapes and device may be read.
        dropout: probability of dropping an input feature of the update, in training.
        dtype: dtype of the parameters.
        zero_init: start at `zhat = 0` (the method); `False` starts at a random update, for tests.
        **options: the options that the table of types names.
    """

    frozen: tuple[str, ...] = ()
    """Names of the parameters that never train."""
    ups: tuple[str, ...] = ()
    """Names of the parameters that lead from the rank space to the outputs, B of LoRA; LoRA+ has a rate for them."""
    reads_weight: bool = False
    """Whether the type rescales the frozen output: its constructor and `gain` are then given the frozen weight."""

    def __init__(
        self,
        base: nn.Linear,
        *,
        dropout: float = 0.0,
        dtype: torch.dtype = torch.float32,
        zero_init: bool = True,
    ):
        super().__init__()
        self.dropout = dropout

    def forward(self, x_BTI: Tensor) -> Tensor:
        """The update before `gain`, shape (B, T, O)."""
        raise NotImplementedError

    def gain(self, weight_OI: Tensor) -> Tensor:
        """Factor `mag` of each output feature, shape (O,), of types that rescale the frozen output (`reads_weight`):
        with it `z' = mag * (W0 x) + b0` and `zhat = mag * delta(x)`.

        Args:
            weight_OI: the frozen weight W0, in floating point.
        """
        raise NotImplementedError

    def drop(self, x_BTI: Tensor) -> Tensor:
        """The input with dropout, in training."""
        return F.dropout(x_BTI, self.dropout) if self.drops else x_BTI

    scale_bias = False
    """Whether `gain` multiplies the frozen bias too: `z' = mag * (W0 x + b0)`."""

    @property
    def drops(self) -> bool:
        """Whether dropout acts just now."""
        return self.training and self.dropout > 0

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype in which the update is computed."""
        of_replica = self.__dict__.get("_former_parameters")  # `DataParallel` leaves its copies no others
        return next(iter((of_replica or self._parameters).values())).dtype  # type: ignore[union-attr]


class LowRankDelta(Delta):
    """An update that factors as `zhat = u(x) @ basis` with few rows in `basis`, so that modulation fuses into
    one product."""

    def rank_space(self, x_BTI: Tensor) -> Tensor:
        """`u(x)`, shape (B, T, R)."""
        raise NotImplementedError

    def projection(self) -> Tensor:
        """The matrix (R, I) of `u(x) = projection drop(x)`."""
        raise NotImplementedError

    def basis(self) -> Tensor:
        """Rows that span the update, its scale included; shape (R, O)."""
        raise NotImplementedError

    def up_and_scale(self) -> tuple[Tensor, float]:
        """`basis = scale up^T`, `up` of shape (O, R)."""
        return self.basis().t(), 1.0

    def forward(self, x_BTI: Tensor) -> Tensor:
        return self.rank_space(x_BTI) @ self.basis()
