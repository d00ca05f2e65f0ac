"""The kernels against the torch operations, once a process for each kind of call.

A kind is what Triton compiles for: dtypes, the layer's width, which tensors are there, the routing. The comparison
takes random numbers, not those of the run: a fresh adapter's update is zero, and would hide every fault.

Shapes: N tokens, O outputs, R rank, E experts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from lime.method.fused import operations
from lime.method.fused.parts import Kept, Plan, Tokens, Weights
from lime.method.triton import launches

log = logging.getLogger(__name__)

TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Of the largest difference, as a share of the largest value; by the dtype of the wide products."""
CLOSE_CALLS = 1e-3
"""Share of the tokens whose experts may differ: a probability at the very threshold falls on either side of it."""

_agrees: dict[Hashable, bool] = {}


def forward_agrees(
    z_NO: Tensor, u_RN: Tensor, source_EN: Tensor, basis_RO: Tensor, weights: Weights, tokens: Tokens, plan: Plan
) -> bool:
    """Whether the forward kernel computes what torch does; says so once where it does not."""

    def difference() -> str:
        random = _random(z_NO.device)
        z, u, source, basis = (random(one) for one in (z_NO, u_RN, source_EN, basis_RO))
        given = (u, source, basis, _like(weights, random), tokens, plan)
        z_by_torch = z.clone()
        expected, got = operations.add_update(z_by_torch, *given), launches.add_update(z, *given)
        weights_EN = _weights_everywhere(z_NO, *given)
        expected = expected._replace(weights_EN=weights_EN)
        same_N = torch.ones(len(z), dtype=torch.bool, device=z.device)
        if got.chosen_EN is not None:
            same_N = ((weights_EN > 0) == got.chosen_EN).all(0)
            if (apart := int((~same_N).sum())) > 1 + CLOSE_CALLS * len(z):
                return f"{apart} of {len(z)} tokens have other experts"
        tolerance = TOLERANCES[z.dtype]
        pairs = [(z[same_N], z_by_torch[same_N])]
        for one, other in zip(got[1:], expected[1:], strict=True):
            if one is not None and other is not None:
                pairs.append((one[:, same_N], other[:, same_N]))
        return next((text for pair in pairs if (text := _difference(*pair, tolerance))), "")

    return _once(("forward", *_kind(z_NO, basis_RO, weights, tokens, plan)), difference)


def backward_agrees(
    grad_NO: Tensor, grad_sum_E: Tensor | None, kept: Kept, weights: Weights, tokens: Tokens, plan: Plan
) -> bool:
    """As `forward_agrees`, of the three kernels of the backward pass."""

    def difference() -> str:
        random = _random(grad_NO.device)
        u, source, basis = (random(one) for one in kept[:3])
        made = _like(weights, random)
        weights_EN = _weights_everywhere(grad_NO, u, source, basis, made, tokens, plan)
        chosen = None if kept.chosen_EN is None else weights_EN > 0
        grad_sum = None if grad_sum_E is None else random(grad_sum_E)
        given = (random(grad_NO), grad_sum, Kept(u, source, basis, None, chosen), made, tokens, plan)
        for one, other in zip(launches.backward(*given), operations.backward(*given), strict=True):
            if one is not None and other is not None and (text := _difference(one, other, TOLERANCES[grad_NO.dtype])):
                return text
        return ""

    kind = ("backward", grad_sum_E is None, *_kind(grad_NO, kept.basis_RO, weights, tokens, plan))
    return _once(kind, difference)


def _weights_everywhere(
    z_NO: Tensor, u: Tensor, source: Tensor, basis: Tensor, weights: Weights, tokens: Tokens, plan: Plan
) -> Tensor:
    """Weights after selection, at padding too, as the kernels leave them."""
    unpadded = tokens._replace(kept_N=None)
    weights_EN = operations.add_update(z_NO.clone(), u, source, basis, weights, unpadded, plan).weights_EN
    assert weights_EN is not None
    return weights_EN


def _once(kind: tuple[Hashable, ...], difference: Callable[[], str]) -> bool:
    if kind not in _agrees:
        try:
            with torch.no_grad():
                problem = difference()
        except Exception as error:  # noqa: BLE001  # whatever a compiler or a driver raises
            problem = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        _agrees[kind] = not problem
        if problem:
            log.warning(
                "the %s kernels (Triton) are not taken here (%s); layers of this kind take torch operations",
                kind[0],
                problem,
            )
    return _agrees[kind]


def _kind(wide_NO: Tensor, basis_RO: Tensor, weights: Weights, tokens: Tokens, plan: Plan) -> tuple[Hashable, ...]:
    there = tuple(one is None for one in (*weights, *tokens))
    return (wide_NO.device, wide_NO.dtype, wide_NO.shape[1], basis_RO.stride(), len(weights.experts), there, plan)


def _random(device: torch.device) -> Callable[[Tensor], Tensor]:
    """Makes random numbers in the shape, dtype and layout of a tensor, and leaves torch's generators alone."""
    generator = torch.Generator(device).manual_seed(0)

    def like(tensor: Tensor) -> Tensor:
        drawn = torch.randn(tensor.shape, generator=generator, device=device).to(tensor.dtype)
        return torch.empty_like(tensor).copy_(drawn)

    return like


def _like(weights: Weights, random: Callable[[Tensor], Tensor]) -> Weights:
    """Of the tensors that the routing and the modulation read."""
    drawn: dict[str, Any] = {
        name: None if (value := getattr(weights, name)) is None else random(value)
        for name in ("experts", "shared", "gamma")
    }
    return weights._replace(**drawn)


def _difference(got: Tensor, expected: Tensor, tolerance: float) -> str:
    apart, size = float((got.float() - expected.float()).abs().max()), float(expected.float().abs().max())
    return "" if apart <= tolerance * max(size, 1e-6) else f"they differ by {apart:.3g} where values reach {size:.3g}"
