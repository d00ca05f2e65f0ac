"""Dropout of the update's input that keeps no mask: the backward pass draws it again.

Shapes: N tokens, I inputs, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 256
"""Tokens whose mask exists at a time: few enough to stay in the processor's cache."""


@dataclass(frozen=True)
class Dropout:
    """One drawing of `x * m / (1 - p)`, `m` 1 with probability `1 - p`, else 0.

    Attributes:
        p: probability of dropping a feature of a token.
        state: of torch's generator when the mask was drawn.
    """

    p: float
    state: Tensor

    @classmethod
    def draw(cls, x_NI: Tensor, p: float) -> Dropout:
        """A new mask; `project` draws it from torch's generator."""
        return cls(p, _state(x_NI.device))

    def project(self, projection_RI: Tensor, x_NI: Tensor) -> Tensor:
        """`projection (x * m / (1 - p))`, (R, N), in the dtype of `x`. To be called once, right after `draw`."""
        rows = self._rows(projection_RI, x_NI.dtype)
        return torch.cat([torch.mm(rows, self._drop(block).t()) for block in x_NI.split(BLOCK)], 1)

    def backward(
        self, grad_RN: Tensor, projection_RI: Tensor, x_NI: Tensor | None, grad_x_NI: Tensor | None
    ) -> Tensor | None:
        """Gradient of the projection, where `x` is given; adds that of the input to `grad_x_NI`, where it is given."""
        if x_NI is None and grad_x_NI is None:
            return None
        rows = self._rows(projection_RI, grad_RN.dtype)
        wide = torch.promote_types(rows.dtype, torch.float32)
        total = torch.zeros_like(rows, dtype=wide) if x_NI is not None else None
        before = _state(grad_RN.device)
        _set_state(grad_RN.device, self.state)
        try:
            for start in range(0, grad_RN.shape[1], BLOCK):
                part = slice(start, start + BLOCK)
                mask = self._mask((grad_RN[:, part].shape[1], rows.shape[1]), grad_RN)
                if total is not None:
                    assert x_NI is not None
                    total.add_(torch.mm(grad_RN[:, part], x_NI[part] * mask))
                if grad_x_NI is not None:
                    grad_x_NI[part].add_(torch.mm(grad_RN[:, part].t(), rows).mul_(mask))
        finally:
            _set_state(grad_RN.device, before)
        return None if total is None else total.div_(1 - self.p).to(projection_RI.dtype)

    def _rows(self, projection_RI: Tensor, dtype: torch.dtype) -> Tensor:
        return (projection_RI / (1 - self.p)).to(dtype)

    def _drop(self, x_NI: Tensor) -> Tensor:
        return x_NI * self._mask(x_NI.shape, x_NI)

    def _mask(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return torch.empty(shape, dtype=torch.bool, device=like.device).bernoulli_(1 - self.p)


def _state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
