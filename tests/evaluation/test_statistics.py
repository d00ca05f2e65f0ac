"""Wilson's interval and correlations against scipy and published values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lime.evaluation.statistics import correlation, wilson_interval


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


CELLS = [(n, p) for n in (20, 100, 1000) for p in (0.05, 0.5, 0.95)]
TRIALS = 2000


def exact_coverage(intervals: list[tuple[float, float]], n: int, p: float) -> float:
    low, high = np.array(intervals).T
    return float(stats.binom.pmf(np.arange(n + 1), n, p)[(low <= p) & (p <= high)].sum())


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
