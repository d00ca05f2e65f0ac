"""Triton kernels of the fused layer; `lime.method.fused.kernels` launches them.

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
def _by_experts(p, n, live_N, count, E, EXPERTS: tl.constexpr):
    """Tokens `n` of a tensor (E, count), as (N, E) in float32; zero beyond."""
    e = tl.arange(0, EXPERTS)
    mask_NE = live_N[:, None] & (e < E)[None, :]
    return tl.load(p + e[None, :].to(tl.int64) * count + n[:, None], mask=mask_NE, other=0.0).to(tl.float32)


@triton.jit
def _store_by_experts(p, values_NE, n, live_N, count, E, EXPERTS: tl.constexpr):
    e = tl.arange(0, EXPERTS)
    mask_NE = live_N[:, None] & (e < E)[None, :]
    tl.store(p + e[None, :].to(tl.int64) * count + n[:, None], values_NE.to(p.dtype.element_ty), mask=mask_NE)


@triton.jit
def _picked_basis(basis_p, features_p, first, E, R, stride_r, stride_o, EXPERTS: tl.constexpr, RANK: tl.constexpr):
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
def _divisor(values_NE):
    """The largest absolute value of each token, clamped from below, (N, 1)."""
    return tl.maximum(tl.max(tl.abs(values_NE), 1), DIVISOR_FLOOR)[:, None]


@triton.jit
def _probabilities(
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
    source_NE = _by_experts(source_p, n, live_N, count, E, EXPERTS)
    if LEARNED:
        logits_NE = source_NE * FROZEN_FACTOR
    else:
        u_NR = _by_experts(u_p, n, live_N, count, R, RANK)
        update_NE = tl.dot(u_NR, picked_RE, input_precision="ieee")
        logits_NE = (
            source_NE / _divisor(source_NE) * FROZEN_FACTOR + update_NE / _divisor(update_NE) * UPDATE_FACTOR
        )
    if noise_p is not None:
        logits_NE *= _by_experts(noise_p, n, live_N, count, E, EXPERTS)
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
def _weights(p_NE, mask_NE, SELECTION: tl.constexpr, SOFT: tl.constexpr):
    """`p m / sum p m`."""
    if SELECTION == "dense":
        return p_NE
    kept_NE = p_NE * mask_NE
    total_N = tl.sum(kept_NE, 1)
    if SOFT:
        total_N += SOFT_FLOOR
    return kept_NE / total_N[:, None]


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

    Every block routes its tokens anew, from `source` and `u`, which no program changes. Those of the first outputs write
    what is asked of the routing.
    """
    n = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    o = (tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)).to(tl.int64)
    live_N, live_O = n < count, o < width
    picked_RE = _picked_basis(basis_p, features_p, first, E, R, stride_r, stride_o, EXPERTS, RANK)
    decider_N = n
    if anchor_p is not None:
        decider_N = tl.load(anchor_p + n, mask=live_N, other=0)
    p_NE = _probabilities(
        decider_N, live_N, source_p, u_p, picked_RE, noise_p, count, E, R,
        LEARNED, FROZEN_FACTOR, UPDATE_FACTOR, EXPERTS, RANK,
    )  # fmt: skip
    mask_NE = _mask(p_NE, E, SELECTION, SOFT, THRESHOLD, TOP_K, SOFT_TEMPERATURE, EXPERTS)
    w_NE = _weights(p_NE, mask_NE, SELECTION, SOFT)

    if tl.program_id(1) == 0:
        if chosen_p is not None:
            _store_by_experts(chosen_p, mask_NE, n, live_N, count, E, EXPERTS)
        if probabilities_p is not None:
            _store_by_experts(probabilities_p, p_NE, n, live_N, count, E, EXPERTS)
        if weights_p is not None:
            _store_by_experts(weights_p, w_NE, n, live_N, count, E, EXPERTS)
        if own_p is not None:
            own_NE = _probabilities(
                n, live_N, source_p, u_p, picked_RE, noise_p, count, E, R,
                LEARNED, FROZEN_FACTOR, UPDATE_FACTOR, EXPERTS, RANK,
            )  # fmt: skip
            _store_by_experts(own_p, own_NE, n, live_N, count, E, EXPERTS)

    e, r = tl.arange(0, EXPERTS), tl.arange(0, RANK)
    u_NR = _by_experts(u_p, n, live_N, count, R, RANK)
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


# -- backward ----------------------------------------------------------------------------------------------------------


@triton.jit
def _known_mask(p_NE, chosen_p, n, live_N, count, E, EXPERTS: tl.constexpr):
    """The hard set of the forward pass, as 0 and 1; 1 where all experts take part."""
    if chosen_p is None:
        return tl.full(p_NE.shape, 1.0, tl.float32)
    return _by_experts(chosen_p, n, live_N, count, E, EXPERTS)


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
        picked_RE = _picked_basis(basis_p, features_p, first, E, R, stride_r, stride_o, EXPERTS, RANK)
        p_NE = _probabilities(
            i, live_N, source_p, u_p, picked_RE, noise_p, count, E, R,
            LEARNED, FROZEN_FACTOR, UPDATE_FACTOR, EXPERTS, RANK,
        )  # fmt: skip
        w_NE = _weights(p_NE, _known_mask(p_NE, chosen_p, i, live_N, count, E, EXPERTS), SELECTION, False)
        if kept_p is not None:
            w_NE *= tl.load(kept_p + i, mask=live_N, other=0.0)[:, None]
        for r in range(0, R):
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
        for r in range(0, R):
            basis_O = tl.load(basis_p + r * stride_r + i * stride_o, mask=live_O, other=0.0).to(tl.float32)
            at_OE = (e[None, :] * R + r) * width + i[:, None]
            tl.store(right_p + at_OE, (modulators_OE * basis_O[:, None]).to(right_p.dtype.element_ty), mask=mask_OE)


@triton.jit
def _divided(grad_NE, values_NE, divisor_N1):
    """Gradient of the signal behind `values = signal / divisor`; what ties for the largest shares its gradient."""
    largest_NE = tl.where(tl.abs(values_NE) >= 1.0, 1.0, 0.0)
    ties_N = tl.maximum(tl.sum(largest_NE, 1), 1.0)
    through_N = tl.sum(grad_NE * values_NE, 1) / ties_N
    return (grad_NE - largest_NE * values_NE * through_N[:, None]) / divisor_N1


@triton.jit
def route_backward(
    grad_taps_p,
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
    `grad_taps`, (R + E, count), and of the update's routing features in `grad_update`, (E, count).
    """
    n = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    e, r = tl.arange(0, EXPERTS), tl.arange(0, RANK)
    live_N = n < count
    mask_NE = live_N[:, None] & (e < E)[None, :]
    picked_RE = _picked_basis(basis_p, features_p, first, E, R, stride_r, stride_o, EXPERTS, RANK)
    p_NE = _probabilities(
        n, live_N, source_p, u_p, picked_RE, noise_p, count, E, R,
        LEARNED, FROZEN_FACTOR, UPDATE_FACTOR, EXPERTS, RANK,
    )  # fmt: skip
    chosen_NE = _known_mask(p_NE, chosen_p, n, live_N, count, E, EXPERTS)
    w_NE = _weights(p_NE, chosen_NE, SELECTION, False)
    kept_N = tl.where(live_N, 1.0, 0.0)
    if kept_p is not None:
        kept_N = tl.load(kept_p + n, mask=live_N, other=0.0).to(tl.float32)

    grad_NE = tl.zeros_like(p_NE)
    grad_u_NR = tl.zeros((TOKENS, RANK), tl.float32)
    for one in range(0, R):
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
        grad_NE *= _by_experts(noise_p, n, live_N, count, E, EXPERTS)
    grad_source_NE = grad_NE * FROZEN_FACTOR
    if not LEARNED:
        source_NE = _by_experts(source_p, n, live_N, count, E, EXPERTS)
        update_NE = tl.dot(_by_experts(u_p, n, live_N, count, R, RANK), picked_RE, input_precision="ieee")
        of_source_N1, of_update_N1 = _divisor(source_NE), _divisor(update_NE)
        grad_source_NE = _divided(grad_source_NE, source_NE / of_source_N1, of_source_N1)
        grad_update_NE = _divided(grad_NE * UPDATE_FACTOR, update_NE / of_update_N1, of_update_N1)
        grad_u_NR += tl.dot(grad_update_NE, tl.trans(picked_RE), input_precision="ieee")
        _store_by_experts(grad_update_p, grad_update_NE, n, live_N, count, E, EXPERTS)
    _store_by_experts(grad_taps_p, grad_u_NR, n, live_N, count, R, RANK)
    _store_by_experts(grad_taps_p + R.to(tl.int64) * count, grad_source_NE, n, live_N, count, E, EXPERTS)


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
    for r in range(0, R):
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
