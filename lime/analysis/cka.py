"""Centred kernel alignment: how alike two layers represent the same tokens.

    CKA(X, Y) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),   K = X X^T, L = Y Y^T

with the unbiased estimator of HSIC (Song et al. 2012, equation 4), so that independent representations come out near 0
however wide they are and however few the samples; the biased one (Kornblith et al. 2019) then gives values near 1.

Shapes: N samples (the same in both), D and F features.
"""

from __future__ import annotations

import numpy as np


class NoVariation(ValueError):
    """A representation that does not vary over the samples: it has no CKA."""


def linear_cka(x_ND: np.ndarray, y_NF: np.ndarray) -> float:
    """Unbiased linear CKA; 1 for a representation with itself, unchanged by rotation, shift and scale of either side.

    As its numerator is unbiased it may fall slightly below 0 for independent representations.

    Raises:
        ValueError: other than two matrices with the same N of at least 4 rows, or a value that is not finite.
        NoVariation: a side that does not vary.
    """
    return _cka(*_grams(x_ND, y_NF))


def cka_replicates(x_ND: np.ndarray, y_NF: np.ndarray, groups_N: np.ndarray) -> np.ndarray:
    """`linear_cka` without the samples of each group, (G,), for `lime.analysis.resampling.jackknife_interval`.

    Raises:
        ValueError: as `linear_cka`.
    """
    k_NN, l_NN = _grams(x_ND, y_NF)
    kept = [np.flatnonzero(groups_N != group) for group in np.unique(groups_N)]
    return np.array([_cka(k_NN[np.ix_(rest, rest)], l_NN[np.ix_(rest, rest)]) for rest in kept])


def _grams(x_ND: np.ndarray, y_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if x_ND.ndim != 2 or y_NF.ndim != 2 or len(x_ND) != len(y_NF) or len(x_ND) < 4:
        raise ValueError(f"expected two matrices of the same 4 or more rows, got {x_ND.shape} and {y_NF.shape}")
    for side, values in (("first", x_ND), ("second", y_NF)):
        if not np.isfinite(values).all():
            raise ValueError(f"the {side} representation holds a value that is not finite (NaN or infinite)")
    return _gram(x_ND), _gram(y_NF)


def _cka(k_NN: np.ndarray, l_NN: np.ndarray) -> float:
    own, other = unbiased_hsic(k_NN, k_NN), unbiased_hsic(l_NN, l_NN)
    if own <= 0 or other <= 0:
        raise NoVariation("a representation that does not vary over the samples has no CKA")
    return unbiased_hsic(k_NN, l_NN) / float(np.sqrt(own * other))


def unbiased_hsic(k_NN: np.ndarray, l_NN: np.ndarray) -> float:
    """HSIC of two Gram matrices of N >= 4 samples (Song et al. 2012): with zeroed diagonals,

    [tr(K L) + 1'K1 1'L1 / ((N-1)(N-2)) - 2/(N-2) 1'K L 1] / (N (N-3)).
    """
    n = len(k_NN)
    k, m = k_NN - np.diag(np.diag(k_NN)), l_NN - np.diag(np.diag(l_NN))
    rows_k, rows_m = k.sum(0), m.sum(0)
    total = (k * m).sum() + rows_k.sum() * rows_m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (rows_k @ rows_m)
    return float(total / (n * (n - 3)))


def _gram(x_ND: np.ndarray) -> np.ndarray:
    """Gram matrix of the centred samples, brought to magnitude 1."""
    x = np.asarray(x_ND, dtype=np.float64)
    x = x - x.mean(axis=0)
    x = x / (np.abs(x).max() or 1.0)
    return x @ x.T
