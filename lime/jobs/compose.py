"""The checked configuration of a command line, without running anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar, overload

from lime.config.check import ConfigError, build
from lime.config.groups import CONF
from lime.config.overrides import check, register
from lime.config.schema import EvalConfig, TrainConfig
from lime.config.source import values_of
from lime.jobs.command_line import read_line

T = TypeVar("T")


@overload
def compose(name: Literal["train"] = "train", overrides: Sequence[str] = ()) -> TrainConfig: ...
@overload
def compose(name: Literal["eval"], overrides: Sequence[str] = ()) -> EvalConfig: ...
def compose(name: str = "train", overrides: Sequence[str] = ()) -> TrainConfig | EvalConfig:
    """The checked configuration of ``train.py`` or ``eval.py`` with these overrides, e.g. in a notebook.

        config = lime.compose("train", ["method=lora", "lime.num_experts=8"])

    Raises:
        ConfigError: everything that is wrong with the overrides.
    """
    schemas: dict[str, type] = {"train": TrainConfig, "eval": EvalConfig}
    if name not in schemas:
        raise ConfigError([f"compose: expected train or eval, got {name!r}"])
    found: TrainConfig | EvalConfig = composed(list(overrides), CONF, name, schemas[name])
    return found


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
