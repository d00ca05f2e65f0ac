"""Names by which readers of the LiME page know the options, and what they are called here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ALIASES = {
    "rank": "r",
    "alpha": "lora_alpha",
    "targets": "target_modules",
    "use_shared_LiME": "shared_modulator",
}
"""Accepted in place of an option of `LimeSettings`. `auto_topk` is accepted too: true is `selection="auto"`, false
`selection="topk"`."""

NOT_NEEDED = {
    "rep_mode": "routing is always by token; windows of several tokens are n_gram",
    "tokenizer": "padding is read from the attention mask",
    "peft_dtype": "adapters are float32 whatever the base's dtype",
    "moe_dtype": "modulators are float32 whatever the base's dtype",
}
"""Arguments of the authors' code that have no counterpart, and why."""


def resolve_aliases(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under the names of `LimeSettings`; unknown ones are passed on.

    Raises:
        ValueError: an option given under two names, `auto_topk` that contradicts `selection`, or an argument that
            has no counterpart.
    """
    found: dict[str, Any] = {}
    said: dict[str, str] = {}
    for name, value in options.items():
        if name in NOT_NEEDED:
            raise ValueError(f"{name}: not an option here: {NOT_NEEDED[name]}; leave it out")
        option = ALIASES.get(name, name)
        if name == "auto_topk":
            if not isinstance(value, bool):
                raise ValueError(f"auto_topk: expected true or false, got {value!r}")
            option, value = "selection", "auto" if value else "topk"
        if option in found:
            raise ValueError(
                f"{said[option]} and {name} both set {option}"
                + (f", to {found[option]!r} and {value!r}" if found[option] != value else "")
                + "; give one of them"
            )
        found[option], said[option] = value, name
    return found
