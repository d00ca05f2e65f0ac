"""The Triton kernel of the fused layer's forward pass, and the routing that both passes compute;
`lime.method.triton.launches` launches it.

Each program handles a block of tokens. Experts and ranks are padded to a power of two of at least 16; what lies beyond
them is masked. Everything is computed in float32 whatever the frozen output's dtype.

Shapes in names: N tokens of a block, O outputs of a block, R rank, E experts. Pointers end in `_p`; a tensor that is
absent is None, and what would read it is not compiled.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

DIVISOR_FLOOR: tl.constexpr = tl.constexpr(1e-6)
SOFT_FLOOR: tl.constexpr = tl.constexpr(1e-9)


@triton.jit
def by_experts(p, n, live_N, count, E, EXPERTS: tl.constexpr):
    """Tokens `n` of a tensor (E, count), as (N, E) in float32; zero beyond."""
    e = tl.arange(0, EXPERTS)
    mask_NE = live_N[:, None] & (e < E)[None, :]
    return tl.load(p + e[None, :].to(tl.int64) * count + n[:, None], mask=mask_NE, other=0.0).to(tl.float32)


@triton.jit
def store_by_experts(p, values_NE, n, live_N, count, E, EXPERTS: tl.constexpr):
    e = tl.arange(0, EXPERTS)
    mask_NE = live_N[:, None] & (e < E)[None, :]
    tl.store(p + e[None, :].to(tl.int64) * count + n[:, None], values_NE.to(p.dtype.element_ty), mask=mask_NE)


@triton.jit
def picked_basis(basis_p, features_p, first, E, R, stride_r, stride_o, EXPERTS: tl.constexpr, RANK: tl.constexpr):
    """The routing features of the basis, (R, E)."""
    e, r = tl.arange(0, EXPERTS), tl.arange(0, RANK)
    if features_p is not None:
        column_E = tl.load(features_p + e, mask=e < E, other=0)
    else:
        column_E = first + e
    mask_RE = (r < R)[:, None] & (e < E)[None, :]
    at_RE = r[:, None] * stride_r + column_E[None, :] * stride_o
    return tl.load(basis_p + at_RE, mask=mask_RE, other=0.0).to(tl.float32)


@triton.jit
def divisor(values_NE):
    """The largest absolute value of each token, clamped from below, (N, 1)."""
    return tl.maximum(tl.max(tl.abs(values_NE), 1), DIVISOR_FLOOR)[:, None]


@triton.jit
def probabilities(
    n,
    live_N,
    source_p,
    u_p,
    picked_RE,
    noise_p,
    count,
    E,
    R,
    LEARNED: tl.constexpr,
    FROZEN_FACTOR: tl.constexpr,
    UPDATE_FACTOR: tl.constexpr,
    EXPERTS: tl.constexpr,
    RANK: tl.constexpr,
):
    """Eq. 3 of the tokens `n`, (N, E); 0 beyond the experts."""
    source_NE = by_experts(source_p, n, live_N, count, E, EXPERTS)
    if LEARNED:
        logits_NE = source_NE * FROZEN_FACTOR
    else:
        u_NR = by_experts(u_p, n, live_N, count, R, RANK)
        update_NE = tl.dot(u_NR, picked_RE, input_precision="ieee")
        logits_NE = source_NE / divisor(source_NE) * FROZEN_FACTOR + update_NE / divisor(update_NE) * UPDATE_FACTOR
    if noise_p is not None:
        logits_NE *= by_experts(noise_p, n, live_N, count, E, EXPERTS)
    inside_E = tl.arange(0, EXPERTS) < E
    logits_NE = tl.where(inside_E[None, :], logits_NE, -float("inf"))
    raised_NE = tl.exp(logits_NE - tl.max(logits_NE, 1)[:, None])
    return raised_NE / tl.sum(raised_NE, 1)[:, None]


@triton.jit
def _largest(p_NE, E, COUNT: tl.constexpr, EXPERTS: tl.constexpr):
    """The COUNT largest entries of each token as 0 and 1, the earlier of equal ones, and the last of their values."""
    e = tl.arange(0, EXPERTS)
    left_NE = tl.where((e < E)[None, :], p_NE, -1.0)
    chosen_NE = tl.zeros_like(p_NE)
    limit_N = tl.max(left_NE, 1)
    for _ in tl.static_range(COUNT):
        limit_N = tl.max(left_NE, 1)
        first_N = tl.min(tl.where(left_NE == limit_N[:, None], e[None, :], EXPERTS), 1)
        hit_NE = e[None, :] == first_N[:, None]
        chosen_NE = tl.where(hit_NE, 1.0, chosen_NE)
        left_NE = tl.where(hit_NE, -2.0, left_NE)
    return chosen_NE, limit_N


@triton.jit
def _mask(
    p_NE,
    E,
    SELECTION: tl.constexpr,
    SOFT: tl.constexpr,
    THRESHOLD: tl.constexpr,
    TOP_K: tl.constexpr,
    SOFT_TEMPERATURE: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    """Factor of each probability before renormalising (Eq. 4): the hard set as 0 and 1, or the soft mask."""
    if SELECTION == "dense":
        mask_NE = tl.full(p_NE.shape, 1.0, tl.float32)
    elif SELECTION == "auto":
        limit_N = tl.max(p_NE, 1) * THRESHOLD
        if SOFT:
            mask_NE = tl.sigmoid((p_NE - limit_N[:, None]) / SOFT_TEMPERATURE)
        else:
            mask_NE = tl.where(p_NE >= limit_N[:, None], 1.0, 0.0)
            if TOP_K > 0:
                capped_NE, _ = _largest(p_NE, E, TOP_K, EXPERTS)
                mask_NE *= capped_NE
    else:
        mask_NE, limit_N = _largest(p_NE, E, TOP_K, EXPERTS)
        if SOFT:
            mask_NE = tl.sigmoid((p_NE - limit_N[:, None]) / SOFT_TEMPERATURE)
    return mask_NE


@triton.jit
def weights(p_NE, mask_NE, SELECTION: tl.constexpr, SOFT: tl.constexpr):
    """`p m / sum p m`."""
    w_NE = p_NE
    if SELECTION != "dense":
        w_NE = p_NE * mask_NE
        total_N = tl.sum(w_NE, 1)
        if SOFT:
            total_N += SOFT_FLOOR
        w_NE = w_NE / total_N[:, None]
    return w_NE


@triton.jit
def add_update(
    z_p,
    u_p,
    source_p,
    basis_p,
    experts_p,
    shared_p,
    gamma_p,
    features_p,
    noise_p,
    kept_p,
    anchor_p,
    chosen_p,
    own_p,
    probabilities_p,
    weights_p,
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
    SOFT: tl.constexpr,
    THRESHOLD: tl.constexpr,
    TOP_K: tl.constexpr,
    SOFT_TEMPERATURE: tl.constexpr,
    EXPERTS: tl.constexpr,
    RANK: tl.constexpr,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`z += (u basis) (.) (w P + gamma p_s)` over one block of tokens and outputs, in place.

    Every program routes its tokens anew, from `source` and `u`, which none changes. Those of the first outputs write
    what is asked of the routing.
    """
    n = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    o = (tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)).to(tl.int64)
    live_N, live_O = n < count, o < width
    picked_RE = picked_basis(basis_p, features_p, first, E, R, stride_r, stride_o, EXPERTS, RANK)
    decider_N = n
    if anchor_p is not None:
        decider_N = tl.load(anchor_p + n, mask=live_N, other=0)
    p_NE = probabilities(
        decider_N, live_N, source_p, u_p, picked_RE, noise_p, count, E, R,
        LEARNED, FROZEN_FACTOR, UPDATE_FACTOR, EXPERTS, RANK,
    )  # fmt: skip
    mask_NE = _mask(p_NE, E, SELECTION, SOFT, THRESHOLD, TOP_K, SOFT_TEMPERATURE, EXPERTS)
    w_NE = weights(p_NE, mask_NE, SELECTION, SOFT)

    if tl.program_id(1) == 0:
        if chosen_p is not None:
            store_by_experts(chosen_p, mask_NE, n, live_N, count, E, EXPERTS)
        if probabilities_p is not None:
            store_by_experts(probabilities_p, p_NE, n, live_N, count, E, EXPERTS)
        if weights_p is not None:
            store_by_experts(weights_p, w_NE, n, live_N, count, E, EXPERTS)
        if own_p is not None:
            own_NE = probabilities(
                n, live_N, source_p, u_p, picked_RE, noise_p, count, E, R,
                LEARNED, FROZEN_FACTOR, UPDATE_FACTOR, EXPERTS, RANK,
            )  # fmt: skip
            store_by_experts(own_p, own_NE, n, live_N, count, E, EXPERTS)

    e, r = tl.arange(0, EXPERTS), tl.arange(0, RANK)
    u_NR = by_experts(u_p, n, live_N, count, R, RANK)
    if kept_p is not None:
        u_NR *= tl.load(kept_p + n, mask=live_N, other=0.0)[:, None]
    mask_EO = (e < E)[:, None] & live_O[None, :]
    experts_EO = tl.load(experts_p + e[:, None] * width + o[None, :], mask=mask_EO, other=0.0).to(tl.float32)
    modulator_NO = tl.dot(w_NE, experts_EO, input_precision=PRECISION)
    if shared_p is not None:
        shared_O = tl.load(shared_p + o, mask=live_O, other=0.0).to(tl.float32)
        modulator_NO += (tl.load(gamma_p).to(tl.float32) * shared_O)[None, :]
    mask_RO = (r < R)[:, None] & live_O[None, :]
    at_RO = r[:, None] * stride_r + o[None, :] * stride_o
    basis_RO = tl.load(basis_p + at_RO, mask=mask_RO, other=0.0).to(tl.float32)
    update_NO = tl.dot(u_NR, basis_RO, input_precision=PRECISION) * modulator_NO
    z_NO_p = z_p + n[:, None] * width + o[None, :]
    mask_NO = live_N[:, None] & live_O[None, :]
    z_NO = tl.load(z_NO_p, mask=mask_NO, other=0.0).to(tl.float32)
    tl.store(z_NO_p, (z_NO + update_NO).to(z_p.dtype.element_ty), mask=mask_NO)
