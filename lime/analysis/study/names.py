"""Short names of layers for figures and tables."""

from __future__ import annotations

from collections.abc import Sequence


def short_names(names: Sequence[str]) -> list[str]:
    """Dotted names without the parts that all of them have: `layers.0.self_attn.q_proj` becomes `0.q_proj`. Whole names
    where that would leave nothing, or make two the same."""
    parts = [name.split(".") for name in names]
    common = set.intersection(*(set(one) for one in parts)) if parts else set()
    short = [".".join(part for part in one if part not in common) for one in parts]
    if all(short) and len(set(short)) == len(short):
        return short
    return list(names)
