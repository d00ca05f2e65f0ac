"""Named sets of LiME options, as overrides of the defaults of `LimeSettings`, and other names of the options, by which
readers of the LiME page know them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from lime.method.deltas.table import MIXTURES
from lime.tuner.settings import OPTIONS, LimeSettings

PRESETS: dict[str, dict[str, Any]] = {
    # Causal, independent of batch neighbours and padding: use this one.
    "default": {},
    # The formulas as printed in arXiv 2604.02338. Windows decide at their last token: not causal.
    "paper": {"routing_norm": "token", "n_gram": 3, "window_anchor": "last"},
    # What the authors' scripts run: batch-wide norm, soft masks, windows of one; longer ones would decide at their last
    # token. Not causal, and dependent on batch neighbours.
    "authors": {
        "routing_norm": "tensor",
        "soft": True,
        "auto_topk_threshold": 0.5,
        "n_gram": 1,
        "window_anchor": "last",
    },
    # The authors' introductory example: one decision per token, hard top-k.
    "quickstart": {"selection": "topk", "top_k": 2, "n_gram": 1},
}

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


def preset_settings(preset: str = "default", **options: Any) -> LimeSettings:
    """Settings of a preset with some options changed. A mixture brings its own routing with it.

    Args:
        preset: a key of `PRESETS`.
        options: fields of `LimeSettings` that win over the preset; the names of the LiME page (`rank`, `auto_topk`,
            …; see `ALIASES`) are accepted.

    Raises:
        ValueError: unknown preset or option (the nearest known one is suggested), one option under two names, or
            invalid settings.
    """
    options = resolve_aliases(options)
    if preset not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
    for option in options:
        if option not in OPTIONS:
            near = get_close_matches(option, OPTIONS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known options: {', '.join(OPTIONS)}"
            raise ValueError(f"unknown LiME option {option!r}{hint}")
    default = LimeSettings()
    wanted = options.get("peft", default.peft)
    chosen = {**PRESETS[preset], **(MIXTURES.get(wanted, {}) if isinstance(wanted, str) else {})}
    settings = replace(default, **{**chosen, **options})
    # What the preset sets and the options switch off (its window anchor, with n_gram=1) falls back to its default.
    idle = settings.without_effect().keys() & (chosen.keys() - options.keys())
    settings = replace(settings, **{option: getattr(default, option) for option in idle})
    settings.check()
    if "top_k" in options and settings.selection != "topk":
        raise ValueError(
            f"top_k: {options['top_k']} has no effect with selection {settings.selection!r}; leave it out, or set "
            "selection='topk' (auto_topk=False)"
        )
    return settings


def resolve_aliases(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under the names of `LimeSettings`; unknown ones are passed on.

    Raises:
        ValueError: an option given under two names, `auto_topk` that contradicts `selection`, or an argument that
            has no counterpart.
    """
    resolved: dict[str, Any] = {}
    given_as: dict[str, str] = {}
    for name, value in options.items():
        if name in NOT_NEEDED:
            raise ValueError(f"{name}: not an option here: {NOT_NEEDED[name]}; leave it out")
        option = ALIASES.get(name, name)
        if name == "auto_topk":
            if not isinstance(value, bool):
                raise ValueError(f"auto_topk: expected true or false, got {value!r}")
            option, value = "selection", "auto" if value else "topk"
        if option in resolved:
            raise ValueError(
                f"{given_as[option]} and {name} both set {option}"
                + (f", to {resolved[option]!r} and {value!r}" if resolved[option] != value else "")
                + "; give one of them"
            )
        resolved[option], given_as[option] = value, name
    return resolved
