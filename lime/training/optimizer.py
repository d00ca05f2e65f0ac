"""AdamW and its learning-rate schedule: linear warm-up, then linear, cosine or no decay."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import nn

from lime.config.training import TOWERS, OptimConfig
from lime.tuner.reporting import Owned, owned_parameters

KEYS = {"modulators": "moe_lr", "peft": "peft_lr"}
"""Key of the learning rate of each group."""


def learning_rate_factor(step: int, total_steps: int, config: OptimConfig) -> float:
    """Share of the peak learning rate at optimiser step ``step`` (counted from 0).

    The warm-up takes ``round(warmup_ratio * total_steps)`` steps and reaches the peak at its last one. Steps beyond
    ``total_steps`` keep the final value.
    """
    warmup = round(config.warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    remaining = 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.min_lr_ratio + (1.0 - config.min_lr_ratio) * remaining


def optimizer_groups(model: nn.Module, options: OptimConfig) -> list[dict[str, Any]]:
    """Parameter groups of an optimiser, each with its name, rate and decay: `modulators` and `peft`; after them, where
    they have rates of their own, those of towers (`vision_tower.peft`) and the B of LoRA+ (`peft.B`).

    Raises:
        ValueError: a rate of which no parameter would take notice; names its key.
    """
    rates = {"modulators": options.moe_lr, "peft": options.peft_lr}
    decays = {"modulators": options.moe_weight_decay, "peft": options.peft_weight_decay}
    own = {f"{tower}.{group}": getattr(getattr(options, tower), key) for tower in TOWERS for group, key in KEYS.items()}
    own = {name: rate for name, rate in own.items() if rate is not None}
    ratio, owned = options.loraplus_ratio, owned_parameters(model)
    groups: dict[str, dict[str, Any]] = {}
    for each in sorted(owned, key=lambda each: each.group):  # keeps the order within a group
        name = each.group if f"{each.tower}.{each.group}" not in own else f"{each.tower}.{each.group}"
        lr = own.get(name, rates[each.group])
        if ratio is not None and each.up:
            name, lr = f"{name}.B", lr * ratio
        group = {"params": [], "lr": lr, "weight_decay": decays[each.group], "name": name}
        groups.setdefault(name, group)["params"].append(each.parameter)
    _check_rates_act(own, ratio, owned)
    return sorted(groups.values(), key=lambda group: group["name"] not in rates)


def _check_rates_act(own: dict[str, float], ratio: float | None, owned: list[Owned]) -> None:
    for name in own.keys() - {f"{each.tower}.{each.group}" for each in owned}:
        tower, _, group = name.partition(".")
        what = "modulators" if group == "modulators" else "parameters of the update"
        there = ", ".join(sorted({each.tower for each in owned if each.group == group})) or "nothing"
        raise ValueError(
            f"optim.{tower}.{KEYS[group]}: no {what} train in a {tower} (in: {there}); leave it null, or change "
            "peft.scope or peft.target_modules"
        )
    if ratio is not None:
        downs = [each for each in owned if each.group == "peft" and not each.up]
        if len(downs) in (0, len([each for each in owned if each.group == "peft"])):
            raise ValueError(
                "optim.loraplus_ratio: needs a type that trains both A and B (lora, dora, mixtures of them); leave it "
                "null, and set optim.peft_lr"
            )


def check_optimizer(options: OptimConfig) -> None:
    """Raise ValueError where AdamW in 8 bits is asked for without bitsandbytes."""
    if options.eight_bit and importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            "optim.eight_bit: needs bitsandbytes, which is not installed; `pip install 'lime-moe[quantised]'`, "
            "or set optim.eight_bit=false"
        )


def adamw(options: OptimConfig) -> Any:
    """The optimiser's class."""
    if not options.eight_bit:
        return torch.optim.AdamW
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit
