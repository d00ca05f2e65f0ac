"""The adapter format: its version, and the key map that reads files of older ones.

An adapter is a folder in peft's layout: `adapter_config.json` with the options of `LimeConfig` and `format_version`,
and `adapter_model.safetensors` with the keys, for each adapted layer `base_model.model.<module>.`,

    lime_delta.<parameter>   the update; A and B for LoRA
    lime_experts             modulators p_i, (E, d_out)
    lime_shared, lime_gamma  shared modulator, (d_out,), and its scalar, (1,)
    lime_router.<tensor>     weight (E, d_in) of the learned router; features (E,) of random feature slices

Whoever renames a key adds one to `FORMAT_VERSION` and enters the rename in `KEY_MAPS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeVar

Value = TypeVar("Value")

FORMAT_VERSION = 1
"""Version of the files that this package writes."""

KEY_MAPS: dict[int, dict[str, str]] = {
    0: {},  # files from before versions were written: the same keys
}
"""For each older version, renames to the next one: regular expression -> replacement, over whole keys. A pattern must
not match keys of the present version, so that the map can be applied without knowing a file's version."""


def check_version(version: object) -> None:
    """Raise ValueError for an adapter of a later version than this package knows."""
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise ValueError(f"format_version: expected a whole number from 0, got {version!r}")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"format_version: the adapter has format {version}, this version of lime reads formats up to "
            f"{FORMAT_VERSION}; install a later one"
        )


def upgrade_key(key: str) -> str:
    """The present name of a key of any older version."""
    for version in range(FORMAT_VERSION):
        for pattern, replacement in KEY_MAPS[version].items():
            key, count = re.subn(pattern, replacement, key)
            if count:
                break
    return key


def upgrade_keys(items: Iterable[tuple[str, Value]]) -> dict[str, Value]:
    """Entries of an adapter file under their present names.

    Raises:
        ValueError: two keys get the same name.
    """
    upgraded: dict[str, Value] = {}
    origin: dict[str, str] = {}
    for old, value in items:
        new = upgrade_key(old)
        if new in upgraded:
            raise ValueError(f"adapter keys {origin[new]} and {old} are both {new} in format {FORMAT_VERSION}")
        upgraded[new], origin[new] = value, old
    return upgraded
