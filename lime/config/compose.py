"""The checked configuration of a command line, without running anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lime.config.check import build
from lime.config.overrides import check, force, register

T = TypeVar("T")


def composed(overrides: Sequence[str], config_dir: Path, config_name: str, schema: type[T]) -> T:
    """What `launch` would hand to its task for these overrides.

    Raises:
        ConfigError: everything that is wrong with them.
    """
    register(schema)
    check(overrides, config_dir, config_name, schema)
    with initialize_config_dir(str(config_dir), version_base="1.3", job_name=config_name):
        config = compose(config_name, overrides=force(overrides, schema))
    values: Any = OmegaConf.to_container(config, resolve=True)
    return build(schema, values)
