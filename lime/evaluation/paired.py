"""Do two runs differ, or is it noise? Paired tests on the same rows, and their correction over many tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy


def sign_flip(differences: Sequence[float] | np.ndarray, clusters: Sequence[str] | None = None) -> float:
    """McNemar's exact test in its mid-p form, also for rows in clusters: two-sided, with whole clusters' signs flipped.

    differences: correct in B less correct in A, whole numbers, one per row. Under the null hypothesis the two runs are
    exchangeable in each cluster, so each cluster's sum is as likely with the other sign; the distribution of the total
    over all sign patterns is worked out exactly. With one row per cluster this is McNemar's: 2 P(K <= min) - P(K = min)
    with K ~ Binomial(discordant rows, 1/2). The mid-p form keeps its level where the plain exact test is too cautious
    and the chi-square form is too bold (Fagerland, Lydersen and Laake 2013).

    Raises ValueError for differences that are not whole numbers, or another number of clusters.
    """
    values = np.asarray(differences, dtype=float)
    whole = np.rint(values).astype(int)
    if not np.array_equal(values, whole):
        raise ValueError("differences: expected whole numbers (correct in B less correct in A)")
    if clusters is not None:
        if len(clusters) != len(whole):
            raise ValueError(f"{len(whole)} differences, but {len(clusters)} clusters")
        _, index = np.unique(np.asarray(clusters), return_inverse=True)
        whole = np.bincount(index, weights=whole).round().astype(int)
    sizes = np.abs(whole[whole != 0])
    if sizes.size == 0:
        return 1.0
    total, observed = int(sizes.sum()), abs(int(whole.sum()))
    if sizes.max() == 1:
        least = (total - observed) // 2
        return float(min(2 * scipy.stats.binom.cdf(least, total, 0.5) - scipy.stats.binom.pmf(least, total, 0.5), 1.0))
    # Probability of (sum + total) / 2 = the sum of the sizes whose sign came out positive.
    chances = np.ones(1)
    for size, count in zip(*np.unique(sizes, return_counts=True), strict=True):
        steps = np.zeros(size * count + 1)
        steps[::size] = scipy.stats.binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, steps)
    sums = 2 * np.arange(total + 1) - total
    beyond, at = chances[np.abs(sums) > observed].sum(), chances[np.abs(sums) == observed].sum()
    return float(min(beyond + (at / 2 if observed else at), 1.0))


def flip_at_random(
    differences: np.ndarray, clusters: Sequence[str], rng: np.random.Generator, resamples: int = 2000
) -> float:
    """Two-sided p of a mean difference that is no count: the signs of whole clusters' sums are flipped, at random where
    there are more patterns than `resamples` (`scipy.stats.permutation_test`)."""
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(index, weights=np.asarray(differences, dtype=float))
    if len(sums) < 2 or not sums.any():
        return 1.0
    return float(
        scipy.stats.permutation_test(
            (sums,), np.sum, permutation_type="samples", vectorized=True, n_resamples=resamples, rng=rng
        ).pvalue
    )


def swap_correlations(
    a: np.ndarray,
    b: np.ndarray,
    truth: np.ndarray,
    clusters: Sequence[str],
    rng: np.random.Generator,
    resamples: int = 2000,
) -> float:
    """Two-sided p of a difference of Pearson correlations: the two runs' answers are swapped at random, those of a
    cluster together.

    p = (1 + number of swaps at least as far apart) / (1 + resamples). Columns are brought to mean 0 and variance 1
    first, so that a mere change of scale is no difference.
    """
    if len(a) < 2:
        return 1.0

    def standard(values: np.ndarray) -> np.ndarray:
        spread = values.std()
        return (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)

    a, b, truth = standard(np.asarray(a, float)), standard(np.asarray(b, float)), standard(np.asarray(truth, float))

    def correlations(columns: np.ndarray) -> np.ndarray:
        centred = columns - columns.mean(axis=1, keepdims=True)
        norm = np.sqrt((centred**2).sum(axis=1)) * np.sqrt((truth**2).sum())
        return np.divide(centred @ truth, norm, out=np.zeros(len(columns)), where=norm > 1e-12)

    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    swap = (rng.random((resamples, len(names))) < 0.5)[:, index]
    first, second = np.where(swap, b, a), np.where(swap, a, b)
    observed = abs(float(np.diff(correlations(np.stack([a, b])))[0]))
    apart = np.abs(correlations(second) - correlations(first))
    return float((1 + (apart >= observed - 1e-12).sum()) / (1 + resamples))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of m tests by Holm's step-down (1979); the chance of any false alarm stays below the level.

    The i-th smallest becomes max over j <= i of min(1, (m - j + 1) p_(j)).

    Raises ValueError for a value outside [0, 1].
    """
    p = np.asarray(p_values, dtype=float)
    if p.size and (p.min() < 0 or p.max() > 1 or np.isnan(p).any()):
        raise ValueError("expected p-values between 0 and 1")
    order = np.argsort(p, kind="stable")
    scaled = np.minimum(1.0, p[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(scaled)
    return [float(value) for value in adjusted]
