"""The groups `method` and `lime`, made from the table of types and the presets, and types of the user's own modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from lime.config.check import ConfigError
from lime.config.modules import import_types
from lime.config.schema import LIME_OPTIONS, LimeSection
from lime.method.deltas.table import METHODS, TOP_2, Method
from lime.tuner.presets import PRESETS, preset_settings

CONF = Path(__file__).resolve().parents[2] / "conf"
BALANCE = {"authors": {"alpha": 0.001, "beta": 0.0001, "every_n_steps": 50}}
"""Of presets with balance losses of their own: both terms carry a further 0.01 in the authors' code."""


def register_groups() -> None:
    """Offer `method=NAME` for every method, `lime=NAME` for every preset, the mixtures' routing and `off`."""
    store = ConfigStore.instance()
    # Hydra copies the places that it reads, this store among them, for every question about a group, and changes none
    store.__deepcopy__ = _itself  # type: ignore[attr-defined]
    for preset in PRESETS:
        settings = preset_settings(preset)
        section = dataclasses.asdict(LimeSection(**{option: getattr(settings, option) for option in LIME_OPTIONS}))
        store.store(preset, {**section, "balance": BALANCE.get(preset, section["balance"])}, group="lime")
    store.store("mixture", dataclasses.asdict(LimeSection(**TOP_2)), group="lime")
    store.store("off", {"enabled": False}, group="lime")
    for name, method in METHODS.items():
        store.store(name, OmegaConf.create(_overlay_of(method)), group="method", package="_global_")


def _itself(_: Any) -> ConfigStore:
    store: ConfigStore = ConfigStore.instance()
    return store


def _overlay_of(method: Method) -> dict[str, Any]:
    kind = method.type
    group = "default" if method.lime else "mixture" if kind.is_mixture else "off"
    overlay: dict[str, Any] = {
        "defaults": [{"override /peft": kind.name}, {"override /lime": group}],
        "method": method.name,
    }
    if method.is_plain:
        return overlay | {"peft": kind.plain}
    routing = {option: value for option, value in (kind.routing or {}).items() if value != TOP_2[option]}
    return overlay | {"lime": routing}


def choices(group: str) -> list[str]:
    """The choices of a group of this package, sorted."""
    stored = ConfigStore.instance().repo.get(group, {})
    return sorted({Path(name).stem for name in (*stored, *(path.name for path in (CONF / group).glob("*.yaml")))})


def import_types_of(folders: Iterable[str | Path | None]) -> None:
    """Import the modules that files `peft/NAME.yaml` of configuration folders name, so that their types are choices.

    Raises:
        ConfigError: one cannot be read or imported.
    """
    before = list(METHODS)
    for path in (path for folder in folders if folder for path in sorted(Path(folder).glob("peft/*.yaml"))):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError([f"{path}: cannot be read as YAML ({error})"]) from error
        if isinstance(content, dict) and isinstance(content.get("module"), str):
            import_types(content["module"])
    if list(METHODS) != before:
        register_groups()
