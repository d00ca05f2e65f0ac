"""Groups and intervals over rows, linear probes, maps and summaries of routing, in cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lime.analysis.probe import probe
from lime.analysis.projection import principal_components, separation
from lime.analysis.resampling import balanced_groups, jackknife_interval
from lime.analysis.routing import RoutedRows, usage_by_group, usage_of
from lime.evaluation.intervals import mean_sample, share


def test_groups_keep_sources_whole_and_tasks_spread() -> None:
    tasks = [f"task{i // 20}" for i in range(60)]
    clusters = [f"source{i // 2}" for i in range(60)]
    groups = balanced_groups(tasks, clusters, 5)
    assert all(groups[2 * i] == groups[2 * i + 1] for i in range(30))
    counts = np.array([[(groups[20 * k : 20 * k + 20] == g).sum() for g in range(5)] for k in range(3)])
    assert (counts == 4).all()
    assert (balanced_groups(tasks, clusters, 5) == groups).all()
    with pytest.raises(ValueError, match="2 to 30 groups"):
        balanced_groups(tasks, clusters, 31)


def test_jackknife_of_a_mean_is_its_t_interval() -> None:
    values = np.random.default_rng(0).normal(size=12)
    replicates = np.array([np.delete(values, i).mean() for i in range(12)])
    low, high = jackknife_interval(float(values.mean()), replicates)
    half = 2.200985 * values.std(ddof=1) / math.sqrt(12)  # quantile of t with 11 degrees of freedom
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=1e-6)
    with pytest.raises(ValueError, match="at least 2 groups"):
        jackknife_interval(1.0, replicates[:1])


def test_probe_reads_what_is_there_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    labels = [f"label{i % 3}" for i in range(300)]
    folds = [i % 5 for i in range(300)]
    noise = rng.normal(size=(300, 40))
    told = noise.copy()
    told[:, :3] += 12 * np.eye(3)[np.arange(300) % 3]
    assert probe(told, labels, folds).accuracy == 1.0
    blind = probe(noise, labels, folds)
    found = share([mean_sample(blind.correct, [str(i) for i in range(300)])])
    assert found.low < 100 / 3 < found.high
    assert blind.chance == pytest.approx(1 / 3)
    assert probe(np.ones((300, 2)), labels, folds).accuracy == pytest.approx(1 / 3)
    partly = probe(told, [label if rng.random() < 0.7 else "label0" for label in labels], folds).accuracy
    assert 0.6 < partly < 0.9


def test_probe_never_tests_on_a_row_it_was_trained_on() -> None:
    """Each row has a random label and its own direction: the other sample of the row would tell."""
    rng = np.random.default_rng(0)
    rows = np.repeat(np.arange(100), 2)
    features = np.eye(100)[rows] + 0.01 * rng.normal(size=(200, 100))
    labels = [f"label{label}" for label in rng.integers(0, 2, 100)[rows]]
    by_row = probe(features, labels, (rows % 5).tolist(), rows.tolist())
    assert by_row.correct.shape == (100,)
    assert by_row.accuracy < 0.65
    assert probe(features, labels, (np.arange(200) % 5).tolist()).accuracy > 0.95
    with pytest.raises(ValueError, match="not finite"):
        probe(np.where(features > 0.9, np.nan, features), labels, (rows % 5).tolist(), rows.tolist())
    with pytest.raises(ValueError, match="two folds"):
        probe(features, labels, (np.arange(200) % 5).tolist(), rows.tolist())
    with pytest.raises(ValueError, match="at least 3 folds"):
        probe(features, labels, (rows % 2).tolist(), rows.tolist())


def test_more_features_than_samples_can_be_probed() -> None:
    rng = np.random.default_rng(0)
    index = np.arange(60) % 2
    features = rng.normal(size=(60, 500))
    features[:, :20] += 3 * (2 * index[:, None] - 1)
    features[:, 30] = 1.0  # does not vary
    assert probe(features, [str(i) for i in index], (np.arange(60) % 3).tolist()).accuracy > 0.95


def test_principal_components_of_a_flat_cloud() -> None:
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(200, 2)) * [3.0, 1.0]
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    found = principal_components(plane @ rotation[:2] + 5.0)
    assert sum(found.explained) == pytest.approx(1.0)
    assert found.explained[0] == pytest.approx(np.linalg.eigvalsh(np.cov(plane.T))[1] / np.trace(np.cov(plane.T)))
    centred = plane - plane.mean(0)
    assert found.points @ found.points.T == pytest.approx(centred @ centred.T, abs=1e-8)
    with pytest.raises(ValueError, match="do not vary"):
        principal_components(np.ones((5, 3)))


def test_separation_is_all_of_two_points_and_little_of_noise() -> None:
    groups = [i % 3 for i in range(150)]
    assert separation(np.eye(3)[groups], groups).value == pytest.approx(1.0)
    noise = [separation(np.random.default_rng(seed).normal(size=(150, 4)), groups, 50) for seed in range(30)]
    assert np.mean([found.null for found in noise]) == pytest.approx(2 / 149, abs=0.001)  # (K - 1) / (N - 1)
    assert np.mean([found.value for found in noise]) == pytest.approx(2 / 149, abs=0.003)
    assert 0.3 < np.mean([found.p for found in noise]) < 0.7
    with pytest.raises(ValueError, match="150 points"):
        separation(np.zeros((150, 2)), groups[:3])


def test_usage_of_rows_and_of_their_groups() -> None:
    own = RoutedRows(*[np.eye(4)] * 3, np.zeros(4))
    every = usage_of(own)
    assert every.usage == (0.25, 0.25, 0.25, 0.25)
    assert every.experts_realised == pytest.approx(4.0)
    assert every.experts_per_token == 1.0
    by = usage_by_group(own, ["b", "b", "a", "a"])
    assert list(by) == ["b", "a"]
    assert by["a"].usage == (0.0, 0.0, 0.5, 0.5)
    assert by["a"].experts_realised == pytest.approx(2.0)
    assert by["a"].rows == 2
    uniform = RoutedRows(np.full((3, 4), 0.25), np.ones((3, 4)), np.full((3, 4), 0.25), np.full(3, math.log(4)))
    assert usage_of(uniform).entropy == pytest.approx(math.log(4))
    assert usage_of(uniform).experts_per_token == 4.0
    biased = RoutedRows(np.array([[0.4, 0.3, 0.3]]), np.ones((1, 3)), np.array([[0.95, 0.05, 0.0]]), np.ones(1))
    assert usage_of(biased).busiest == pytest.approx(0.95)  # although mean probabilities look balanced
    assert usage_of(biased).experts_realised < 1.25
    with pytest.raises(ValueError, match="no row"):
        usage_of(own, np.zeros(4, dtype=bool))
