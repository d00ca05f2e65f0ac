"""How well modulation approximates separate experts: LiME fitted to a trained MoE-LoRA (the paper's second theorem).

A MoE-LoRA layer has E routed updates `W_e = s B_e A_e`, each (O, I). LiME has one shared update D (O, I) and
modulators `p_e`, (O): its experts are `diag(p_e) D`. Fitted are p and D, minimising

    sum_e || (W_e - diag(p_e) D) C^(1/2) ||^2,   C = E[x x^T] of the layer's inputs (identity where not given).

For each output row this is the best rank-one approximation of the (E, I) matrix of the experts' rows, which a singular
value decomposition gives exactly. What is left is the least error of any shared update; one of low rank has no less.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def expert_updates(delta: MoELoRADelta) -> np.ndarray:
    """Updates `s B_e A_e` of the routed experts, (E, O, I) in float64; the always-on expert is left out."""
    E, r = delta.num_experts, delta.r
    a_ErI = delta.A.detach().double().numpy(force=True)[: E * r].reshape(E, r, -1)
    b_OEr = delta.B.detach().double().numpy(force=True)[:, : E * r].reshape(-1, E, r)
    return delta.scale * np.einsum("oer,eri->eoi", b_OEr, a_ErI)


def fit_modulators(experts_EOI: np.ndarray, second_moment_II: np.ndarray | None = None) -> Approximation:
    """Fit shared update and modulators to separate experts.

    Args:
        experts_EOI: updates of the experts.
        second_moment_II: C, symmetric and positive semi-definite, of the layer's inputs.

    Raises:
        ValueError: experts of another shape than (E, O, I), or all zero (an untrained adapter).
    """
    if experts_EOI.ndim != 3:
        raise ValueError(f"expected updates of shape (E, O, I), got {experts_EOI.shape}")
    experts = np.asarray(experts_EOI, dtype=np.float64)
    root = None
    if second_moment_II is not None:
        values, vectors = np.linalg.eigh(np.asarray(second_moment_II, dtype=np.float64))
        root = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
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


def approximation_by_layer(
    model: nn.Module, second_moments: Mapping[str, np.ndarray] | None = None
) -> dict[str, Approximation]:
    """Fit every MoE-LoRA layer of a model, by module name; `second_moments` of their inputs by the same name.

    Raises:
        ValueError: the model has no MoE-LoRA layer.
    """
    found = {
        name: fit_modulators(expert_updates(module), (second_moments or {}).get(name))
        for name, module in model.named_modules()
        if isinstance(module, MoELoRADelta)
    }
    if not found:
        raise ValueError("the model has no MoE-LoRA layer; load an adapter that was trained with method=moe_lora")
    return found
