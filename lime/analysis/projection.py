"""Maps in two dimensions, and how much of a cloud of points its groups explain.

Shapes: N points, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Projection:
    """points (N, 2): coordinates on the first two principal components. explained: share of the variance of each."""

    points: np.ndarray
    explained: tuple[float, float]


def principal_components(x_ND: np.ndarray) -> Projection:
    """The first two principal components; the larger half of each axis is made positive, so that signs are settled.

    Raises:
        ValueError: fewer than 3 points or 2 features, or points that do not vary.
    """
    if x_ND.ndim != 2 or len(x_ND) < 3 or x_ND.shape[1] < 2:
        raise ValueError(f"expected at least 3 points of 2 features, got {x_ND.shape}")
    x = np.asarray(x_ND, dtype=np.float64)
    x = x - x.mean(axis=0)
    total = float((x**2).sum())
    if total == 0.0:
        raise ValueError("the points do not vary: there is nothing to draw")
    left_NK, singular_K, _ = np.linalg.svd(x, full_matrices=False)
    points = left_NK[:, :2] * singular_K[:2]
    points = points * np.where((points**3).sum(axis=0) < 0, -1.0, 1.0)
    shares = singular_K[:2] ** 2 / total
    return Projection(points, (float(shares[0]), float(shares[1])))


@dataclass(frozen=True)
class Separation:
    """value: share of the variance that lies between the groups' means (eta squared), 0 to 1. null: its mean over
    random assignments of points to groups. p: share of these assignments that give at least the value."""

    value: float
    null: float
    p: float


def separation(x_ND: np.ndarray, groups: Sequence[int], permutations: int = 200, seed: int = 0) -> Separation:
    """How much of the points' variance their groups explain, `sum_g n_g |mean_g - mean|^2 / sum_n |x_n - mean|^2`.

    Raises:
        ValueError: points that do not vary, or another number of groups than of points.
    """
    x = np.asarray(x_ND, dtype=np.float64)
    if len(x) != len(groups):
        raise ValueError(f"expected a group for each of {len(x)} points, got {len(groups)}")
    x = x - x.mean(axis=0)
    total = float((x**2).sum())
    if total == 0.0:
        raise ValueError("the points do not vary")
    _, index_N = np.unique(np.asarray(groups), return_inverse=True)
    count_K = np.bincount(index_N)

    def between(order_N: np.ndarray) -> float:
        sums_KD = np.eye(len(count_K))[order_N].T @ x
        return float(((sums_KD**2).sum(axis=1) / count_K).sum() / total)

    rng = np.random.default_rng(seed)
    value = between(index_N)
    null = np.array([between(rng.permutation(index_N)) for _ in range(permutations)])
    return Separation(value, float(null.mean()), float((1 + (null >= value - 1e-12).sum()) / (1 + permutations)))
