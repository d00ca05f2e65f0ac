"""Evaluate an adapter with its run's own configuration, except for what the command line sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lime.config.check import build
from lime.config.schema import EvalConfig

RUN_FILE = "run.yaml"
"""File in an adapter folder: the run's configuration and the backbone that the adapter belongs to."""

SECTIONS = ("model", "data", "evaluation")


def read_run(adapter: Path) -> dict[str, Any]:
    """``run.yaml`` of an adapter folder, as ``{"config": …, "backbone": {"name": …, "fingerprint": …}}``.

    Raises:
        ValueError: where the folder is not one that train.py saved.
    """
    path = adapter / RUN_FILE
    if not path.is_file():
        raise ValueError(f"adapter: {adapter} has no {RUN_FILE}; expected the folder 'adapter' of a run of train.py")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"adapter: {path} is not valid YAML ({error})") from error
    parts = content if isinstance(content, dict) else {}
    backbone = parts.get("backbone")
    if not isinstance(parts.get("config"), dict) or not isinstance(backbone, dict):
        raise ValueError(f"adapter: {path} lacks 'config' or 'backbone'; expected what train.py saved")
    if not {"name", "fingerprint"} <= backbone.keys():
        raise ValueError(f"adapter: {path}: 'backbone' lacks its name or fingerprint; expected what train.py saved")
    return parts


def with_run_config(config: EvalConfig, run: Mapping[str, Any], overrides: Sequence[str]) -> EvalConfig:
    """The run's model, data and evaluation sections, with what ``overrides`` name taken from ``config``.

    Args:
        config: the evaluation's configuration, composed with the overrides.
        run: the configuration of the run.
        overrides: the command line, e.g. ``["evaluation.mode=likelihood", "data=mmt47"]``; a group replaces its
            whole section.

    Raises:
        ConfigError: when the result is not a valid configuration.
    """
    values = dataclasses.asdict(config)
    composed = dataclasses.asdict(config)
    for section in SECTIONS:
        if section in run:
            values[section] = run[section]
    values["seed"] = run.get("seed", values["seed"])
    for override in overrides:
        path = override.lstrip("+~").partition("=")[0].split(".")
        if path[0] in (*SECTIONS, "seed"):
            _copy(composed, values, path)
    return build(EvalConfig, values)


def _copy(source: dict[str, Any], target: dict[str, Any], path: Sequence[str]) -> None:
    for part in path[:-1]:
        source, target = source[part], target.setdefault(part, {})
    target[path[-1]] = source[path[-1]]
