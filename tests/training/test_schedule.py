from __future__ import annotations

import math

import pytest

from lime.config.training import OptimConfig
from lime.training.optimizer import learning_rate_factor


def factors(total: int, **options: object) -> list[float]:
    config = OptimConfig(**options)  # type: ignore[arg-type]
    return [learning_rate_factor(step, total, config) for step in range(total + 1)]


def test_linear_warms_up_to_the_peak_and_ends_at_zero() -> None:
    found = factors(20, warmup_ratio=0.2)
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert found[4:] == pytest.approx([1 - step / 16 for step in range(17)])


def test_cosine_is_half_way_in_the_middle_and_ends_at_its_floor() -> None:
    found = factors(10, warmup_ratio=0.0, schedule="cosine", min_lr_ratio=0.1)
    assert found[5] == pytest.approx(0.55)
    assert found[2] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 0.2)) / 2)
    assert found[10] == pytest.approx(0.1)


def test_constant_stays_at_the_peak() -> None:
    assert factors(8, warmup_ratio=0.25, schedule="constant") == [0.5, *[1.0] * 8]


def test_steps_beyond_the_end_keep_the_final_value() -> None:
    config = OptimConfig(min_lr_ratio=0.2)
    assert learning_rate_factor(500, 100, config) == pytest.approx(0.2)
