"""Intervals and resampling. All intervals are 95% and two-sided unless told otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special, stats

Interval = tuple[float, float]
CONFIDENCE = 0.95


def _normal_quantile(confidence: float) -> float:
    return float(stats.norm.ppf(0.5 + confidence / 2))


def wilson_interval(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927), within [0, 1].

    Its coverage comes near the nominal one but moves with n and p, because counts are discrete: exactly 92.5% at n = 20
    and p = 0.05, where no interval that depends on the count alone covers between 92.5% and 98.4%; 94.3% to 96.6% at
    p = 0.05, 0.5 and 0.95 with n = 100 and 1000. `randomised_interval` has none of that.

    Raises ValueError unless 0 <= successes <= n and n >= 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n and n >= 1, got successes={successes}, n={n}")
    z = _normal_quantile(confidence)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the bound is exactly 0 or 1; rounding would leave 1e-17.
    return (0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def randomised_interval(successes: int, n: int, uniform: float, confidence: float = CONFIDENCE) -> Interval:
    """Interval of a proportion with exactly the nominal coverage at every n and p (Stevens 1950).

    Inverts the distribution of `successes + uniform`, uniform ~ U(0, 1) drawn independently of the data:
    `P(X < k) + u P(X = k)` falls from 1 to 0 as p grows, and is (1 + confidence) / 2 at the lower and
    (1 - confidence) / 2 at the upper bound. As it depends on a draw, it is for checking calibration, not for tables.

    Raises ValueError unless 0 <= successes <= n, n >= 1 and 0 <= uniform < 1.
    """
    if n < 1 or not 0 <= successes <= n or not 0 <= uniform < 1:
        raise ValueError(
            f"expected 0 <= successes <= n, n >= 1 and 0 <= uniform < 1, got {successes}, n={n}, uniform={uniform}"
        )

    def below(p: float) -> float:
        less = float(special.bdtr(successes - 1, n, p)) if successes else 0.0
        return less + uniform * (float(special.bdtr(successes, n, p)) - less)

    def bound(level: float) -> float:
        if below(0.0) <= level:
            return 0.0
        if below(1.0) >= level:
            return 1.0
        return float(optimize.brentq(lambda p: below(p) - level, 0.0, 1.0, xtol=1e-12))

    return bound(0.5 + confidence / 2), bound(0.5 - confidence / 2)


def correlation(x: np.ndarray, y: np.ndarray, kind: str) -> float | None:
    """Pearson or Spearman correlation of two equally long vectors; None where undefined (n < 2, or one is
    constant)."""
    if kind not in ("pearson", "spearman"):
        raise ValueError(f"expected kind pearson or spearman, got {kind!r}")
    if len(x) != len(y):
        raise ValueError(f"expected vectors of one length, got {len(x)} and {len(y)}")
    if kind == "spearman":
        x, y = stats.rankdata(x), stats.rankdata(y)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.clip(np.corrcoef(_scaled(x), _scaled(y))[0, 1], -1.0, 1.0))


def _scaled(values: np.ndarray) -> np.ndarray:
    """Divided by the largest magnitude: correlations stay, and squares of huge values do not overflow."""
    values = np.asarray(values, dtype=float)
    return values / (np.abs(values).max() or 1.0)


def fisher_interval(r: float, n: int, kind: str = "pearson", confidence: float = CONFIDENCE) -> Interval:
    """Interval of a correlation by Fisher's z = atanh(r).

    Standard error 1/sqrt(n - 3) for Pearson (Fisher 1921), sqrt((1 + r^2/2)/(n - 3)) for Spearman (Bonett and
    Wright 2000). With n <= 3 nothing is known: (-1, 1).
    """
    if n <= 3:
        return (-1.0, 1.0)
    if abs(r) >= 1.0:
        return (r, r)
    spread = 1 + r * r / 2 if kind == "spearman" else 1.0
    half = _normal_quantile(confidence) * math.sqrt(spread / (n - 3))
    z = math.atanh(r)
    return (math.tanh(z - half), math.tanh(z + half))


def bootstrap_means(values: Sequence[float] | np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Means of `resamples` bootstrap samples of `values`: (resamples,).

    Drawing rows with replacement is drawing multinomial counts of the distinct values, so the cost does not
    grow with the number of rows.
    """
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        raise ValueError("cannot resample an empty list of values")
    distinct, counts = np.unique(array, return_counts=True)
    drawn = rng.multinomial(array.size, counts / array.size, size=resamples)
    return drawn @ distinct / array.size


def bootstrap_correlations(
    columns: Sequence[np.ndarray], truth: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Pearson correlations of each column with `truth` over shared resamples of rows: (len(columns),
    resamples).

    A resample in which either side is constant counts as 0, like an undefined correlation elsewhere.
    """
    n = len(truth)
    picks = rng.integers(0, n, size=(resamples, n))

    def centred(values: np.ndarray) -> np.ndarray:
        drawn = _scaled(values)[picks]
        return drawn - drawn.mean(axis=1, keepdims=True)

    y = centred(truth)
    y_norm = np.sqrt((y * y).sum(axis=1))
    rows = []
    for column in columns:
        x = centred(column)
        scale = np.sqrt((x * x).sum(axis=1)) * y_norm
        product = (x * y).sum(axis=1)
        rows.append(np.divide(product, scale, out=np.zeros_like(product), where=scale > 1e-12))
    return np.stack(rows)


def percentile_interval(samples: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """Central percentile interval of bootstrap samples."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return (float(low), float(high))
