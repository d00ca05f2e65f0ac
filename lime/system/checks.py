"""The two commonest mistakes in a configuration, in one wording each; a message begins with the full key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def too_small(section: Any, prefix: str, least: Mapping[str, float]) -> list[str]:
    """Numbers of a section below what they must be; one that is None is left alone."""
    values = {name: getattr(section, name) for name in least}
    return [
        f"{prefix}.{name}: expected at least {least[name]}, got {value}"
        for name, value in values.items()
        if value is not None and value < least[name]
    ]


def not_one_of(section: Any, prefix: str, choices: Mapping[str, Sequence[str]]) -> list[str]:
    """Words of a section that are none of their choices."""
    return [
        f"{prefix}.{name}: expected one of {', '.join(known)}, got {getattr(section, name)!r}"
        for name, known in choices.items()
        if getattr(section, name) not in known
    ]
