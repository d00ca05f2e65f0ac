"""Expert modulation of a frozen output (Eq. 1): the definition, and one matrix product that computes the
same.

Shapes: B batch, T tokens, O output width, E experts, R rank. Leading dimensions may be any; `BT` stands for
    them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def modulate(
    z_BTO: Tensor,
    zhat_BTO: Tensor,
    w_BTE: Tensor,
    experts_EO: Tensor,
    shared_O: Tensor | None = None,
    gamma: Tensor | None = None,
) -> Tensor:
    """`out = z + zhat * (sum_i w_i p_i + gamma p_s)` (Eq. 1), elementwise product; shape (B, T, O).

    Args:
        z_BTO: frozen output.
        zhat_BTO: shared PEFT update; zero at padding, so that padding stays exactly `z`.
        w_BTE: weights after selection.
        experts_EO: expert modulators `p_i`.
        shared_O: shared modulator `p_s`; with it goes its scalar `gamma`, shape (1,).
    """
    modulator_BTO = w_BTE.to(experts_EO.dtype) @ experts_EO
    if shared_O is not None:
        assert gamma is not None
        modulator_BTO = modulator_BTO + gamma * shared_O
    return z_BTO + zhat_BTO * modulator_BTO


def modulate_low_rank(
    z_BTO: Tensor,
    u_BTR: Tensor,
    basis_RO: Tensor,
    w_BTE: Tensor,
    experts_EO: Tensor,
    shared_O: Tensor | None = None,
    gamma: Tensor | None = None,
    *,
    normalised: bool = True,
    ranks_ER: Tensor | None = None,
) -> Tensor:
    """`modulate` for an update `zhat = u @ basis`, without any (tokens, O) temporary:

        zhat * (w P) = (w (x) u) @ (P (.) basis)

    with `(x)` the row-wise Kronecker product, (tokens, E R), and `(.)` the column-wise one, (E R, O). One
    matrix product of inner size E R is added to the frozen output.

    Args:
        u_BTR: update in its rank space; zero at padding.
        basis_RO: rows that span the update, its scale included.
        normalised: the rows of `w_BTE` sum to one, so that `gamma p_s` joins every expert; else it is one
            more expert.
        ranks_ER: modulators `q_i` of the rank space (docs/method.md, beyond the paper): then `zhat` of the expert i is
            `(u * q_i) @ basis`, and `gamma p_s` joins every expert.
    """
    rank, width = basis_RO.shape
    w_BTE = w_BTE.to(u_BTR.dtype)
    if shared_O is not None:
        assert gamma is not None
        if normalised or ranks_ER is not None:
            experts_EO = experts_EO + gamma * shared_O
        else:
            experts_EO = torch.cat([experts_EO, (gamma * shared_O).unsqueeze(0)])
            w_BTE = torch.cat([w_BTE, torch.ones_like(w_BTE[..., :1])], -1)
    num_experts = experts_EO.shape[0]
    left_NK = (w_BTE.unsqueeze(-1) * u_BTR.unsqueeze(-2)).reshape(-1, num_experts * rank)
    basis = basis_RO if ranks_ER is None else ranks_ER.unsqueeze(-1) * basis_RO
    right_KO = (experts_EO.unsqueeze(1) * basis).reshape(num_experts * rank, width)
    return torch.addmm(z_BTO.reshape(-1, width), left_NK, right_KO).view(z_BTO.shape)


def add(z_BTO: Tensor, update: Tensor, basis_RO: Tensor | None = None) -> Tensor:
    """`z + zhat`, the update without modulation, shape (B, T, O).

    Args:
        update: `zhat`, (B, T, O), or with `basis_RO` its factor `u`, (B, T, R), of `zhat = u @ basis`.
    """
    if basis_RO is None:
        return z_BTO + update
    rank, width = basis_RO.shape
    return torch.addmm(z_BTO.reshape(-1, width), update.reshape(-1, rank), basis_RO).view(z_BTO.shape)
