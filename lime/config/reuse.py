"""Evaluate an adapter with its run's own configuration, except for what the command line sets.

A run of one's own (:func:`is_own_run`) decides about backbone, data and evaluation. Of any other adapter, whoever made
it, only the short list :data:`TAKEN` is read: how rows are put to the model and answers read. Which model is fetched,
where data and caches lie and what is evaluated is the command line's alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lime.config.check import build
from lime.config.modules import import_types
from lime.config.schema import PEFT_OPTIONS, EvalConfig
from lime.system.ownership import check_unchanged, is_own

RUN_FILE = "run.yaml"
"""File in an adapter folder: the run's configuration and the backbone that the adapter belongs to."""

CONFIG_FILE = "adapter_config.json"
SECTIONS = ("model", "data", "evaluation")
LARGEST_FILE = 2**20  # bytes

TAKEN: dict[str, int | float | None] = {
    "model.budget": None,
    "model.image.max_tiles": 64,
    "model.image.min_pixels": 2**24,
    "model.image.max_pixels": 2**24,
    "model.image.max_tokens": 2**16,
    "model.video.num_frames": 512,
    "model.video.max_pixels": 2**22,
    "model.video.max_tokens": 2**17,
    "model.video.fps": 1000.0,
    "model.video.index_rule": None,
    "data.max_length": 2**17,
    "data.system_prompt": None,
    "evaluation.mode": None,
    "evaluation.max_new_tokens": 2**12,
    "evaluation.likelihood_normalisation": None,
}
"""What is taken from an adapter that is not of one's own run, and the largest number that is."""


def read_run(adapter: Path) -> dict[str, Any]:
    """``run.yaml`` of an adapter folder, as ``{"config": …, "backbone": {"name": …, "fingerprint": …}}``.

    Raises:
        ValueError: where the folder is not one that train.py saved, or its files were changed since; where the module
            of a type of one's own cannot be imported.
    """
    path = adapter / RUN_FILE
    if not path.is_file():
        raise ValueError(f"adapter: {adapter} has no {RUN_FILE}; expected the folder 'adapter' of a run of train.py")
    check_unchanged(adapter, (RUN_FILE, CONFIG_FILE))
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"adapter: {path} is larger than {LARGEST_FILE:,} bytes; expected what train.py saved")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"adapter: {path} is not valid YAML ({error})") from error
    parts = content if isinstance(content, dict) else {}
    backbone = parts.get("backbone")
    if not isinstance(parts.get("config"), dict) or not isinstance(backbone, dict):
        raise ValueError(f"adapter: {path} lacks 'config' or 'backbone'; expected what train.py saved")
    if not {"name", "fingerprint"} <= backbone.keys():
        raise ValueError(f"adapter: {path}: 'backbone' lacks its name or fingerprint; expected what train.py saved")
    if not all(isinstance(backbone[key], str) for key in ("name", "fingerprint")):
        raise ValueError(
            f"adapter: {path}: the backbone's name and fingerprint: expected texts, as train.py saves them"
        )
    check_settings(adapter, parts["config"])
    module = (parts["config"].get("peft") or {}).get("module")
    if isinstance(module, str) and is_own_run(adapter):  # a stranger's file chooses no code
        import_types(module)
    return parts


def is_own_run(adapter: Path) -> bool:
    """Whether a run of this user saved the adapter: its mark is signed with the user's key, its files unchanged."""
    return is_own(adapter, "adapter")


def check_settings(adapter: Path, config: Mapping[str, Any]) -> None:
    """Raise ValueError where ``adapter_config.json`` says something else than the run's sections peft and lime.

    Of an adapter that the `peft` library made itself, what both name is compared.
    """
    path = adapter / CONFIG_FILE
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return  # told by the loader, which names the file
    peft, lime = config.get("peft"), config.get("lime")
    if not isinstance(saved, dict) or not isinstance(peft, Mapping) or not isinstance(lime, Mapping):
        return
    options = {option: (f"peft.{key}", peft[key]) for option, key in PEFT_OPTIONS.items() if key in peft}
    options |= {option: (f"lime.{option}", value) for option, value in lime.items()}
    if saved.get("peft_type") != "LIME":
        plain = {"peft": "peft_type", "r": "r", "lora_alpha": "lora_alpha", "dropout": "lora_dropout"}
        plain["rslora"] = "use_rslora"
        kind = str(peft.get("base") if peft.get("type") == "any" else peft.get("type")).lower()
        options["peft"] = ("peft.type", {"dora": "LORA"}.get(kind, kind.upper()))
        if kind == "dora" or "use_dora" in saved:
            options["use_dora"] = ("peft.type", kind == "dora")
        if peft.get("type") == "any":
            plain = {"peft": "peft_type"}
        options = {plain.get(name, name): said for name, said in options.items() if name in plain or name == "use_dora"}
    for option, (key, said) in options.items():
        if option in saved and _plain(saved[option]) != _plain(said):
            raise ValueError(
                f"adapter: {path}: {option} is {saved[option]!r}, but {RUN_FILE} says {key}={said!r}: the files are of "
                "different adapters, or one was changed"
            )


def _plain(value: Any) -> Any:
    """Lists in one order, whole floats as integers, as either file may hold them."""
    if isinstance(value, (list, tuple, set)):
        return sorted(map(str, value))
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def taken_from(config: Mapping[str, Any]) -> dict[str, Any]:
    """What :data:`TAKEN` allows of an adapter's configuration, by full key; what it does not set is left out.

    Raises:
        ValueError: a number that is too large, or no number or text at all; names the key.
    """
    found = {}
    for key, largest in TAKEN.items():
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None or (key, value) == ("evaluation.mode", "none"):  # of a search, which evaluated nothing
            continue
        kind = str if largest is None else (int, float) if isinstance(largest, float) else int
        good = isinstance(value, kind) and not isinstance(value, bool)
        if not good or (largest is not None and not 0 <= value <= largest):
            number = "a number" if isinstance(largest, float) else "a whole number"
            expected = "a text" if largest is None else f"{number} up to {largest:,}"
            raise ValueError(f"adapter: {RUN_FILE}: {key}: expected {expected}, got {str(value)[:40]!r}")
        found[key] = value
    return found


def with_run_config(config: EvalConfig, run: Mapping[str, Any], overrides: Sequence[str], *, own: bool) -> EvalConfig:
    """The run's settings, with what ``overrides`` name taken from ``config``.

    Args:
        config: the evaluation's configuration, composed with the overrides.
        run: the configuration of the run.
        overrides: the command line, e.g. ``["evaluation.mode=likelihood", "data=mmt47"]``; a group replaces its
            whole section of a run of one's own.
        own: take the run's sections model, data and evaluation and its seed whole; else what :func:`taken_from` gives.

    Raises:
        ConfigError: when the result is not a valid configuration.
    """
    values = dataclasses.asdict(config)
    composed = dataclasses.asdict(config)
    named = [override.lstrip("+~").partition("=")[0] for override in overrides]
    if not own:
        for key, value in taken_from(run).items():
            if not any(f"{key}.".startswith(f"{name}.") for name in named if name not in SECTIONS):
                _set(values, key.split("."), value)
        return build(EvalConfig, values)
    for section in SECTIONS:
        if section in run:
            values[section] = run[section]
    values["seed"] = run.get("seed", values["seed"])
    for name in named:
        path = name.split(".")
        if path[0] in (*SECTIONS, "seed"):
            _copy(composed, values, path)
    return build(EvalConfig, values)


def _set(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        values = values[part]
    values[path[-1]] = value


def _copy(source: dict[str, Any], target: dict[str, Any], path: Sequence[str]) -> None:
    for part in path[:-1]:
        source, target = source[part], target.setdefault(part, {})
    target[path[-1]] = source[path[-1]]
