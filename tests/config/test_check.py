from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from lime.config.check import ConfigError, build, convert, known_keys


@dataclass
class Inner:
    rate: float = 0.1
    names: list[str] | None = None

    def errors(self) -> list[str]:
        return [] if self.rate >= 0 else [f"inner.rate: expected at least 0, got {self.rate}"]


@dataclass
class Outer:
    steps: int = 3
    mode: Literal["fast", "slow"] = "fast"
    betas: tuple[float, float] = (0.9, 0.99)
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None

    def errors(self) -> list[str]:
        return [] if self.steps > 0 else [f"steps: expected at least 1, got {self.steps}"]


def problems(values: dict) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build(Outer, values)
    return caught.value.problems


def test_known_keys_include_sections_and_optional_ones() -> None:
    assert list(known_keys(Outer)) == [
        "steps", "mode", "betas", "inner", "inner.rate", "inner.names", "maybe", "maybe.rate", "maybe.names",
    ]  # fmt: skip


def test_builds_nested_sections_and_keeps_defaults() -> None:
    built = build(Outer, {"inner": {"rate": 1, "names": ["a"]}, "betas": [0, 1], "maybe": {}})
    assert built == Outer(betas=(0.0, 1.0), inner=Inner(1.0, ["a"]), maybe=Inner())
    assert isinstance(built.inner.rate, float)


def test_all_problems_are_told_at_once() -> None:
    found = problems({"step": 1, "steps": 0, "mode": "medium", "inner": {"rate": -1, "nmes": []}, "betas": [1]})
    assert len(found) == 6
    assert "step: unknown key; did you mean steps?" in found
    assert "inner.nmes: unknown key; did you mean inner.names?" in found
    assert "mode: expected one of fast, slow, got 'medium' (text)" in found
    assert "betas: expected a list of 2 (a number each), got [1] (list)" in found
    assert "steps: expected at least 1, got 0" in found
    assert "inner.rate: expected at least 0, got -1.0" in found


def test_key_in_the_wrong_section_is_found() -> None:
    assert problems({"rate": 1.0}) == ["rate: unknown key; did you mean inner.rate?"]


def test_far_key_lists_what_is_known_there() -> None:
    assert problems({"inner": {"zzzz": 1}}) == ["inner.zzzz: unknown key; known here: inner.rate, inner.names"]


@pytest.mark.parametrize(
    ("value", "hint"), [("3", int), (True, int), (3.0, int), ("x", float), (1, bool), (1, str), ("a", list[str])]
)
def test_wrong_types_are_not_converted(value: object, hint: type) -> None:
    with pytest.raises(TypeError):
        convert(value, hint)
