"""A search with Optuna over a named space: each trial is a run of train.py, and the search goes on where it stopped.

A space is a YAML file: ``objective`` (validation_loss or macro), ``overrides`` for every trial, and ``space``, by key
either ``{low, high}`` (whole numbers where both are; ``log: true`` for a logarithmic scale) or ``{choices: […]}``.
"""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from lime.config.check import build
from lime.config.compose import composed
from lime.config.identity import config_hash
from lime.config.schema import TrainConfig
from lime.experiments.records import Record
from lime.experiments.resume import state

log = logging.getLogger(__name__)

OBJECTIVES: dict[str, Literal["minimize", "maximize"]] = {"validation_loss": "minimize", "macro": "maximize"}
RUN, FINISHED = "run", (TrialState.COMPLETE, TrialState.FAIL)


@dataclass
class Space:
    """What a search tries. ``validation_loss``: the last loss on the validation part; ``macro``: the macro score over
    the test rows of all tasks, which should then not be the rows that are reported."""

    objective: str = "validation_loss"
    overrides: list[str] = field(default_factory=list)
    space: dict[str, Any] = field(default_factory=dict)

    def errors(self) -> list[str]:
        found = [] if self.objective in OBJECTIVES else [f"objective: expected one of {', '.join(OBJECTIVES)}"]
        found += [] if self.space else ["space: names no key to search over"]
        for key, values in self.space.items():
            good = isinstance(values, Mapping) and (
                (set(values) == {"choices"} and isinstance(values["choices"], list) and values["choices"])
                or ({"low", "high"} <= set(values) <= {"low", "high", "log"} and values["low"] < values["high"])
            )
            if not good:
                found.append(f"space.{key}: expected {{low, high}} with low < high, maybe log, or {{choices: […]}}")
        return found

    def distributions(self) -> dict[str, BaseDistribution]:
        """The space in Optuna's terms."""
        found: dict[str, BaseDistribution] = {}
        for key, values in self.space.items():
            if "choices" in values:
                found[key] = CategoricalDistribution(values["choices"])
                continue
            whole = all(isinstance(values[end], int) for end in ("low", "high"))
            kind = IntDistribution if whole else FloatDistribution
            found[key] = kind(values["low"], values["high"], log=bool(values.get("log")))
        return found


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
        seed: of Optuna's sampler (TPE), which proposes at random for the first ten trials.
    """

    def __init__(self, name: str, space: Space, overrides: Sequence[str], root: Path, seed: int = 0):
        self.folder = Path("multirun") / name
        self._space, self._root = space, root
        self._overrides = [*space.overrides, f"name={name}", *overrides]
        self._distributions = space.distributions()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.study = optuna.create_study(
            study_name=name,
            storage=f"sqlite:///{self.folder / 'optuna.db'}",
            sampler=optuna.samplers.TPESampler(seed=seed),
            direction=OBJECTIVES[space.objective],
            load_if_exists=True,
        )

    def run(self, trials: int) -> None:
        """Go on until so many trials have ended, earlier ones included. Trials that were killed run again first.

        Several processes may work on one search.
        """
        self._take_up()
        while len(self.study.get_trials(deepcopy=False, states=FINISHED)) < trials:
            trial = self.study.ask(self._distributions)
            overrides = self.overrides(trial.params)
            folder = self.folder / self._run_id(overrides)
            trial.set_user_attr(RUN, folder.name)
            subprocess.run([sys.executable, str(self._root / "train.py"), "-m", *overrides], check=False)
            status, record = state(folder)
            value = objective(record, self._space.objective) if status == "finished" and record is not None else None
            if value is None:
                self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
                log.warning("trial %d: no result (%s), see %s", trial.number, status, folder)
            else:
                self.study.tell(trial, value, skip_if_finished=True)
                log.info("trial %d: %s %.4f with %s", trial.number, self._space.objective, value, trial.params)

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """The command line of a trial."""
        return [*self._overrides, *(f"{key}={value}" for key, value in params.items())]

    def _run_id(self, overrides: Sequence[str]) -> str:
        config = composed(overrides, self._root / "conf", "train", TrainConfig)
        return config_hash(dataclasses.asdict(config))

    def _take_up(self) -> None:
        """Close the trials of processes that died, and put their settings first in line."""
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            if RUN not in trial.user_attrs or state(self.folder / trial.user_attrs[RUN])[0] != "running":
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                self.study.enqueue_trial(trial.params)
                log.info("trial %d was interrupted; its settings are tried again", trial.number)


def objective(record: Record, name: str) -> float | None:
    """What a search looks at in a run's record; None where the run does not have it."""
    if name == "macro":
        scores = record.score("macro", "macro")
        return None if scores is None else scores.score
    losses = record.training.validation if record.training is not None else []
    return losses[-1]["loss"] if losses else None
