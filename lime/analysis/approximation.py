"""How well modulation approximates separate experts: LiME fitted to a trained MoE-LoRA (the paper's second theorem).

A MoE-LoRA layer has E routed updates `W_e = s B_e A_e`, each (O, I). LiME has one shared update D (O, I) and
modulators `p_e`, (O): its experts are `diag(p_e) D`. Fitted are p and D, minimising

    sum_e || (W_e - diag(p_e) D) C^(1/2) ||^2,   C = E[x x^T] of the layer's inputs (identity where not given).

For each output row this is the best rank-one approximation of the (E, I) matrix of the experts' rows, which a singular
value decomposition gives exactly. What is left is the least error of any shared update; one of low rank has no less
(`error_of_rank`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from lime.method.deltas.moe_lora import MoELoRADelta


@dataclass(frozen=True)
class Approximation:
    """modulators (E, O), shared (O, I). error: relative error, the norm of what is left over the norm of the experts.
    mean_error: the same for one update without modulators, the experts' mean."""

    modulators: np.ndarray
    shared: np.ndarray
    error: float
    mean_error: float


def fit_modulators(experts_EOI: np.ndarray, second_moment_II: np.ndarray | None = None) -> Approximation:
    """Fit shared update and modulators to separate experts.

    Args:
        experts_EOI: updates of the experts.
        second_moment_II: C, symmetric and positive semi-definite, of the layer's inputs.

    Raises:
        ValueError: experts of another shape than (E, O, I), all zero (an untrained adapter) or not finite; a second
            moment that is not finite, not symmetric or not positive semi-definite.
    """
    if experts_EOI.ndim != 3:
        raise ValueError(f"expected updates of shape (E, O, I), got {experts_EOI.shape}")
    experts = np.asarray(experts_EOI, dtype=np.float64)
    if not np.isfinite(experts).all():
        raise ValueError("the experts' updates hold a value that is not finite (NaN or infinite)")
    root = None
    if second_moment_II is not None:
        values, vectors = _spectrum(second_moment_II)
        root = (vectors * np.sqrt(values)) @ vectors.T
        experts = experts @ root
    total = float((experts**2).sum())
    if total == 0.0:
        raise ValueError("the experts' updates are all zero: fit to a trained adapter")
    left_OEk, singular_Ok, right_OkI = np.linalg.svd(experts.transpose(1, 0, 2), full_matrices=False)
    modulators = left_OEk[:, :, 0].T
    shared = singular_Ok[:, :1] * right_OkI[:, 0]
    rest = float(((experts - modulators[:, :, None] * shared) ** 2).sum())
    mean = float(((experts - experts.mean(axis=0)) ** 2).sum())
    if root is not None:
        shared = shared @ np.linalg.pinv(root)
    return Approximation(modulators, shared, (rest / total) ** 0.5, (mean / total) ** 0.5)


def _spectrum(second_moment_II: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (none below 0) and eigenvectors of a second moment; it may be singular."""
    moment_II = np.asarray(second_moment_II, dtype=np.float64)
    if not np.isfinite(moment_II).all():
        raise ValueError("the second moment of the inputs holds a value that is not finite (NaN or infinite)")
    size = float(np.abs(moment_II).max(initial=0.0))
    if moment_II.ndim != 2 or not np.allclose(moment_II, moment_II.T, atol=1e-6 * size):
        raise ValueError(f"expected a symmetric second moment of the inputs, got one of shape {moment_II.shape}")
    values, vectors = np.linalg.eigh(moment_II)
    if values.min() < -1e-6 * size:
        raise ValueError(f"expected a positive semi-definite second moment, got the eigenvalue {values.min():.3g}")
    return np.clip(values, 0.0, None), vectors


def whitened_experts(delta: MoELoRADelta, moment_PP: np.ndarray | None = None, always_on: bool = False) -> np.ndarray:
    """The experts in coordinates in which their distances are those of their outputs on the layer's inputs, (E, O, P):
    X_e = s B_e R_e with R R^T = A C A^T, of which `fit_modulators` finds the same errors as of `W_e` under C.

    So nothing of size (I, I) is needed, only the second moment of `u = A x`.

    Args:
        moment_PP: E[u u^T] over the layer's inputs, P = (E + 1) r; `A A^T` (inputs white) when absent.
        always_on: add the always-on expert to each, as tokens see them.

    Raises:
        ValueError: a second moment of another shape.
    """
    E, r = delta.num_experts, delta.r
    a_PI, b_OP = delta.A.detach().double().numpy(force=True), delta.B.detach().double().numpy(force=True)
    moment = a_PI @ a_PI.T if moment_PP is None else np.asarray(moment_PP, dtype=np.float64)
    if moment.shape != (len(a_PI), len(a_PI)):
        raise ValueError(f"expected a second moment of shape {(len(a_PI), len(a_PI))}, got {moment.shape}")
    values, vectors = _spectrum(moment)
    root_PP = vectors * np.sqrt(values)
    all_EOP = delta.scale * np.stack(
        [b_OP[:, e * r : (e + 1) * r] @ root_PP[e * r : (e + 1) * r] for e in range(E + 1)]
    )
    routed_EOP: np.ndarray = all_EOP[:E] + all_EOP[E:] if always_on else all_EOP[:E]
    return routed_EOP


def error_of_rank(experts_EOP: np.ndarray, rank: int, steps: int = 50) -> float:
    """Relative error of modulators over a shared update of at most this rank.

    By turns the best update of the rank for the modulators (a truncated singular value decomposition) and the best
    modulators for the update; neither makes the error larger. From the fit without a bound on the rank, so a local
    minimum: an upper bound of the least error of the rank.

    Raises:
        ValueError: as `fit_modulators`, or a rank below 1.
    """
    if rank < 1:
        raise ValueError(f"rank: expected at least 1, got {rank}")
    fitted = fit_modulators(experts_EOP)
    experts, p_EO = np.asarray(experts_EOP, dtype=np.float64), fitted.modulators
    total = float((experts**2).sum())
    error = 1.0
    for _ in range(steps):
        # With unit modulators for every output the best update is the truncation of the weighted sum of the experts.
        norm_O = np.linalg.norm(p_EO, axis=0)
        p_EO = p_EO / np.where(norm_O > 0, norm_O, 1.0)
        left_OQ, singular_Q, right_QP = np.linalg.svd(np.einsum("eo,eop->op", p_EO, experts), full_matrices=False)
        shared_OP = (left_OQ[:, :rank] * singular_Q[:rank]) @ right_QP[:rank]
        square_O = (shared_OP**2).sum(axis=1)
        p_EO = np.einsum("eop,op->eo", experts, shared_OP) / np.where(square_O > 0, square_O, 1.0)
        left = float(((experts - p_EO[:, :, None] * shared_OP) ** 2).sum())
        before, error = error, (left / total) ** 0.5
        if before - error < 1e-9:
            break
    return error


def scrambled(experts_EOP: np.ndarray, seed: int = 0) -> np.ndarray:
    """The experts with the outputs of each in an order of its own, (E, O, P): of the same sizes, but unrelated."""
    rng = np.random.default_rng(seed)
    return np.stack([expert_OP[rng.permutation(len(expert_OP))] for expert_OP in experts_EOP])


def mixture_layers(model: nn.Module) -> dict[str, MoELoRADelta]:
    """The MoE-LoRA updates of a model, by module name.

    Raises:
        ValueError: there is none.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, MoELoRADelta) and not module.reads_weight
    }
    if not found:
        raise ValueError("the model has no MoE-LoRA layer; load an adapter that was trained with method=moe_lora")
    return found
