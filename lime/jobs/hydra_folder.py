"""``.hydra/`` in a run's folder, as Hydra leaves it: the configuration as it was composed, Hydra's own, the overrides.

Hydra itself would write it before anybody knows whether the folder is another run's, which then is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from lime.system.atomic import write_text
from lime.system.nested import plain
from lime.system.slurm import first_task

FOLDER = ".hydra"


def write_hydra_folder(folder: Path, config: DictConfig, hydra_config: Any, settings: dict[str, Any]) -> None:
    """Write the three files, unless the folder holds a run with other settings, or somebody else's ``.hydra``."""
    place = folder / FOLDER
    if not first_task() or place.is_symlink() or not _is_ours(folder, place, settings):
        return
    place.mkdir(parents=True, exist_ok=True)
    own = OmegaConf.to_container(hydra_config, resolve=False)
    overrides = yaml.safe_dump([text.removeprefix("++") for text in hydra_config.overrides.task], allow_unicode=True)
    texts = {
        "config.yaml": OmegaConf.to_yaml(config),
        "hydra.yaml": OmegaConf.to_yaml(OmegaConf.create({"hydra": own})),
        "overrides.yaml": overrides,
    }
    for name, text in texts.items():
        write_text(place / name, text)


def _is_ours(folder: Path, place: Path, settings: dict[str, Any]) -> bool:
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8")
    except FileNotFoundError:
        return not place.exists()
    try:
        return bool(yaml.safe_load(text) == plain(settings))
    except yaml.YAMLError:
        return False
