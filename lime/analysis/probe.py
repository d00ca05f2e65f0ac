"""Linear probes: how well a label can be read off a representation by a linear map.

Least squares with a ridge penalty onto the labels' indicators, features standardised by the training rows; the penalty
is the best on one fold that is neither trained on nor tested. Every row is tested once, by a probe that saw no row of
its fold. All labels count alike, whatever their share of the training rows: features that tell nothing come out at
chance, and not below it for labels that a fold has too few of. Features that come in several samples for a row
(windows) count as one row: its mean accuracy.

Shapes: N samples, D features, K classes, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridge penalties that are tried, in units of the number of training samples."""


@dataclass(frozen=True)
class Probed:
    """correct (R,): share of each row's samples whose label was read correctly. chance: share of the most frequent
    label."""

    correct: np.ndarray
    chance: float

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


def probe(x_ND: np.ndarray, labels: Sequence[str], folds: Sequence[int], rows: Sequence[int] | None = None) -> Probed:
    """Read labels off features, each fold by the others.

    Args:
        x_ND: features.
        labels: the label of each sample.
        folds: the fold of each sample, 0..F-1 with F at least 3; all samples of a row in one.
        rows: the row of each sample, 0..R-1; a row each when absent.

    Raises:
        ValueError: lengths that do not fit, a feature that is not finite, fewer than three folds or two labels, or a
            row in two folds.
    """
    x, fold_N = np.asarray(x_ND, dtype=np.float64), np.asarray(folds)
    row_N = np.arange(len(x)) if rows is None else np.asarray(rows)
    if x.ndim != 2 or not len(x) == len(labels) == len(fold_N) == len(row_N):
        raise ValueError(f"expected a label, a fold and a row for each of {len(x)} samples")
    if not np.isfinite(x).all():
        raise ValueError("the features to probe hold a value that is not finite (NaN or infinite)")
    names, index_N = np.unique(np.asarray(labels), return_inverse=True)
    used = np.unique(fold_N)
    if len(used) < 3 or len(names) < 2:
        raise ValueError(f"expected at least 3 folds and 2 labels, got {len(used)} and {len(names)}")
    if len(np.unique(np.stack([row_N, fold_N]), axis=1).T) != len(np.unique(row_N)):
        raise ValueError("a row lies in two folds: its samples would be trained on and tested")
    right_N = np.zeros(len(x))
    for place, fold in enumerate(used):
        test_N, tune_N = fold_N == fold, fold_N == used[(place + 1) % len(used)]
        train_N = ~(test_N | tune_N)
        trial = _fitted(x[train_N], index_N[train_N], len(names))
        scores = [(_predict(trial, x[tune_N], penalty) == index_N[tune_N]).mean() for penalty in PENALTIES]
        best = PENALTIES[int(np.argmax(scores))]
        fitted = _fitted(x[~test_N], index_N[~test_N], len(names))
        right_N[test_N] = _predict(fitted, x[test_N], best) == index_N[test_N]
    correct_R = np.bincount(row_N, weights=right_N) / np.bincount(row_N)
    return Probed(correct_R, float(np.bincount(index_N).max() / len(index_N)))


@dataclass(frozen=True)
class _Fitted:
    """Singular vectors of the standardised features, so that every penalty costs one product."""

    mean_D: np.ndarray
    scale_D: np.ndarray
    vectors_DQ: np.ndarray
    values_Q: np.ndarray
    projected_QK: np.ndarray


def _fitted(x_ND: np.ndarray, index_N: np.ndarray, classes: int) -> _Fitted:
    mean_D, scale_D = x_ND.mean(axis=0), x_ND.std(axis=0)
    scale_D = np.where(scale_D > 1e-8 * max(float(scale_D.max()), 1e-30), scale_D, np.inf)
    z_ND = (x_ND - mean_D) / scale_D
    target_NK = np.eye(classes)[index_N]
    left_NQ, singular_Q, right_QD = np.linalg.svd(z_ND / np.sqrt(len(z_ND)), full_matrices=False)
    projected_QK = singular_Q[:, None] * (left_NQ.T @ (target_NK - target_NK.mean(axis=0))) / np.sqrt(len(z_ND))
    return _Fitted(mean_D, scale_D, right_QD.T, singular_Q**2, projected_QK)


def _predict(fitted: _Fitted, x_ND: np.ndarray, penalty: float) -> np.ndarray:
    """Index of the label with the largest score, (N,)."""
    z_NQ = ((x_ND - fitted.mean_D) / fitted.scale_D) @ fitted.vectors_DQ
    scores_NK = z_NQ @ (fitted.projected_QK / (fitted.values_Q + penalty)[:, None])
    found: np.ndarray = scores_NK.argmax(axis=1)
    return found
