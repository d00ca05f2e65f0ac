"""A frozen product and a few rows more of the same input, in one function.

Shapes: N tokens, I inputs, O outputs, P rows beside the frozen ones. Leading dimensions may be any.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lime.method.once import differentiable_once, without_autocast
from lime.method.routing import routing_dtype


class FrozenAndProjected(torch.autograd.Function):
    """`z = x W0^T + b0`, (N, O), and `projected = x rows^T`, (N, P), with the gradients of `x` and of the rows.

    Against two products by themselves, the gradient of the input is one tensor, to which the second product is added in
    place. `z` may be changed in place afterwards.

    Args of `apply`:
        x: input, (…, I).
        weight, bias: the frozen layer.
        rows: (P, I).
        dtype: dtype of the products and of `z`; `projected` are float32, or float64 where that is.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        x_NI = x.reshape(-1, x.shape[-1]).to(dtype)
        z_NO = F.linear(x_NI, weight.to(dtype), None if bias is None else bias.to(dtype))
        projected_NP = F.linear(x_NI, rows.to(dtype)).to(routing_dtype(dtype))
        ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, weight, rows)
        ctx.shape, ctx.of_x, ctx.dtype = x.shape, x.dtype, dtype
        return z_NO, projected_NP

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_NO: Tensor, grad_NP: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rows = ctx.saved_tensors
        grad_x = grad_rows = None
        with without_autocast(grad_NO.device.type):
            grad_NO, grad_NP = grad_NO.to(ctx.dtype), grad_NP.to(ctx.dtype)
            if ctx.needs_input_grad[0]:
                grad_x = torch.mm(grad_NO, weight.to(ctx.dtype)).addmm_(grad_NP, rows.to(ctx.dtype))
                grad_x = grad_x.view(ctx.shape).to(ctx.of_x)
            if ctx.needs_input_grad[3]:
                grad_rows = torch.mm(grad_NP.t(), x.reshape(-1, x.shape[-1]).to(ctx.dtype)).to(rows.dtype)
        return grad_x, None, None, grad_rows, None
