"""Rows that come from one picture or clip are not independent: a bootstrap that draws source media, not rows.

Every medium gets a Poisson(1) weight in every resample, from a generator seeded by its name, and all its rows carry
that weight, in whatever split they lie (Hanley and MacGibbon 2006; Field and Welsh 2007 for whole clusters). So the
interval of a split does not depend on which other splits are scored, and a mean over splits that share clips has the
right variance. Rows without media are their own cluster.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

VIDEO_SUFFIXES = frozenset({".mp4", ".webm", ".avi", ".mkv", ".mov", ".gif"})
_TAMPERING = re.compile(
    r"(?:^|(?<=[/_\-. ]))(?:original|masking|repetition|substitution|dropping|rotate|masked|repeated|substituted"
    r"|dropped|rotated)(?:$|(?=[/_\-. ]))"
)


def source_media(media_path: str) -> str:
    """The medium a row was made from, "" for text.

    For a clip this is its path without the words that name a tampering, so that the original and the tampered versions
    of a clip (`a/masking/7.mp4`, `a/rotate/7.mp4`, `7_dropping.mp4`) count as one.
    """
    suffix = PurePosixPath(media_path).suffix
    if suffix.lower() not in VIDEO_SUFFIXES:
        return media_path
    stem = _TAMPERING.sub("", media_path.lower().removesuffix(suffix.lower()))
    return re.sub(r"[/_\-. ]{2,}", "/", stem).strip("/_-. ")


def cluster_weights(clusters: Sequence[str], resamples: int, seed: int) -> np.ndarray:
    """Bootstrap weights of rows, (resamples, n) float32: one Poisson(1) draw per named cluster and resample.

    clusters: one name per row, never empty. A resample in which every row of a split would get weight 0 takes all of
    them once, as a bootstrap of rows never draws nothing.
    """
    distinct, index = np.unique(np.asarray(clusters), return_inverse=True)
    drawn = np.empty((resamples, len(distinct)), dtype=np.float32)
    for column, name in enumerate(distinct):
        encoded = str(name).encode()
        rng = np.random.default_rng([seed, zlib.crc32(encoded), zlib.adler32(encoded), len(encoded)])
        drawn[:, column] = rng.poisson(1.0, size=resamples)
    drawn[drawn.sum(axis=1) == 0] = 1.0
    return drawn[:, index]


def weighted_means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means of `values` (n,) under each row of `weights` (resamples, n): (resamples,)."""
    return (weights @ np.asarray(values, dtype=float)) / weights.sum(axis=1, dtype=float)


def weighted_correlations(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson correlations of two columns (n,) under each row of `weights`: (resamples,); 0 where undefined."""
    x, y = (np.asarray(v, dtype=float) / (np.abs(v).max() or 1.0) for v in (x, y))
    total = weights.sum(axis=1, dtype=float)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    covariance = weights @ (x * y) / total - mean_x * mean_y
    spread = (weights @ (x * x) / total - mean_x**2) * (weights @ (y * y) / total - mean_y**2)
    # Below 1e-12 the spread of values of magnitude 1 is rounding, not spread.
    return np.divide(covariance, np.sqrt(np.maximum(spread, 0)), out=np.zeros_like(covariance), where=spread > 1e-12)
