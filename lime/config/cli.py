"""The command line of train.py and eval.py: compose with Hydra, check everything, run, tell errors plainly."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lime.config.check import ConfigError, build
from lime.config.overrides import check, force, register

log = logging.getLogger(__name__)
T = TypeVar("T")

USER_ERROR = 2  # exit code of a wrong configuration or wrong input
INFO_FLAGS = ("help", "hydra_help", "version", "info", "cfg", "shell_completion")


def launch(
    task: Callable[[T, Path, list[str]], None],
    schema: type[T],
    config_dir: Path,
    config_name: str,
    experiments: Path | None = None,
) -> None:
    """Compose ``config_name``, check it against ``schema`` and call ``task(configuration, output folder, overrides)``.

    All problems of the configuration are printed together, before the task (and with it any model library) is
    imported. ``ValueError`` and ``OSError`` from the task are the user's to mend: their message is printed without
    a traceback. Both end with exit code 2. Other exceptions keep their traceback.

    In a sweep (``-m``) a failed job is reported and the others go on; the exit code is 2 if any failed.

    Args:
        experiments: folder of overlays for ``+experiment=NAME``.
    """
    try:
        register(schema, experiments)
    except ConfigError as error:
        sys.exit(_tell(error))
    arguments = get_args_parser().parse_args()
    if not any(getattr(arguments, flag, None) for flag in INFO_FLAGS):
        try:
            check(arguments.overrides, config_dir, arguments.config_name or config_name, schema)
        except ConfigError as error:
            sys.exit(_tell(error))
    failures: list[str] = []

    def job(config: DictConfig) -> None:
        try:
            values: Any = OmegaConf.to_container(config, resolve=True)
            hydra_config = HydraConfig.get()
            task(
                build(schema, values),
                Path(hydra_config.runtime.output_dir),
                [text.removeprefix("++") for text in hydra_config.overrides.task],
            )
        except (ValueError, OSError) as error:
            log.error("error: %s", error)
            failures.append(str(error))

    sys.argv = [sys.argv[0], *force(sys.argv[1:], schema)]
    hydra.main(version_base="1.3", config_path=str(config_dir), config_name=config_name)(job)()
    if failures:
        sys.exit(USER_ERROR)


def _tell(error: ConfigError) -> int:
    sys.stderr.write(f"{error}\n")
    return USER_ERROR
