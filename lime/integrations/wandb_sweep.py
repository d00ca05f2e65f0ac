"""A sweep of Weights & Biases with the grid of an experiment; W&B's agents then run its points with train.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from lime.config.check import ConfigError
from lime.config.overrides import check, force, register
from lime.config.schema import TrainConfig
from lime.config.sweeps import make_plan

OBJECTIVE = "score/macro"


def sweep_config(experiment: str, overrides: Sequence[str], project: str, root: Path) -> dict[str, Any]:
    """The configuration that ``wandb sweep FILE`` takes, with every value of the experiment's grid.

    Each point of the grid runs ``train.py +experiment=NAME logger=wandb KEY=VALUE …`` in the folder that
    ``train.py -m`` would give it, in the W&B group of the experiment's name.

    Args:
        overrides: as for train.py; a swept one replaces the experiment's values.
        root: the project's folder, with conf/, experiments/ and train.py.

    Raises:
        ConfigError: what is wrong with the experiment, the overrides or any point.
    """
    register(TrainConfig, root / "experiments")
    asked = [f"+experiment={experiment}", *overrides]
    check(asked, root / "conf", "train", TrainConfig)
    plan = make_plan(force(asked, TrainConfig), root / "conf", "train", TrainConfig)
    if plan is None or not plan.runs[0].point:
        raise ConfigError([f"{experiment}: sweeps nothing that could be made a grid"])
    values: dict[str, list[Any]] = {}
    for run in plan.runs:
        for key, value in run.point.items():
            if value not in values.setdefault(key, []):
                values[key].append(value)
    if math.prod(len(swept) for swept in values.values()) != len(plan.runs):
        raise ConfigError([f"{experiment}: some of its points are one and the same run; name the values yourself"])
    name = plan.folder.name
    parsed = [OverridesParser.create().parse_override(text) for text in overrides]
    fixed = [text for text, override in zip(overrides, parsed, strict=True) if not override.is_sweep_override()]
    for override in parsed:
        if not override.is_sweep_override():
            values.pop(override.get_key_element().lstrip("+"), None)
    return {
        "name": name,
        "project": project,
        "program": "train.py",
        "method": "grid",
        "metric": {"name": OBJECTIVE, "goal": "maximize"},
        "parameters": {key: {"values": swept} for key, swept in values.items()},
        "command": [
            "${env}",
            "${interpreter}",
            "${program}",
            f"+experiment={experiment}",
            "logger=wandb",
            f"logger.wandb.project={project}",
            f"logger.wandb.group={name}",
            f"hydra.run.dir={plan.folder}/${{run_id:}}",
            *fixed,
            "${args_no_hyphens}",
        ],
    }
