"""What a run takes from the user's own code, and from Lightning's Trainer beyond this project's options: all of it made
and checked before the model is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback

from lime.config.check import ConfigError
from lime.config.schema import TrainConfig
from lime.training.validation import validation_callbacks

SET_BY = {
    "accelerator": "trainer.accelerator",
    "strategy": "trainer.strategy",
    "devices": "trainer.devices",
    "num_nodes": "trainer.num_nodes",
    "precision": "trainer.precision",
    "logger": "the group logger and logger.extra",
    "callbacks": "callbacks.extra",
    "max_epochs": "trainer.max_epochs",
    "max_steps": "trainer.max_steps",
    "check_val_every_n_epoch": "trainer.validate_every_n_epochs",
    "val_check_interval": "trainer.val_check_interval",
    "log_every_n_steps": "trainer.log_every_n_steps",
    "accumulate_grad_batches": "trainer.accumulate_grad_batches",
    "gradient_clip_val": "trainer.gradient_clip_val",
    "deterministic": "trainer.deterministic",
    "enable_checkpointing": "callbacks.checkpoint",
    "enable_progress_bar": "callbacks.progress",
    "default_root_dir": "hydra.run.dir",
    "use_distributed_sampler": "the data, whose sampler divides the rows among processes",
    "limit_test_batches": "data.rows_per_split, as test rows are answered without the Trainer",
    "limit_predict_batches": "data.rows_per_split, as test rows are answered without the Trainer",
    "barebones": "the metrics and callbacks of the run, which it would turn off",
}
"""Arguments of Lightning's Trainer that other options set, and which."""


@dataclass
class Extras:
    """``trainer.extra``, ``callbacks.extra`` and ``logger.extra`` as objects."""

    trainer: dict[str, Any] = field(default_factory=dict)
    callbacks: list[Callback] = field(default_factory=list)
    loggers: list[Any] = field(default_factory=list)


def made_extras(config: TrainConfig) -> Extras:
    """The objects that the configuration names.

    Raises:
        ConfigError: everything that is wrong with them, by name: modules and classes that cannot be imported, arguments
            that they do not take, classes of another kind, arguments that the Trainer does not have or that another
            option sets.
    """
    problems = _argument_problems(config.trainer.extra)
    extras = Extras()
    for key, value in config.trainer.extra.items():
        extras.trainer[key] = _made(f"trainer.extra.{key}", value, problems)
    for number, node in enumerate(config.callbacks.extra):
        key = f"callbacks.extra[{number}]"
        extras.callbacks.append(_made(key, node, problems, Callback, "a subclass of lightning.pytorch.Callback"))
    for number, node in enumerate(config.logger.extra):
        logger = _made(f"logger.extra[{number}]", node, problems)
        if logger is not None and not callable(getattr(logger, "log_metrics", None)):
            problems.append(f"logger.extra[{number}]: {node['_target_']}: has no method log_metrics(metrics, step)")
        extras.loggers.append(logger)
    if not problems and (extras.trainer or extras.callbacks):
        own = validation_callbacks(Path(), config.callbacks, continues=False)
        problems += _refused(extras.trainer, [*own, *extras.callbacks])
    if problems:
        raise ConfigError(problems)
    return extras


def _argument_problems(extra: Mapping[str, Any]) -> list[str]:
    known = inspect.signature(pl.Trainer).parameters
    problems = [f"trainer.extra.{name}: is set by {SET_BY[name]}" for name in extra if name in SET_BY]
    free = f"no argument of Lightning's Trainer; these are: {', '.join(sorted(set(known) - set(SET_BY)))}"
    return problems + [f"trainer.extra.{name}: {free}" for name in extra if name not in known]


def _made(key: str, value: Any, problems: list[str], kind: type = object, expected: str = "") -> Any:
    """The value with every ``_target_`` node in it made; None where it cannot be."""
    if not isinstance(value, (dict, list)):
        return value
    name = value["_target_"] if isinstance(value, dict) and "_target_" in value else value
    try:
        made = instantiate(value, _convert_="all")
    except InstantiationException as error:  # around what importing or calling the class raised
        cause = error.__cause__ or error
        problems.append(f"{key}: {name}: {type(cause).__name__}: {' '.join(str(cause).split())}")
        return None
    if not isinstance(made, kind):
        problems.append(f"{key}: {name}: expected {expected}, got {type(made).__name__}")
        return None
    return made


def _refused(arguments: Mapping[str, Any], callbacks: list[Callback]) -> list[str]:
    """What Lightning says about arguments and callbacks together, by a Trainer that trains nothing."""
    arguments = {key: value for key, value in arguments.items() if key != "plugins"}
    options: dict[str, Any] = {"enable_progress_bar": False, "logger": False, **arguments}
    try:
        pl.Trainer(accelerator="cpu", devices=1, plugins=LightningEnvironment(), callbacks=callbacks, **options)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        names = [f"trainer.extra.{key}" for key in arguments] + (["callbacks.extra"] if callbacks else [])
        return [f"{', '.join(names)}: Lightning refuses this: {' '.join(str(error).split())}"]
    return []
