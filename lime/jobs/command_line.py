"""The command line of train.py and eval.py: compose with Hydra, check everything, run, tell errors plainly."""

from __future__ import annotations

import argparse
import dataclasses
import io
import logging
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from hydra import version
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lime.config.check import ConfigError, build, unknown_key
from lime.config.groups import import_types_of
from lime.config.identity import register_resolvers
from lime.config.overrides import check, force, register, with_home, with_method, without_null_groups
from lime.config.schema import TrainConfig
from lime.config.source import COMPOSE_ERRORS, Source, absolute, said, values_of
from lime.config.sweeps import Plan, make_plan
from lime.jobs.hydra_folder import write_hydra_folder
from lime.runs.lock import interrupted_unseen
from lime.runs.record import RECORD_FILE, objective_of, read_record
from lime.runs.submitted import as_task, ended_with_the_sweep
from lime.system import interrupts
from lime.system.limits import explained
from lime.system.printing import flush, plain, plain_logging
from lime.system.slurm import first_task, requeue, under_slurm
from lime.system.threads import spin_briefly

log = logging.getLogger(__name__)
T = TypeVar("T")

USER_ERROR = 2  # exit code of a wrong configuration or wrong input
LAUNCHERS = ("hydra._internal.core_plugins.basic_launcher", "hydra_plugins.hydra_submitit_launcher.submitit_launcher")
"""Loggers that print each run's overrides."""
INFO_FLAGS = ("help", "hydra_help", "version", "info", "cfg", "shell_completion")


register_resolvers()  # on import, so that the workers of a parallel launcher know them too


def launch(
    task: Callable[[T, Path, list[str]], None],
    schema: type[T],
    config_dir: Path,
    config_name: str,
    experiments: Path | None = None,
    sweep: Sweep | None = None,
    prepare: Callable[[list[str]], list[str]] | None = None,
) -> None:
    """Compose ``config_name``, check it against ``schema`` and call ``task(configuration, output folder, overrides)``.

    All problems of the configuration are printed together, before the task (and with it any model library) is
    imported; of a sweep (``-m``) those of every run. ``ValueError`` and ``OSError`` from the task are the user's to
    fix: their message is printed without a traceback. Both end with exit code 2. Other exceptions keep their
    traceback.

    In a sweep a failed run is reported and the others go on; the exit code is 2 if any failed.

    Args:
        experiments: folder of overlays for ``+experiment=NAME``.
        sweep: what a sweep does beyond calling the task; None calls the task for every run.
        prepare: changes the command line before it is read.
    """
    speak_plainly()
    spin_briefly()
    with interrupts.taken():
        try:
            arguments = prepare(sys.argv[1:]) if prepare else sys.argv[1:]
            try:
                register(schema, experiments)
                line = read_line(arguments, schema, config_dir, config_name)
                config, plan = (None, None) if line.informs else _checked(line, schema)
            except ConfigError as error:
                sys.exit(_tell(error))
            _run_all(line, _Job(task, schema, sweep), config, plan)
        except interrupts.Interrupted as stop:
            if stop.signal == getattr(signal, "SIGUSR1", None) and under_slurm() and first_task():
                requeue()
            if not stop.told:
                begun = logging.getLogger().handlers  # there is a log
                sys.stderr.write(f"{stop}\n" if begun else f"{stop}, before anything had begun\n")
            raise
        finally:
            flush()


def _run_all(line: Line, job: _Job, config: DictConfig | None, plan: Plan | None) -> None:
    """Run what was checked, and exit with an error where a run failed."""
    failed = 0
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here as they are
    try:
        if plan is not None and job.sweep is not None:
            plan.write()
            for launcher in LAUNCHERS:
                logging.getLogger(launcher).setLevel(logging.WARNING)
            elsewhere = [text for text in line.overrides if re.fullmatch(r"\+*launcher=(?!local$).+", text)]
            if elsewhere:
                follow = f"to follow them: python scripts/runs.py {plan.folder} --watch"
                sys.stderr.write(f"{len(plan.runs)} runs in {plan.folder}, by {elsewhere[-1]}; {follow}\n")
        try:
            if config is None or line.several:
                _run(line, job)
            else:
                _run_once(line, job, config)
        finally:
            failed = job.sweep.summary(plan) if plan is not None and job.sweep is not None else 0
    except OSError as error:  # a folder that cannot be made, before any run
        sys.stderr.write(f"error: {plain(explained(error))}\n")
        sys.exit(USER_ERROR)
    if failed or job.failures:
        sys.exit(USER_ERROR)


@dataclass
class Line:
    """A command line, read: Hydra's options, the overrides, and where the configuration comes from."""

    options: argparse.Namespace
    overrides: list[str]
    folder: str
    name: str

    @property
    def extra(self) -> str | None:
        """The folder of --config-dir."""
        return extra_folder(self.options)

    @property
    def multirun(self) -> bool:
        return bool(self.options.multirun)

    @property
    def several(self) -> bool:
        """Whether it is a sweep, by -m or by Hydra's key."""
        return self.multirun or any(text.lstrip("+") == "hydra.mode=MULTIRUN" for text in self.overrides)

    @property
    def informs(self) -> bool:
        """Whether it only asks Hydra to show something."""
        return any(getattr(self.options, flag, None) for flag in INFO_FLAGS)


def extra_folder(options: argparse.Namespace) -> str | None:
    return str(Path(options.config_dir).absolute()) if options.config_dir is not None else None


def read_line(arguments: Sequence[str], schema: type, config_dir: Path, config_name: str) -> Line:
    """Read a command line, options and overrides in any order.

    Raises:
        ConfigError: an option that is none, with the key that is perhaps meant; options that exclude each other.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ConfigError([message])

    parser.error = refuse  # type: ignore[method-assign]
    options, unknown = parser.parse_known_intermixed_args(list(arguments))
    if unknown:
        raise ConfigError([_no_option(text, arguments, schema) for text in unknown])
    if options.experimental_rerun is not None:
        raise ConfigError(
            ["--experimental-rerun: not supported; a run is repeated by the overrides in its record.json"]
        )
    asked = [name for name in ("run", "multirun", "cfg", "info", "shell_completion") if getattr(options, name)]
    if len(asked) > 1:
        raise ConfigError([f"--{' and --'.join(asked)}: expected only one of them"])
    if options.resolve and not (options.cfg or options.help):
        raise ConfigError(["--resolve: goes with --cfg or --help"])
    folder = absolute(options.config_path, config_dir.parent) if options.config_path else str(config_dir)
    if not folder.startswith("pkg://") and not Path(folder).is_dir():
        raise ConfigError([f"--config-path: {options.config_path}: no such folder"])
    searched = [text for text in options.overrides if text.lstrip("+").startswith("hydra.searchpath=")]
    import_types_of([extra_folder(options), folder, *re.findall(r"file://([^],'\"]+)", " ".join(searched))])
    overrides = with_method(without_null_groups(with_home(options.overrides)), schema)
    return Line(options, overrides, folder, options.config_name or config_name)


def _no_option(text: str, arguments: Sequence[str], schema: type) -> str:
    name, _, value = text.lstrip("-").partition("=")
    after = [*arguments, ""][list(arguments).index(text) + 1]
    value = value or ("" if "=" in after or after.startswith("-") else after)
    told = unknown_key(name.replace("-", "_"), schema)
    meant = told.rpartition("did you mean ")[2].rstrip("?") if "did you mean" in told else ""
    hint = f"; did you mean {meant}={value or 'VALUE'}?" if meant else "; --help shows all"
    return f"{text.partition('=')[0]}: no such option; settings are written KEY=VALUE{hint}"


def _checked(line: Line, schema: type) -> tuple[DictConfig, Plan | None]:
    """Check the line, tell what should be told, and plan the sweep."""
    config, notes = check(line.overrides, line.folder, line.name, schema, line.extra, multirun=line.several)
    for note in notes:
        sys.stderr.write(f"note: {note}\n")
    if not line.several:
        return config, None
    plan = make_plan(force(line.overrides, schema), line.folder, line.name, schema, line.extra)
    settings: Any = build(schema, values_of(config)) if plan is None else None
    if isinstance(settings, TrainConfig) and (problem := settings.without_objective()) is not None:
        raise ConfigError([problem])
    return config, plan


def _run_once(line: Line, job: _Job, config: DictConfig) -> None:
    """A single run, by Hydra, of the configuration that was checked."""

    def checked(**_: Any) -> DictConfig:
        configure_log(config.hydra.hydra_logging, config.hydra.verbose)
        return config

    try:
        with ended_with_the_sweep(), Source(line.folder, line.name, line.extra).opened() as place:
            place.hydra.compose_config = checked  # type: ignore[assignment, method-assign]
            place.hydra.run(line.name, job, [])
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(_tell(ConfigError([said(error)])))


def _run(line: Line, job: _Job) -> None:
    """Hand the line to Hydra. What it refuses is told in a sentence; what a job raises keeps its traceback."""
    options = argparse.Namespace(**{**vars(line.options), "overrides": force(line.overrides, job.schema)})
    options.config_dir, options.config_path, options.config_name = line.extra, None, None
    version.setbase("1.3")
    try:
        with ended_with_the_sweep():
            _run_hydra(options, get_args_parser(), job, line.folder, line.name)
    except BrokenPipeError:  # of `--help | head`
        return
    except COMPOSE_ERRORS as error:
        if not line.informs and not isinstance(error, (HydraException, OmegaConfBaseException)):
            raise
        sys.exit(_tell(ConfigError([said(error)])))


def speak_plainly() -> None:
    """Characters that a terminal lacks are replaced, control characters are shown, and a log that cannot be written
    ends no run."""
    plain_logging()
    logging.raiseExceptions = False
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # a retry of the hub is worth no line, let alone two
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


class Sweep(Protocol):
    """What a sweep does beyond calling its task once for every run."""

    def run(self, task: Callable[[], None], config: Any, folder: Path, overrides: list[str]) -> None:
        """Call ``task`` unless the run's result is there already."""

    def summary(self, plan: Plan) -> int:
        """Tell how the runs of the plan ended; returns the number that failed."""


class _Job:
    """What Hydra calls for each run. Pickled by launchers that start other processes."""

    def __init__(self, task: Callable[[Any, Path, list[str]], None], schema: type, sweep: Sweep | None):
        self._task, self.schema, self.sweep = task, schema, sweep
        self.failures: list[str] = []

    def __call__(self, config: DictConfig) -> float | None:
        with as_task():  # launchers call it in processes of their own
            return self._call(config)

    def _call(self, config: DictConfig) -> float | None:
        plain_logging()
        folder = None
        hydra_config = HydraConfig.get()
        here = Path.cwd()
        os.chdir(hydra_config.runtime.cwd)  # with hydra.job.chdir too, paths count from where the command was given
        try:
            values: Any = OmegaConf.to_container(config, resolve=True)
            settings: Any = build(self.schema, values)
            folder = Path(hydra_config.runtime.output_dir)
            overrides = [text.removeprefix("++") for text in hydra_config.overrides.task]
            write_hydra_folder(folder, config, hydra_config, dataclasses.asdict(settings))
            with interrupts.blamed():  # an import that a signal ended may say that a module is broken
                if hydra_config.mode == RunMode.MULTIRUN and self.sweep is not None:
                    self.sweep.run(lambda: self._task(settings, folder, overrides), settings, folder, overrides)
                else:
                    self._task(settings, folder, overrides)
            return _objective(settings, folder)
        except interrupts.Interrupted as stop:
            log.warning("%s; %s", stop, _goes_on())
            stop.told = True
            if folder is not None:
                interrupted_unseen(folder, "run" if self.schema is TrainConfig else "evaluation", stop)
            raise
        except Exception as error:
            told = said(error) if isinstance(error, OmegaConfBaseException) else explained(error)
            if told is None:
                raise
            log.error("error: %s", told)
            self.failures.append(told)
            return math.nan
        finally:
            os.chdir(here)


def _objective(settings: Any, folder: Path) -> float | None:
    """What the run returns to a sweeper; not a number where it failed or diverged, None where it has none."""
    if not isinstance(settings, TrainConfig) or not (folder / RECORD_FILE).is_file():
        return None
    record = read_record(folder)
    return objective_of(record, settings.objective) if record.status == "finished" else math.nan


def _goes_on() -> str:
    """How the run that was stopped goes on."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN or any("run.dir=" in text for text in hydra_config.overrides.hydra):
        return "the same command goes on where it stood"
    return f"the same command with hydra.run.dir={hydra_config.runtime.output_dir} goes on where it stood"


def _tell(error: ConfigError) -> int:
    sys.stderr.write(f"{plain(error)}\n")
    return USER_ERROR
