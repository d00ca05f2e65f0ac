"""Paired tests against scipy and by simulation: they keep their level, and whole media count once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from lime.evaluation.paired import flip_at_random, holm, sign_flip, swap_correlations

TRIALS = 2000


def mcnemar(only_a: int, only_b: int) -> float:
    return sign_flip([-1] * only_a + [1] * only_b + [0] * 30)


def test_mcnemar_is_the_mid_p_of_the_exact_binomial() -> None:
    assert mcnemar(0, 0) == 1.0
    exact = stats.binomtest(3, 14).pvalue
    assert mcnemar(3, 11) == pytest.approx(exact - stats.binom.pmf(3, 14, 0.5), abs=1e-12)
    assert mcnemar(3, 11) == mcnemar(11, 3)


@pytest.mark.parametrize("n", [20, 100, 1000])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_true_null_is_rejected_in_at_most_6_percent(n: int, share: float) -> None:
    """Two runs of equal skill with partly shared errors."""
    rng = np.random.default_rng(7)
    skill = rng.random((TRIALS, n)) < 0.5
    both = rng.random((TRIALS, n)) < share
    one, two = (np.where(skill, both, rng.random((TRIALS, n)) < share) for _ in range(2))
    counts = np.stack([(one & ~two).sum(1), (~one & two).sum(1)], 1)
    tested = {pair: mcnemar(*pair) for pair in {tuple(map(int, c)) for c in counts}}
    assert np.mean([tested[tuple(map(int, c))] < 0.05 for c in counts]) <= 0.06


def test_sign_flip_of_clusters_is_an_enumeration() -> None:
    values = np.array([1, 1, -1, 1, 0, 1, 1])
    clusters = ["a", "a", "b", "c", "c", "d", "d"]
    sums = np.array([2, -1, 1, 2])
    totals = np.array([(sums * signs).sum() for signs in itertools.product((-1, 1), repeat=4)])
    expected = (np.abs(totals) > 4).mean() + (np.abs(totals) == 4).mean() / 2
    assert sign_flip(values, clusters) == pytest.approx(expected)
    assert sign_flip([0, 0]) == sign_flip([1, -1], ["a", "a"]) == 1.0
    with pytest.raises(ValueError, match="whole numbers"):
        sign_flip([0.5])
    with pytest.raises(ValueError, match="2 differences, but 1 clusters"):
        sign_flip([1, 1], ["a"])


def test_rows_of_one_medium_do_not_multiply_the_evidence() -> None:
    """Six copies of each row: by rows the null would be rejected far too often, by media it is not."""
    rng = np.random.default_rng(3)
    clusters = [f"clip{i}" for i in range(15) for _ in range(6)]
    by_rows, by_media = [], []
    for _ in range(500):
        differences = np.repeat(rng.integers(-1, 2, size=15), 6)
        by_rows.append(sign_flip(differences) < 0.05)
        by_media.append(sign_flip(differences, clusters) < 0.05)
    assert np.mean(by_media) <= 0.06
    assert np.mean(by_rows) > 0.3


def test_swapping_answers_keeps_its_level_and_sees_a_difference() -> None:
    rng = np.random.default_rng(0)
    rejected = []
    names = [str(i) for i in range(200)]
    for _ in range(300):
        truth = rng.normal(size=40)
        one, two = (truth + rng.normal(size=40) for _ in range(2))
        rejected.append(swap_correlations(one, two, truth, names[:40], rng, 199) < 0.05)
    assert np.mean(rejected) <= 0.06 + 2 * np.sqrt(0.05 * 0.95 / 300)
    truth = rng.normal(size=200)
    good, bad = truth + 0.3 * rng.normal(size=200), truth + 3 * rng.normal(size=200)
    assert swap_correlations(good, bad, truth, names, rng) < 0.01
    assert swap_correlations(good, 5 + 100 * good, truth, names, rng) == 1.0  # another scale is no difference


def test_flipping_signs_at_random_keeps_its_level_and_sees_a_difference() -> None:
    rng = np.random.default_rng(0)
    clusters = [f"clip{i // 2}" for i in range(40)]
    rejected = [flip_at_random(rng.normal(size=40), clusters, rng, 199) < 0.05 for _ in range(300)]
    assert np.mean(rejected) <= 0.06 + 2 * np.sqrt(0.05 * 0.95 / 300)
    assert flip_at_random(rng.normal(0.5, 0.5, size=40), clusters, rng) < 0.01
    assert flip_at_random(np.zeros(40), clusters, rng) == flip_at_random(np.ones(2), ["a", "a"], rng) == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, 1.5])
    rng = np.random.default_rng(1)
    false_alarms = [min(holm(rng.random(47))) < 0.05 for _ in range(TRIALS)]
    assert np.mean(false_alarms) <= 0.06
