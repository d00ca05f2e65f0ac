"""Information between experts and tasks: known cases, and bias, coverage and false alarms in simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from lime.analysis.information import Routing, chance_of_information, information, most_possible

TASKS, EXPERTS = 47, 4


def routing(usage: np.ndarray, weight: float = 1.0) -> Routing:
    return Routing(usage, np.arange(len(usage)), weight)


def population(draw: np.random.Generator, spread: float) -> tuple[np.ndarray, float]:
    """Mean routing of each task, and the information between expert and task that it holds."""
    means = draw.dirichlet(spread * draw.dirichlet(np.full(EXPERTS, 20.0)), size=TASKS) * 0.98 + 0.02 / EXPERTS
    return means, float(special.entr(means.mean(0)).sum() - special.entr(means).sum(1).mean())


def test_certain_routing_has_all_there_is() -> None:
    tasks = [f"task{i % 4}" for i in range(80)]
    own = routing(np.eye(4)[np.arange(80) % 4])
    found = information([own], tasks, [str(i) for i in range(80)])
    assert found.plain == pytest.approx(np.log(4)) == most_possible(4, tasks)
    assert found.value == pytest.approx(np.log(4))
    assert chance_of_information(own, tasks, [str(i) for i in range(80)]) < 0.01


def test_layers_are_added_by_their_weights() -> None:
    draw = np.random.default_rng(0)
    tasks, sources = [f"t{i % 5}" for i in range(60)], [str(i) for i in range(60)]
    one, two = (draw.dirichlet(np.ones(3) * 9, 60) for _ in range(2))
    apart = [information([routing(usage)], tasks, sources).value for usage in (one, two)]
    mean = information([routing(one, 0.5), routing(two, 0.5)], tasks, sources)
    assert mean.value == pytest.approx(np.mean(apart))
    same = information([routing(one), routing(one, -1.0)], tasks, sources)
    assert (same.value, same.low, same.high) == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)


def test_what_is_no_routing_is_named() -> None:
    tasks, sources = ["a", "b"] * 40, [str(i) for i in range(80)]
    with pytest.raises(ValueError, match="sum to 1"):
        information([routing(np.ones((80, 4)))], tasks, sources)
    with pytest.raises(ValueError, match="not finite"):
        information([routing(np.full((80, 4), np.nan))], tasks, sources)
    with pytest.raises(ValueError, match="some of 3 rows"):
        information([routing(np.full((80, 4), 0.25))], tasks[:3], sources[:3])
    lone = information([routing(np.full((80, 4), 0.25))], tasks, ["one"] * 80)
    assert (lone.low, lone.high) == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "size"), [(4, 1), (8, 1), (12, 1), (12, 3), (24, 1), (24, 4), (100, 1), (100, 4)])
def test_bias_and_coverage(n: int, size: int) -> None:
    """47 tasks of n rows, rows of a source alike: bias below 2%, coverage 93 to 97% (trials leave 2 points)."""
    draw = np.random.default_rng(n + size)
    tasks = [f"{task}" for task in range(TASKS) for _ in range(n)]
    sources = [f"{task}/{row // size}" for task in range(TASKS) for row in range(n)]
    values, truths, hits = [], [], 0
    trials = 400 if n < 100 else 250
    for trial in range(trials):
        if trial % 20 == 0:
            means, truth = population(draw, 60)
        usage = [draw.dirichlet(100 * mean, size=n // size).repeat(size, axis=0) for mean in means]
        found = information([routing(np.concatenate(usage))], tasks, sources)
        values.append(found.value)
        truths.append(truth)
        hits += found.low <= truth <= found.high
    error = 2 * np.std(np.array(values) - truths) / np.sqrt(trials) / np.mean(truths)
    assert abs(np.mean(values) / np.mean(truths) - 1) < 0.02 + error
    assert 0.93 - 2 * np.sqrt(0.05 / trials) <= hits / trials <= 0.97 + 2 * np.sqrt(0.03 / trials)


@pytest.mark.parametrize("shared", ["in a task", "over tasks"])
def test_rows_that_share_a_clip_raise_no_false_alarm(shared: str) -> None:
    """Routing that has nothing to do with the task, but is the same for the rows of a clip."""
    draw = np.random.default_rng(0)
    tasks = [f"task{i // 24}" for i in range(240)]
    in_task = shared == "in a task"
    sources = [f"{i // 24}/{i // 4}" if in_task else f"{i // 48}/{i % 24}" for i in range(240)]
    names, index = np.unique(sources, return_inverse=True)
    chances = []
    for seed in range(100):
        usage = draw.dirichlet(np.full(EXPERTS, 5.0), size=len(names))[index]
        chances.append(chance_of_information(routing(usage), tasks, sources, 99, seed))
    assert np.mean(np.array(chances) <= 0.05) <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 100)
    if in_task:
        assert np.mean(np.array(chances) <= 0.5) >= 0.35


def test_what_the_task_decides_is_seen_through_clips() -> None:
    draw = np.random.default_rng(0)
    tasks = [f"task{i // 24}" for i in range(240)]
    sources = [f"{i // 48}/{i % 24}" for i in range(240)]
    usage = draw.dirichlet(np.full(EXPERTS, 20.0), size=10)[np.arange(240) // 24]
    assert chance_of_information(routing(usage), tasks, sources, 99) == pytest.approx(0.01)
