"""Triton kernels of the fused layer's backward pass, around its wide products; `lime.method.triton.launches` launches
them. Names as in `forward_kernels`.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from lime.method.triton.forward_kernels import (
    DIVISOR_FLOOR,
    by_experts,
    divisor,
    picked_basis,
    probabilities,
    store_by_experts,
    weights,
)

LEAST_SHARE: tl.constexpr = tl.constexpr(0.03)


@triton.jit
def _known_mask(p_NE, chosen_p, n, live_N, count, E, EXPERTS: tl.constexpr):
    """The hard set of the forward pass, as 0 and 1; 1 where all experts take part."""
    mask_NE = tl.full(p_NE.shape, 1.0, tl.float32)
    if chosen_p is not None:
        mask_NE = tl.where(live_N[:, None], by_experts(chosen_p, n, live_N, count, E, EXPERTS), 1.0)
    return mask_NE


@triton.jit
def write_factors(
    left_p,
    right_p,
    u_p,
    source_p,
    basis_p,
    experts_p,
    shared_p,
    gamma_p,
    features_p,
    noise_p,
    kept_p,
    chosen_p,
    count,
    width,
    E,
    R,
    stride_r,
    stride_o,
    first,
    LEARNED: tl.constexpr,
    FROZEN_FACTOR: tl.constexpr,
    UPDATE_FACTOR: tl.constexpr,
    SELECTION: tl.constexpr,
    EXPERTS: tl.constexpr,
    RANK: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """`left = w (x) u`, (E R, count), zero at padding, and `right = P' (.) basis`, (E R, width).

    The programs of the second axis beyond the first write `right`, for as many outputs as tokens a block has.
    """
    i = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    e = tl.arange(0, EXPERTS)
    if tl.program_id(1) == 0:
        live_N = i < count
        picked_RE = picked_basis(basis_p, features_p, first, E, R, stride_r, stride_o, EXPERTS, RANK)
        p_NE = probabilities(
            i, live_N, source_p, u_p, picked_RE, noise_p, count, E, R,
            LEARNED, FROZEN_FACTOR, UPDATE_FACTOR, EXPERTS, RANK,
        )  # fmt: skip
        w_NE = weights(p_NE, _known_mask(p_NE, chosen_p, i, live_N, count, E, EXPERTS), SELECTION, False)
        if kept_p is not None:
            w_NE *= tl.load(kept_p + i, mask=live_N, other=0.0)[:, None]
        for r in range(R):
            u_N = tl.load(u_p + r * count + i, mask=live_N, other=0.0).to(tl.float32)
            mask_NE = live_N[:, None] & (e < E)[None, :]
            at_NE = (e[None, :] * R + r).to(tl.int64) * count + i[:, None]
            tl.store(left_p + at_NE, (w_NE * u_N[:, None]).to(left_p.dtype.element_ty), mask=mask_NE)
    else:
        live_O = i < width
        mask_OE = live_O[:, None] & (e < E)[None, :]
        modulators_OE = tl.load(experts_p + e[None, :] * width + i[:, None], mask=mask_OE, other=0.0).to(tl.float32)
        if shared_p is not None:
            shared_O = tl.load(shared_p + i, mask=live_O, other=0.0).to(tl.float32)
            modulators_OE += (tl.load(gamma_p).to(tl.float32) * shared_O)[:, None]
        for r in range(R):
            basis_O = tl.load(basis_p + r * stride_r + i * stride_o, mask=live_O, other=0.0).to(tl.float32)
            at_OE = (e[None, :] * R + r) * width + i[:, None]
            tl.store(right_p + at_OE, (modulators_OE * basis_O[:, None]).to(right_p.dtype.element_ty), mask=mask_OE)


@triton.jit
def _divided(grad_NE, signal_NE, least_N1):
    """Gradient of a signal from that of `signal / divisor`, bounded as in `lime.method.routing.gradient_divisor`; what
    ties for the largest shares its gradient."""
    divisor_N1 = divisor(signal_NE)
    values_NE = signal_NE / divisor_N1
    largest_NE = tl.where(tl.abs(signal_NE) >= divisor_N1, 1.0, 0.0)
    ties_N = tl.maximum(tl.sum(largest_NE, 1), 1.0)
    through_N = tl.sum(grad_NE * values_NE, 1) / ties_N
    grad_NE = (grad_NE - largest_NE * values_NE * through_N[:, None]) / tl.maximum(divisor_N1, least_N1)
    return tl.where(divisor_N1 > DIVISOR_FLOOR, grad_NE, 0.0)


@triton.jit
def route_backward(
    grad_projected_p,
    grad_update_p,
    grad_left_p,
    grad_sum_p,
    u_p,
    source_p,
    basis_p,
    features_p,
    noise_p,
    kept_p,
    chosen_p,
    count,
    E,
    R,
    stride_r,
    stride_o,
    first,
    LEARNED: tl.constexpr,
    FROZEN_FACTOR: tl.constexpr,
    UPDATE_FACTOR: tl.constexpr,
    SELECTION: tl.constexpr,
    EXPERTS: tl.constexpr,
    RANK: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """From the gradient of `left`, (E R, count), to those of `u` and of the routing's source, one under the other in
    `grad_projected`, (R + E, count), and of the update's routing features in `grad_update`, (E, count).
    """
    n = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    e, r = tl.arange(0, EXPERTS), tl.arange(0, RANK)
    live_N = n < count
    mask_NE = live_N[:, None] & (e < E)[None, :]
    picked_RE = picked_basis(basis_p, features_p, first, E, R, stride_r, stride_o, EXPERTS, RANK)
    p_NE = probabilities(
        n, live_N, source_p, u_p, picked_RE, noise_p, count, E, R,
        LEARNED, FROZEN_FACTOR, UPDATE_FACTOR, EXPERTS, RANK,
    )  # fmt: skip
    chosen_NE = _known_mask(p_NE, chosen_p, n, live_N, count, E, EXPERTS)
    w_NE = weights(p_NE, chosen_NE, SELECTION, False)
    kept_N = tl.where(live_N, 1.0, 0.0)
    if kept_p is not None:
        kept_N = tl.load(kept_p + n, mask=live_N, other=0.0).to(tl.float32)

    grad_NE = tl.zeros_like(p_NE)
    grad_u_NR = tl.zeros((TOKENS, RANK), tl.float32)
    for one in range(R):
        at_NE = (e[None, :] * R + one).to(tl.int64) * count + n[:, None]
        left_NE = tl.load(grad_left_p + at_NE, mask=mask_NE, other=0.0).to(tl.float32) * kept_N[:, None]
        u_N = tl.load(u_p + one * count + n, mask=live_N, other=0.0).to(tl.float32)
        grad_NE += left_NE * u_N[:, None]
        grad_u_NR = tl.where((r == one)[None, :], tl.sum(left_NE * w_NE, 1)[:, None], grad_u_NR)

    if SELECTION != "dense":
        total_N = tl.sum(p_NE * chosen_NE, 1)
        grad_NE = (grad_NE - tl.sum(grad_NE * w_NE, 1)[:, None]) / total_N[:, None] * chosen_NE
    if grad_sum_p is not None:
        grad_NE += tl.load(grad_sum_p + e, mask=e < E, other=0.0).to(tl.float32)[None, :] * kept_N[:, None]
    grad_NE = p_NE * (grad_NE - tl.sum(grad_NE * p_NE, 1)[:, None])
    if noise_p is not None:
        grad_NE *= by_experts(noise_p, n, live_N, count, E, EXPERTS)
    grad_source_NE = grad_NE * FROZEN_FACTOR
    if not LEARNED:
        source_NE = by_experts(source_p, n, live_N, count, E, EXPERTS)
        update_NE = tl.dot(by_experts(u_p, n, live_N, count, R, RANK), picked_RE, input_precision="ieee")
        grad_source_NE = _divided(grad_source_NE, source_NE, 0.0)
        grad_update_NE = _divided(grad_NE * UPDATE_FACTOR, update_NE, divisor(source_NE) * LEAST_SHARE)
        grad_u_NR += tl.dot(grad_update_NE, tl.trans(picked_RE), input_precision="ieee")
        store_by_experts(grad_update_p, grad_update_NE, n, live_N, count, E, EXPERTS)
    store_by_experts(grad_projected_p, grad_u_NR, n, live_N, count, R, RANK)
    store_by_experts(grad_projected_p + R * count, grad_source_NE, n, live_N, count, E, EXPERTS)


@triton.jit
def modulate_backward(
    grad_basis_p,
    grad_experts_p,
    grad_shared_p,
    total_p,
    grad_right_p,
    grad_picked_p,
    basis_p,
    experts_p,
    shared_p,
    gamma_p,
    features_p,
    width,
    E,
    R,
    stride_r,
    stride_o,
    first,
    EXPERTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """From the gradients of `right`, (E R, width), and of the basis' routing features, (R, E), to those of the basis,
    (R, width), the modulators, (E, width), and the shared one, (width,); and what it is times gamma of in `total`.
    """
    o = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    e = tl.arange(0, EXPERTS)
    live_O = o < width
    mask_EO = (e < E)[:, None] & live_O[None, :]
    modulators_EO = tl.load(experts_p + e[:, None] * width + o[None, :], mask=mask_EO, other=0.0).to(tl.float32)
    if shared_p is not None:
        gamma = tl.load(gamma_p).to(tl.float32)
        modulators_EO += (gamma * tl.load(shared_p + o, mask=live_O, other=0.0).to(tl.float32))[None, :]
    if features_p is not None:
        column_E = tl.load(features_p + e, mask=e < E, other=-1)
    else:
        column_E = tl.where(e < E, first + e, -1)
    here_EO = column_E[:, None] == o[None, :]
    grad_EO = tl.zeros_like(modulators_EO)
    for r in range(R):
        at_EO = (e[:, None] * R + r) * width + o[None, :]
        right_EO = tl.load(grad_right_p + at_EO, mask=mask_EO, other=0.0).to(tl.float32)
        basis_O = tl.load(basis_p + r * stride_r + o * stride_o, mask=live_O, other=0.0).to(tl.float32)
        grad_EO += right_EO * basis_O[None, :]
        of_basis_O = tl.sum(right_EO * modulators_EO, 0)
        if grad_picked_p is not None:
            picked_E = tl.load(grad_picked_p + r * E + e, mask=e < E, other=0.0)
            of_basis_O += tl.sum(tl.where(here_EO, picked_E[:, None], 0.0), 0)
        tl.store(grad_basis_p + r * width + o, of_basis_O, mask=live_O)
    at_EO = e[:, None] * width + o[None, :]
    tl.store(grad_experts_p + at_EO, grad_EO.to(grad_experts_p.dtype.element_ty), mask=mask_EO)
    if shared_p is not None:
        total_O = tl.sum(tl.where(mask_EO, grad_EO, 0.0), 0)
        tl.store(total_p + o, total_O, mask=live_O)
        tl.store(grad_shared_p + o, (gamma * total_O).to(grad_shared_p.dtype.element_ty), mask=live_O)
