"""Intervals of scores: against formulas by hand, and their coverage in simulation, with and without shared sources."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lime.evaluation import intervals
from lime.evaluation.intervals import Sample, correlation_sample, mean_sample
from lime.evaluation.metrics.base import METRICS, Rows, metric_of
from lime.evaluation.scoring import SplitAnswers
from lime.evaluation.statistics import wilson_interval
from tests.evaluation.tasks import ARC, STSB, score

SHARES = (0.05, 0.5, 0.95, 0.99)


def rows(draw: np.random.Generator, n: int, size: int, p: float, agreeing: float = 1.0) -> tuple[np.ndarray, list[int]]:
    """n rows in sources of this size; the rows of a source agree with this probability, else each is drawn alone."""
    groups = n // size
    alone, together = draw.random((groups, size)) < p, draw.random((groups, 1)) < p
    right = np.where(draw.random((groups, 1)) < agreeing, together, alone)
    return right.ravel().astype(float), np.repeat(np.arange(groups), size).tolist()


def sample(draw: np.random.Generator, task: int, n: int, size: int, p: float, agreeing: float = 1.0) -> Sample:
    right, source = rows(draw, n, size, p, agreeing)
    return mean_sample(right, [f"{task}/{one}" for one in source])


def test_rows_of_their_own_get_wilsons_and_jeffreys_interval() -> None:
    right = np.array([1.0] * 81 + [0.0] * 182)
    found = intervals.share([mean_sample(right, [str(i) for i in range(263)])])
    wilson, jeffreys = wilson_interval(81, 263), stats.beta.interval(0.95, 81.5, 182.5)
    expected = 100 * min(wilson[0], jeffreys[0]), 100 * max(wilson[1], jeffreys[1])
    assert (found.low, found.high) == pytest.approx(expected)


def test_a_jackknife_of_sources_is_the_clustered_variance() -> None:
    draw = np.random.default_rng(0)
    values = draw.random(60)
    names = [f"clip{i // 5}" for i in range(60)]
    totals = (values - values.mean()).reshape(12, 5).sum(axis=1)
    found = mean_sample(values, names)
    assert found.shift_G @ found.shift_G == pytest.approx(12 / 11 * (totals**2).sum() / 60**2)
    without = np.array([np.delete(values.reshape(12, 5), g, axis=0).mean() for g in range(12)])
    assert found.shift_G @ found.shift_G == pytest.approx(11 / 12 * ((without - values.mean()) ** 2).sum())
    assert found.independent == pytest.approx(values.var(ddof=1) / 60)


def test_rows_of_a_source_that_agree_count_as_one() -> None:
    ten = mean_sample(np.array([1.0, 0.0] * 5), [f"clip{i}" for i in range(10)])
    many = mean_sample(np.repeat([1.0, 0.0] * 5, 20), [f"clip{i // 20}" for i in range(200)])
    assert many.variance == pytest.approx(ten.variance)
    alone = intervals.share([mean_sample(np.repeat([1.0, 0.0] * 5, 20), [str(i) for i in range(200)])])
    together = intervals.share([many])
    assert together.high - together.low > 4 * (alone.high - alone.low)


def test_rows_of_a_source_that_disagree_do_not_narrow_the_interval() -> None:
    """A constant answer is right in just one of six versions of every clip."""
    right = np.array(([1.0] + [0.0] * 5) * 10)
    clips = intervals.share([mean_sample(right, [f"clip{i // 6}" for i in range(60)])])
    assert clips.high - clips.low >= 0.99 * 2 * 196 * np.sqrt(1 / 6 * 5 / 6 / 60)


def test_tasks_that_share_clips_are_not_independent() -> None:
    right, source = rows(np.random.default_rng(0), 200, 1, 0.5)
    shared = [mean_sample(right, [f"clip{one}" for one in source]) for _ in range(4)]
    apart = [mean_sample(right, [f"{task}/clip{one}" for one in source]) for task in range(4)]
    wide, narrow = intervals.share(shared), intervals.share(apart)
    assert wide.high - wide.low == pytest.approx(2 * (narrow.high - narrow.low), rel=0.02)
    one = intervals.share(shared[:1])
    assert (wide.low, wide.high) == pytest.approx((one.low, one.high), abs=0.05)


def test_one_source_gives_no_interval() -> None:
    lone = mean_sample(np.array([1.0, 1.0, 0.0]), ["clip"] * 3)
    for found in (intervals.share([lone]), intervals.difference([lone]), intervals.mixed([lone])):
        assert (found.low, found.high) == (None, None)
        assert not found.clear
    assert intervals.share([lone]).text() == "66.7 (no interval)"
    other = mean_sample(np.array([1.0, 0.0]), ["a", "b"])
    assert intervals.share([other, lone]).low is None
    found = score(SplitAnswers(ARC, ["A", "B"], ["A", "B"], media=["clip", "clip"]))
    assert (found.value, found.low, found.high, found.above_majority) == (100.0, None, None, False)


@pytest.mark.parametrize("n", [20, 60, 300])
@pytest.mark.parametrize("p", SHARES)
def test_a_split_of_independent_rows_is_covered(n: int, p: float) -> None:
    """Exactly, over all counts: 93 to 97%, or as near above as counts allow: with a count less it were below 93%."""
    names = [str(i) for i in range(n)]
    found = [intervals.share([mean_sample((np.arange(n) < k).astype(float), names)]) for k in range(n + 1)]
    covered = np.array([one.low <= 100 * p <= one.high for one in found])
    chance = stats.binom.pmf(np.arange(n + 1), n, p)[covered]
    assert chance.sum() >= 0.93
    assert chance.sum() <= 0.97 or chance.sum() - min(chance[0], chance[-1]) < 0.93


@pytest.mark.parametrize("tasks", [1, 6])
@pytest.mark.parametrize("n", [20, 60, 300])
def test_clustered_rows_are_covered(tasks: int, n: int) -> None:
    """Rows of a source that agree: a split and a category. Extreme shares of few sources are covered from above."""
    draw = np.random.default_rng(n + tasks)
    trials = 600
    for p in SHARES:
        hits = 0
        for _ in range(trials):
            one = intervals.share([sample(draw, task, n, 4, p) for task in range(tasks)])
            hits += one.low <= 100 * p <= one.high
        assert hits / trials >= 0.93 - 2 * np.sqrt(0.05 / trials)
        if p == 0.5:
            assert hits / trials <= 0.97 + 2 * np.sqrt(0.03 / trials)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4])
def test_a_macro_score_is_covered(size: int) -> None:
    """47 tasks, with and without sources whose rows agree."""
    draw = np.random.default_rng(size)
    trials = 300
    for n in (20, 60, 300):
        for p in SHARES:
            hits = 0
            for _ in range(trials):
                one = intervals.share([sample(draw, task, n, size, p) for task in range(47)])
                hits += one.low <= 100 * p <= one.high
            assert 0.93 - 2 * 0.0147 <= hits / trials <= 0.97 + 2 * 0.0098, (n, p, hits / trials)


def test_differences_are_covered_and_never_certain() -> None:
    draw = np.random.default_rng(0)
    hits, trials = 0, 600
    for _ in range(trials):
        samples = []
        for task in range(6):
            one, other = (draw.random((15, 1)).repeat(4, axis=1).ravel() < 0.5 for _ in range(2))
            names = [f"{task}/{i // 4}" for i in range(60)]
            samples.append(mean_sample(one.astype(float) - other, names))
        found = intervals.difference(samples)
        hits += found.low <= 0 <= found.high
    assert 0.93 - 0.018 <= hits / trials <= 0.97 + 0.014
    same = intervals.difference([mean_sample(np.zeros(50), [str(i) for i in range(50)])])
    assert same.low < 0 < same.high


def test_correlations_by_hand_and_in_simulation() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=200)
    y = 0.7 * x + draw.normal(size=200)
    names = [str(i) for i in range(200)]
    one = correlation_sample(x, y, names)
    without = [np.corrcoef(np.delete(x, i), np.delete(y, i))[0, 1] for i in range(200)]
    assert one.value == pytest.approx(stats.pearsonr(x, y).statistic)
    at = [int(name) for name in one.sources_G]
    assert one.shift_G == pytest.approx(np.sqrt(199 / 200) * (one.value - np.array(without)[at]), abs=1e-9)
    low, high = stats.pearsonr(x, y).confidence_interval(0.95)
    found = intervals.of_correlation(one)
    assert (found.low, found.high) == pytest.approx((100 * low, 100 * high), abs=3)
    hits = 0
    for _ in range(400):
        x = draw.normal(size=100).repeat(3)
        y = 0.5 * x + np.sqrt(0.75) * draw.normal(size=100).repeat(3)
        found = intervals.of_correlation(correlation_sample(x, y, [str(i // 3) for i in range(300)]))
        hits += found.low <= 50 <= found.high
    assert 0.93 - 0.022 <= hits / 400 <= 0.97 + 0.017


def test_one_huge_answer_leaves_the_others_their_weight() -> None:
    """Without the row of the huge answer the correlation is that of the rest, to the last digits."""
    draw = np.random.default_rng(0)
    truth = draw.random(100) * 5
    given = truth + 0.2 * draw.normal(size=100)
    given[7] = 1e6
    names = [f"{i:03d}" for i in range(100)]
    one = correlation_sample(given, truth, names)
    rest = np.corrcoef(np.delete(given, 7), np.delete(truth, 7))[0, 1]
    assert rest > 0.9
    assert one.value - one.shift_G[7] / np.sqrt(99 / 100) == pytest.approx(rest, abs=1e-9)
    found = intervals.of_correlation(one)
    assert found.high - found.low > 50  # nobody knows whether the next hundred hold such an answer


def test_a_constant_answer_has_a_score_of_zero_with_an_interval() -> None:
    truths = [f"{value / 10:.1f}" for value in range(50)]
    found = score(SplitAnswers(STSB, truths, ["2.5"] * 50))
    assert found.value == 0.0
    assert found.low < 0 < found.high


@pytest.mark.parametrize("name", METRICS)
def test_no_interval_holds_a_difference_that_cannot_be(name: str) -> None:
    """Three rows, all but one better: the plain interval leads far beyond what the metric's difference can be."""
    metric, truths = metric_of(name), np.array([1.0, 2.0, 3.0, 4.0])
    ours, theirs = (
        Rows(right, values if metric.reads_answers else None, truths)
        for right, values in [(np.ones(4), np.array([0.25, 0.5, 0.75, 1.0])), (np.eye(4)[0], np.array([1.0, 0, 0, 1]))]
    )
    one = metric.difference([ours], [theirs], list("abcd"))
    most = 200 if name == "correlation" else 100
    assert intervals.difference([one]).high == pytest.approx(most)
    share = metric_of("accuracy").difference([ours], [theirs], list("efgh"))
    assert intervals.difference([share]).high == 100
    assert intervals.difference([one, share, share]).high == pytest.approx((most + 200) / 3)
    assert intervals.difference([share] * 2).low >= -100


def test_a_group_without_spread_has_no_interval() -> None:
    """Nothing right, and a constant answer to two rows of STS-B: zero, but not for certain."""
    wrong = mean_sample(np.zeros(4), list("abcd"))
    constant = correlation_sample(np.ones(2), np.arange(2.0), list("ef"))
    assert intervals.mixed([wrong, constant]) == intervals.Estimate(0.0, None, None)
