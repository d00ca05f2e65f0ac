"""AdamW and its learning-rate schedule: linear warm-up, then linear, cosine or no decay."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch

from lime.config.training import OptimConfig


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
