"""The command line of train.py and eval.py: compose with Hydra, check everything, run, tell errors plainly."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lime.config.check import ConfigError, build
from lime.config.identity import register_run_id
from lime.config.overrides import check, force, register, with_method
from lime.config.searched import register_searched
from lime.config.sweeps import Plan, make_plan

log = logging.getLogger(__name__)
T = TypeVar("T")

USER_ERROR = 2  # exit code of a wrong configuration or wrong input
INFO_FLAGS = ("help", "hydra_help", "version", "info", "cfg", "shell_completion")


register_run_id()  # on import, so that the workers of a parallel launcher know them too
register_searched()


def launch(
    task: Callable[[T, Path, list[str]], None],
    schema: type[T],
    config_dir: Path,
    config_name: str,
    experiments: Path | None = None,
    sweep: Sweep | None = None,
) -> None:
    """Compose ``config_name``, check it against ``schema`` and call ``task(configuration, output folder, overrides)``.

    All problems of the configuration are printed together, before the task (and with it any model library) is
    imported; of a sweep (``-m``) those of every run. ``ValueError`` and ``OSError`` from the task are the user's to
    mend: their message is printed without a traceback. Both end with exit code 2. Other exceptions keep their
    traceback.

    In a sweep a failed run is reported and the others go on; the exit code is 2 if any failed.

    Args:
        experiments: folder of overlays for ``+experiment=NAME``.
        sweep: what a sweep does beyond calling the task; None calls the task for every run.
    """
    try:
        register(schema, experiments)
    except ConfigError as error:
        sys.exit(_tell(error))
    arguments = get_args_parser().parse_args()
    name = arguments.config_name or config_name
    arguments.overrides = with_method(arguments.overrides, schema)
    sys.argv = [sys.argv[0], *force(with_method(sys.argv[1:], schema), schema)]
    plan = None
    if not any(getattr(arguments, flag, None) for flag in INFO_FLAGS):
        try:
            check(arguments.overrides, config_dir, name, schema)
            if arguments.multirun and sweep is not None:
                plan = make_plan(force(arguments.overrides, schema), config_dir, name, schema)
        except ConfigError as error:
            sys.exit(_tell(error))
    if plan is not None:
        try:
            plan.write()
        except OSError as error:
            sys.stderr.write(f"error: {error}\n")
            sys.exit(USER_ERROR)
    job = _Job(task, schema, sweep)
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir), config_name=config_name)(job)()
    finally:
        failed = sweep.summary(plan) if plan is not None and sweep is not None else 0
    if failed or job.failures:
        sys.exit(USER_ERROR)


class Sweep(Protocol):
    """What a sweep does beyond calling its task once for every run."""

    def run(self, task: Callable[[], None], config: Any, folder: Path, overrides: list[str]) -> None:
        """Call ``task`` unless the run's result is there already."""

    def summary(self, plan: Plan) -> int:
        """Tell how the runs of the plan ended; returns the number that failed."""


class _Job:
    """What Hydra calls for each run. Pickled by launchers that start other processes."""

    def __init__(self, task: Callable[[Any, Path, list[str]], None], schema: type, sweep: Sweep | None):
        self._task, self._schema, self._sweep = task, schema, sweep
        self.failures: list[str] = []

    def __call__(self, config: DictConfig) -> None:
        try:
            values: Any = OmegaConf.to_container(config, resolve=True)
            settings: Any = build(self._schema, values)
            hydra_config = HydraConfig.get()
            folder = Path(hydra_config.runtime.output_dir)
            overrides = [text.removeprefix("++") for text in hydra_config.overrides.task]
            if hydra_config.mode == RunMode.MULTIRUN and self._sweep is not None:
                self._sweep.run(lambda: self._task(settings, folder, overrides), settings, folder, overrides)
            else:
                self._task(settings, folder, overrides)
        except (ValueError, OSError) as error:
            log.error("error: %s", error)
            self.failures.append(str(error))


def _tell(error: ConfigError) -> int:
    sys.stderr.write(f"{error}\n")
    return USER_ERROR
