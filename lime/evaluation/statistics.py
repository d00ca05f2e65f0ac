"""Wilson's interval and correlations. `lime.evaluation.intervals` builds every interval of a score on them."""

from __future__ import annotations

import math

import numpy as np
import scipy

Interval = tuple[float, float]
CONFIDENCE = 0.95


def _normal_quantile(confidence: float) -> float:
    return float(scipy.stats.norm.ppf(0.5 + confidence / 2))


def t_quantile(degrees: float) -> float:
    """Half the width of a 95% interval in standard errors, with these degrees of freedom."""
    return float(scipy.stats.t.ppf(0.5 + CONFIDENCE / 2, degrees))


def wilson_interval(successes: float, n: float, confidence: float = CONFIDENCE) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927), within [0, 1].

    Its coverage comes near the nominal one but moves with n and p, because counts are discrete: exactly 92.5% at n = 20
    and p = 0.05, where no interval that depends on the count alone covers between 92.5% and 98.4%; 94.3% to 96.6% at
    p = 0.05, 0.5 and 0.95 with n = 100 and 1000. Counts may be fractions, as effective ones are.

    Raises ValueError unless 0 <= successes <= n and n > 0.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n and n > 0, got successes={successes}, n={n}")
    z = _normal_quantile(confidence)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the bound is exactly 0 or 1; rounding would leave 1e-17.
    return (0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def correlation(x: np.ndarray, y: np.ndarray, kind: str) -> float | None:
    """Pearson or Spearman correlation of two equally long vectors; None where undefined (n < 2, or one is
    constant)."""
    if kind not in ("pearson", "spearman"):
        raise ValueError(f"expected kind pearson or spearman, got {kind!r}")
    if len(x) != len(y):
        raise ValueError(f"expected vectors of one length, got {len(x)} and {len(y)}")
    if kind == "spearman":
        x, y = scipy.stats.rankdata(x), scipy.stats.rankdata(y)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.clip(np.corrcoef(_scaled(x), _scaled(y))[0, 1], -1.0, 1.0))


def _scaled(values: np.ndarray) -> np.ndarray:
    """Divided by the largest magnitude: correlations stay, and squares of huge values do not overflow."""
    values = np.asarray(values, dtype=float)
    return values / (np.abs(values).max() or 1.0)
