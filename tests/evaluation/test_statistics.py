"""Intervals against scipy and published values, and the bootstrap against what it must converge to."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lime.evaluation.statistics import (
    bootstrap_correlations,
    bootstrap_means,
    correlation,
    fisher_interval,
    percentile_interval,
    randomised_interval,
    wilson_interval,
)


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_is_scipys(n: int, share: float) -> None:
    k = round(share * n)
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_published_examples() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_impossible_counts(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="0 <= successes <= n"):
        wilson_interval(k, n)


def test_correlation_is_scipys() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    y = np.round(0.7 * x + rng.normal(size=40), 1)  # with ties
    assert correlation(x, y, "pearson") == pytest.approx(stats.pearsonr(x, y).statistic)
    assert correlation(x, y, "spearman") == pytest.approx(stats.spearmanr(x, y).statistic)
    low, high = stats.pearsonr(x, y).confidence_interval(0.95)
    assert fisher_interval(stats.pearsonr(x, y).statistic, 40) == pytest.approx((low, high))


def test_correlation_of_a_constant_is_undefined() -> None:
    constant, varying = np.full(5, 2.5), np.arange(5.0)
    for kind in ("pearson", "spearman"):
        assert correlation(constant, varying, kind) is None
        assert correlation(varying, constant, kind) is None
        assert correlation(varying[:1], varying[:1], kind) is None
        assert correlation(varying, -varying, kind) == pytest.approx(-1.0)
    with pytest.raises(ValueError, match="one length"):
        correlation(varying, varying[:2], "pearson")
    with pytest.raises(ValueError, match="pearson or spearman"):
        correlation(varying, varying, "kendall")


def test_fisher_interval_at_its_limits() -> None:
    assert fisher_interval(0.3, 3) == (-1.0, 1.0)
    assert fisher_interval(1.0, 50) == (1.0, 1.0)
    assert fisher_interval(-1.0, 50) == (-1.0, -1.0)
    low, high = fisher_interval(0.8, 50)
    wide_low, wide_high = fisher_interval(0.8, 50, "spearman")
    assert wide_low < low < 0.8 < high < wide_high < 1
    # Bonett and Wright: standard error sqrt((1 + r^2 / 2) / (n - 3)) on the z scale
    assert math.atanh(wide_high) - math.atanh(0.8) == pytest.approx(1.959964 * math.sqrt(1.32 / 47), abs=1e-5)


CELLS = [(n, p) for n in (20, 100, 1000) for p in (0.05, 0.5, 0.95)]
TRIALS = 2000


def exact_coverage(intervals: list[tuple[float, float]], n: int, p: float) -> float:
    low, high = np.array(intervals).T
    return float(stats.binom.pmf(np.arange(n + 1), n, p)[(low <= p) & (p <= high)].sum())


@pytest.mark.parametrize(("n", "p"), CELLS)
def test_the_randomised_interval_covers_in_93_to_97_percent_of_trials(n: int, p: float) -> None:
    rng = np.random.default_rng(1)
    counts, uniforms = rng.binomial(n, p, size=TRIALS), rng.random(TRIALS)
    low, high = np.array([randomised_interval(int(k), n, u) for k, u in zip(counts, uniforms, strict=True)]).T
    assert 0.93 <= np.mean((low <= p) & (p <= high)) <= 0.97


@pytest.mark.parametrize(("n", "p"), CELLS)
def test_wilson_covers_as_it_claims(n: int, p: float) -> None:
    """Exactly, and in simulation; at n = 20 with p = 0.05 or 0.95 no interval of the count alone gets to 93 to 97%."""
    intervals = [wilson_interval(k, n) for k in range(n + 1)]
    exact = exact_coverage(intervals, n, p)
    low, high = np.array(intervals)[np.random.default_rng(1).binomial(n, p, size=TRIALS)].T
    simulated = np.mean((low <= p) & (p <= high))
    assert simulated == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / TRIALS))
    if n == 20 and p != 0.5:
        assert exact == pytest.approx(0.9245, abs=1e-4)
        chances = np.concatenate([[0.0], stats.binom.cdf(np.arange(n + 1), n, p)])
        possible = chances[None, :] - chances[:, None]  # of counts in any range, the only sets an interval can cover
        assert not np.any((possible > 0.9246) & (possible < 0.984))
    else:
        assert 0.93 <= simulated <= 0.97


def test_the_randomised_interval_by_hand() -> None:
    n, k, u = 20, 3, 0.25
    for bound, level in zip(randomised_interval(k, n, u), (0.975, 0.025), strict=True):
        assert stats.binom.cdf(k - 1, n, bound) + u * stats.binom.pmf(k, n, bound) == pytest.approx(level)
    assert randomised_interval(0, 5, 0.5)[0] == 0.0
    assert randomised_interval(5, 5, 0.5)[1] == 1.0
    assert randomised_interval(0, 5, 0.01) == (0.0, 0.0)
    for wrong in ((3, 2, 0.5), (0, 0, 0.5), (1, 2, 1.0)):
        with pytest.raises(ValueError, match="uniform"):
            randomised_interval(*wrong)


def test_bootstrap_of_means_is_that_of_resampled_rows() -> None:
    values = np.array([0.0] * 30 + [1.0] * 15 + [-1.0] * 5)
    fast = bootstrap_means(values, 20000, np.random.default_rng(0))
    rows = values[np.random.default_rng(1).integers(0, 50, size=(20000, 50))].mean(axis=1)
    assert fast.mean() == pytest.approx(values.mean(), abs=0.003)
    assert fast.std() == pytest.approx(rows.std(), rel=0.03)
    assert stats.ks_2samp(fast, rows).pvalue > 1e-3
    with pytest.raises(ValueError, match="empty"):
        bootstrap_means([], 10, np.random.default_rng(0))


def test_bootstrap_is_seeded() -> None:
    values = np.arange(10.0)
    one, same, other = (bootstrap_means(values, 50, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_bootstrap_of_correlations() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=80)
    x = 0.8 * y + 0.6 * rng.normal(size=80)
    constant = np.full(80, 3.0)
    samples = bootstrap_correlations([x, constant], y, 2000, np.random.default_rng(1))
    assert samples.shape == (2, 2000)
    assert np.all(samples[1] == 0)
    low, high = percentile_interval(samples[0])
    fisher_low, fisher_high = fisher_interval(float(np.corrcoef(x, y)[0, 1]), 80)
    assert low == pytest.approx(fisher_low, abs=0.05)
    assert high == pytest.approx(fisher_high, abs=0.05)
    picks = np.random.default_rng(1).integers(0, 80, size=(2000, 80))[7]
    assert samples[0, 7] == pytest.approx(np.corrcoef(x[picks], y[picks])[0, 1])
