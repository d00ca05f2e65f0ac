"""Numbers of the paper, read from published.yaml: shown beside this project's, never mixed with them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lime.data.tasks import mmt47


@dataclass(frozen=True)
class Published:
    """``table2``: method to {"parameters" (number), category id (points), "macro"}; ``efficiency``: method to training
    minutes, samples per second, peak memory (GB) and trainable parameters (thousands); ``best``: range of the best
    setting by figure; ``used``: the setting of the published runs by key; ``tasks``: names of the tasks in the paper's
    ablation figures. ``macro`` is the mean over the 47 tasks that follows from the categories' means and sizes."""

    source: str
    table2: dict[str, dict[str, float]]
    efficiency: dict[str, tuple[float, ...]]
    best: dict[str, tuple[float, float]]
    used: dict[str, float]
    tasks: tuple[str, ...]


@functools.cache
def published() -> Published:
    """The published numbers that this project shows."""
    content: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text(encoding="utf-8"))
    sizes = {name: sum(task.category == name for task in mmt47().tasks.values()) for name in content["categories"]}
    table = {}
    for method, (millions, *points) in content["table2"].items():
        scores = dict(zip(content["categories"], points, strict=True))
        macro = sum(sizes[name] * score for name, score in scores.items()) / sum(sizes.values())
        table[method] = {"parameters": millions * 1e6, **scores, "macro": macro}
    efficiency = {method: tuple(map(float, values)) for method, values in content["efficiency"].items()}
    best = {name: (float(low), float(high)) for name, (low, high) in content["best"].items()}
    return Published(content["source"], table, efficiency, best, content["used"], tuple(content["tasks"]))
