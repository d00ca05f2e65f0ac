"""The checked configuration of a command line, without running anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from lime.config.check import ConfigError, build
from lime.config.overrides import check, register
from lime.config.source import values_of
from lime.jobs.command_line import read_line

T = TypeVar("T")


def composed(arguments: Sequence[str], config_dir: Path, config_name: str, schema: type[T]) -> T:
    """What `launch` would hand to its task for this command line of a single run, `+experiment=NAME` included.

    Raises:
        ConfigError: everything that is wrong with it.
    """
    register(schema, config_dir.parent / "experiments")
    line = read_line(arguments, schema, config_dir, config_name)
    if line.multirun or line.informs:
        raise ConfigError(["this takes the options of a single run: no -m, --cfg, --info or --help of train.py"])
    config = check(line.overrides, line.folder, line.name, schema, line.extra, multirun=False).config
    return build(schema, values_of(config))
