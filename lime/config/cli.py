"""The command line of train.py and eval.py: compose with Hydra, check everything, run, tell errors plainly."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lime import interrupts
from lime.atomic import write_text
from lime.config.check import ConfigError, build
from lime.config.identity import register_mini_root, register_run_id
from lime.config.overrides import check, force, register, with_method
from lime.config.schema import TrainConfig
from lime.config.searched import register_searched
from lime.config.sweeps import Plan, make_plan
from lime.experiments.folders import claim_run_folder
from lime.limits import explained
from lime.printing import plain, plain_logging
from lime.slurm import first_task, requeue, under_slurm

log = logging.getLogger(__name__)
T = TypeVar("T")

USER_ERROR = 2  # exit code of a wrong configuration or wrong input
INFO_FLAGS = ("help", "hydra_help", "version", "info", "cfg", "shell_completion")


register_run_id()  # on import, so that the workers of a parallel launcher know them too
register_searched()
register_mini_root()


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
    speak_plainly()
    with interrupts.taken():
        try:
            _launch(task, schema, config_dir, config_name, experiments, sweep)
        except interrupts.Interrupted as stop:
            if stop.signal == getattr(signal, "SIGUSR1", None) and under_slurm() and first_task():
                requeue()
            if not logging.getLogger().handlers:  # it came before there was a log
                sys.stderr.write(f"{stop}, before anything had begun\n")
            raise
        finally:
            _flush()


def _launch(
    task: Callable[[T, Path, list[str]], None],
    schema: type[T],
    config_dir: Path,
    config_name: str,
    experiments: Path | None,
    sweep: Sweep | None,
) -> None:
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
    job = _Job(task, schema, sweep)
    failed = 0
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here as they are
    try:
        if plan is not None:
            plan.write()
            logging.getLogger("hydra._internal.core_plugins.basic_launcher").setLevel(logging.WARNING)
        try:
            hydra.main(version_base="1.3", config_path=str(config_dir), config_name=config_name)(job)()
        finally:
            failed = sweep.summary(plan) if plan is not None and sweep is not None else 0
    except OSError as error:  # a folder that cannot be made, before any run
        sys.stderr.write(f"error: {plain(explained(error))}\n")
        sys.exit(USER_ERROR)
    if failed or job.failures:
        sys.exit(USER_ERROR)


def speak_plainly() -> None:
    """Characters that a terminal lacks are replaced, control characters are shown, and a log that cannot be written
    ends no run."""
    plain_logging()
    logging.raiseExceptions = False
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # a retry of the hub is worth no line, let alone two
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _flush() -> None:
    """Write out what was printed; where nobody reads it any more, Python need not say so at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
        plain_logging()  # launchers call it in processes of their own
        folder = None
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
        except interrupts.Interrupted as stop:
            log.warning("%s; %s", stop, _goes_on())
            if folder is not None and not (status := folder / "status.json").exists():  # before the run began
                claim_run_folder(folder, "run" if self._schema is TrainConfig else "evaluation")
                write_text(status, json.dumps({"status": "interrupted", "error": {"type": stop.signal.name}}) + "\n")
            raise
        except Exception as error:
            said = explained(error)
            if said is None:
                raise
            log.error("error: %s", said)
            self.failures.append(said)


def _goes_on() -> str:
    """How the run that was stopped goes on."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN or any("run.dir=" in text for text in hydra_config.overrides.hydra):
        return "the same command goes on where it stood"
    return f"the same command with hydra.run.dir={hydra_config.runtime.output_dir} goes on where it stood"


def _tell(error: ConfigError) -> int:
    sys.stderr.write(f"{plain(error)}\n")
    return USER_ERROR
