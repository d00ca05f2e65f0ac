"""A search with Optuna over a named space: each trial is a run of train.py, and the search goes on where it stopped.

A space is a YAML file: ``objective`` (validation_loss or macro), ``overrides`` for every trial, and ``space``, by key
either ``{low, high}`` (whole numbers where both are; ``log: true`` for a logarithmic scale) or ``{choices: […]}``.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import secrets
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
import yaml
from filelock import FileLock
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from lime.config.check import ConfigError, build, known_keys, unknown_key
from lime.config.identity import EMBEDDED_DATA, config_hash, decisive
from lime.config.schema import TrainConfig
from lime.experiments.inputs import backbone_fingerprints, data_fingerprint
from lime.experiments.resume import state
from lime.jobs.compose import composed
from lime.runs.lock import is_held
from lime.runs.record import objective_of
from lime.system import interrupts
from lime.system.atomic import remove
from lime.system.nested import differing, flattened

log = logging.getLogger(__name__)

OBJECTIVES: dict[str, Literal["minimize", "maximize"]] = {"validation_loss": "minimize", "macro": "maximize"}
MOST_DRAWS = 50  # to find settings that were not tried
RUN, SETTINGS, FINISHED = "run", "settings", (TrialState.COMPLETE, TrialState.FAIL)
PROCESS, INSTEAD_OF = "process", "instead_of"


@dataclass
class Space:
    """What a search tries. ``validation_loss``: on the validation part, of the weights that are saved; ``macro``: the
    macro score over the test rows of all tasks, which should then not be the rows that are reported."""

    objective: str = "validation_loss"
    overrides: list[str] = field(default_factory=list)
    space: dict[str, Any] = field(default_factory=dict)

    def errors(self) -> list[str]:
        problems = [] if self.objective in OBJECTIVES else [f"objective: expected one of {', '.join(OBJECTIVES)}"]
        problems += [] if self.space else ["space: names no key to search over"]
        for key, values in self.space.items():
            good = isinstance(values, Mapping) and (
                (set(values) == {"choices"} and isinstance(values["choices"], list) and values["choices"])
                or ({"low", "high"} <= set(values) <= {"low", "high", "log"} and values["low"] < values["high"])
            )
            if not good:
                problems.append(f"space.{key}: expected {{low, high}} with low < high, maybe log, or {{choices: […]}}")
        return problems

    def distributions(self) -> dict[str, BaseDistribution]:
        """The space in Optuna's terms."""
        distributions: dict[str, BaseDistribution] = {}
        for key, values in self.space.items():
            if "choices" in values:
                distributions[key] = CategoricalDistribution(values["choices"])
                continue
            whole = all(isinstance(values[end], int) for end in ("low", "high"))
            kind = IntDistribution if whole else FloatDistribution
            distributions[key] = kind(values["low"], values["high"], log=bool(values.get("log")))
        return distributions


def read_space(path: Path) -> Space:
    """A space from its file.

    Raises:
        ValueError: no such file, or everything that is wrong in it.
    """
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
        raise ValueError(f"{path}: no such search space; there are: {known or 'none'}")
    try:
        return build(Space, yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML ({error})") from error


class Search:
    """A study whose trials are runs in ``multirun/NAME/HASH``, as those of a sweep.

    Args:
        name: of the search; its folder is ``multirun/NAME`` in the working folder, with the study in ``optuna.db``.
        overrides: for train.py, after those of the space.
        root: the project's folder.
        seed: of Optuna's sampler (TPE), which proposes at random for the first ten trials. Each trial draws with a seed
            of its own, made of this one and the trial's number, so that restarts and parallel processes propose others.

    Raises:
        ValueError: the study was begun with another space, other settings, other data or another backbone.
    """

    def __init__(self, name: str, space: Space, overrides: Sequence[str], root: Path, seed: int = 0):
        self.folder = Path("multirun") / name
        self._space, self._root = space, root
        self._overrides = [*space.overrides, f"name={name}", *overrides]
        self._distributions = space.distributions()
        settings = self._settings()  # before anything is written: they may be wrong
        self.folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # the trials are told here
        self.study = optuna.create_study(
            study_name=name,
            storage=f"sqlite:///{self.folder / 'optuna.db'}",
            direction=OBJECTIVES[space.objective],
            load_if_exists=True,
        )
        self._seed = seed
        self._process = secrets.token_hex(4)
        self._one_at_a_time = FileLock(self.folder / ".optuna-lock")
        self._check_settings(settings)

    def _settings(self) -> dict[str, Any]:
        """What all trials share.

        Raises:
            ConfigError: overrides or keys of the space that train.py does not take.
        """
        known = set(known_keys(TrainConfig))
        if unknown := [f"space.{unknown_key(key, TrainConfig)}" for key in self._space.space if key not in known]:
            raise ConfigError(unknown)
        config = composed(self._overrides, self._root / "conf", "train", TrainConfig)
        settings = flattened(decisive(dataclasses.asdict(config)))
        for key in self._space.space:
            settings.pop(key, None)
        settings |= {f"space.{key}": values for key, values in self._space.space.items()}
        settings |= {"objective": self._space.objective, "backbone": backbone_fingerprints(config)}
        if config.data.name != EMBEDDED_DATA:  # of which the settings say all
            settings["data"] = data_fingerprint(config)
        plain: dict[str, Any] = json.loads(json.dumps(settings))
        return plain

    def _check_settings(self, now: dict[str, Any]) -> None:
        """Refuse to mix trials that cannot be compared."""
        before = self.study.user_attrs.get(SETTINGS)
        if before is None:
            self.study.set_user_attr(SETTINGS, now)
            return
        changes = [f"{key}: {before.get(key)} then, {now.get(key)} now" for key in differing([before, now])]
        if changes:
            shown = "; ".join(changes[:4]) + ("; …" if len(changes) > 4 else "")
            raise ValueError(
                f"{self.folder / 'optuna.db'}: this search was begun with something else ({shown}); take it up with "
                "the same, or give this one another --name"
            )

    def run(self, trials: int) -> None:
        """Go on until so many trials have ended, earlier ones included. Trials that were stopped run again first.

        Several processes may work on one search.
        """
        held = self._held_by(self._process)
        try:
            with FileLock(held):
                self._take_up()
                while len(self.ended()) < trials:
                    self._try(self._ask())
        finally:
            remove(held)

    def ended(self) -> list[optuna.trial.FrozenTrial]:
        """The trials that count: each setting that was tried to its end, and those that failed, once."""
        trials = self.study.get_trials(deepcopy=False)
        again = {trial.user_attrs.get(INSTEAD_OF) for trial in trials}
        return [one for one in trials if one.state in FINISHED and RUN in one.user_attrs and one.number not in again]

    def _try(self, trial: optuna.Trial) -> None:
        overrides = self.overrides(trial.params)
        folder = self.folder / self._run_id(overrides)
        trial.set_user_attr(RUN, folder.name)
        _run_command([sys.executable, str(self._root / "train.py"), "-m", *overrides])
        status, record = state(folder)
        value = objective_of(record, self._space.objective) if status == "finished" and record is not None else None
        if value is None:
            self.study.tell(trial, state=TrialState.FAIL)
            log.warning("trial %d: no result (%s), see %s", trial.number, status, folder)
        else:
            self.study.tell(trial, value)
            log.info("trial %d: %s %.4f with %s", trial.number, self._space.objective, value, trial.params)

    def _ask(self) -> optuna.Trial:
        """The next trial, whose settings no earlier one has, unless it is to replace one that was stopped.

        Raises:
            ValueError: nothing new was found, as in a space of choices that have all been tried.
        """
        with self._one_at_a_time:
            for _ in range(MOST_DRAWS):
                trial = self.study.ask()
                trial.set_user_attr(PROCESS, self._process)
                self.study.sampler = optuna.samplers.TPESampler(
                    seed=zlib.crc32(f"{self._seed} {trial.number}".encode()), constant_liar=True
                )
                for key, kind in self._distributions.items():
                    _suggest(trial, key, kind)
                earlier = self.study.get_trials(deepcopy=False, states=(*FINISHED, TrialState.RUNNING))
                if INSTEAD_OF in trial.user_attrs or not any(
                    other.number < trial.number and other.params == trial.params for other in earlier
                ):
                    return trial
                self.study.tell(trial, state=TrialState.FAIL)  # not pruned: that the sampler takes for a bad value
        raise ValueError(f"{self.folder}: no new settings in {MOST_DRAWS} draws: the space is tried; widen it")

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """The command line of a trial."""
        return [*self._overrides, *(f"{key}={value}" for key, value in params.items())]

    def _run_id(self, overrides: Sequence[str]) -> str:
        config = composed(overrides, self._root / "conf", "train", TrainConfig)
        return config_hash(dataclasses.asdict(config))

    def _take_up(self) -> None:
        """Close the trials of processes that ended, and put their settings first in line."""
        with self._one_at_a_time:
            for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
                if is_held(self._held_by(trial.user_attrs.get(PROCESS, "nobody"))):
                    continue
                self.study.tell(trial.number, state=TrialState.FAIL)
                if trial.params.keys() == self._distributions.keys():
                    self.study.enqueue_trial(trial.params, user_attrs={INSTEAD_OF: trial.number})
                    log.info("trial %d was stopped; its settings go on", trial.number)

    def _held_by(self, process: str) -> Path:
        """The lock that a process holds while it works on the search."""
        return self.folder / f".search-{process}"


def _run_command(command: list[str]) -> None:
    """Run a trial. A signal is the trial's first, which saves a checkpoint; then it ends the search."""
    with subprocess.Popen(command) as process, interrupts.passed_on(process.send_signal):
        process.wait()
    interrupts.check()


def _suggest(trial: optuna.Trial, key: str, kind: BaseDistribution) -> None:
    if isinstance(kind, CategoricalDistribution):
        trial.suggest_categorical(key, kind.choices)
    elif isinstance(kind, IntDistribution):
        trial.suggest_int(key, kind.low, kind.high, log=kind.log)
    elif isinstance(kind, FloatDistribution):
        trial.suggest_float(key, kind.low, kind.high, log=kind.log)
