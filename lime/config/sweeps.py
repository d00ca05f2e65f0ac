"""The plan of a sweep: every run that one command stands for, checked before the first one starts.

``sweep.json`` in the sweep's folder keeps it, so that tables can show which runs are still missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lime.atomic import write_json
from lime.config.check import ConfigError, build
from lime.config.identity import config_hash
from lime.ownership import check_output

SWEEP_FILE = "sweep.json"
SWEEP_SCHEMA = "lime-sweep/1"
BASIC = "BasicSweeper"


@dataclass(frozen=True)
class PlannedRun:
    """One point of a sweep: its folder's name, and what sets it apart from the other points."""

    run: str
    point: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """A sweep's folder, command line and runs, in order. Points that are one and the same run occur once."""

    folder: Path
    command: tuple[str, ...]
    runs: tuple[PlannedRun, ...]

    def write(self) -> Path:
        """Write ``sweep.json``, in place of the plan of an earlier command. OSError where something else is there."""
        path = self.folder / SWEEP_FILE
        content = {
            "schema": SWEEP_SCHEMA,
            "command": list(self.command),
            "runs": [{"run": planned.run, "point": planned.point} for planned in self.runs],
        }
        check_output(path)
        write_json(path, content, indent=1)
        return path


def read_plan(folder: Path) -> Plan | None:
    """The plan in a sweep's folder; None where there is none.

    Raises:
        ValueError: a damaged file; names it.
    """
    path = folder / SWEEP_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SWEEP_SCHEMA:
            raise ValueError(f"{path}: schema: expected {SWEEP_SCHEMA}, got {content['schema']!r}")
        runs = tuple(PlannedRun(str(entry["run"]), dict(entry["point"])) for entry in content["runs"])
        return Plan(folder, tuple(content["command"]), runs)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a plan of a sweep ({error!r}); start the sweep again") from error


def make_plan(overrides: Sequence[str], config_dir: Path, config_name: str, schema: Callable[[], Any]) -> Plan | None:
    """Compose and check every run of a sweep.

    Args:
        overrides: the command line, already checked by itself.

    Returns:
        None where another sweeper than Hydra's own decides on the runs as it goes.

    Raises:
        ConfigError: with every problem of every run, each named by the run's point.
    """
    problems: dict[str, list[str]] = {}
    runs: dict[str, PlannedRun] = {}
    with initialize_config_dir(str(config_dir), version_base="1.3", job_name=config_name):
        fixed = [text for text in overrides if not OverridesParser.create().parse_override(text).is_sweep_override()]
        composed = compose(config_name, overrides=fixed, return_hydra_config=True)
        if not str(composed.hydra.sweeper.get("_target_", "")).endswith(BASIC):
            return None
        params = composed.hydra.sweeper.params or {}
        texts = [*(f"{key}={value}" for key, value in params.items()), *overrides]
        parsed = OverridesParser.create().parse_overrides(texts)
        swept = {item.get_key_element() for item in parsed if item.is_sweep_override()}
        folder = Path(str(OmegaConf.select(composed, "hydra.sweep.dir")))
        for job in BasicSweeper.split_arguments(parsed, None)[0]:
            varied = [text for text in job if text.partition("=")[0] in swept]
            try:
                config = compose(config_name, overrides=job)
                values: Any = OmegaConf.to_container(config, resolve=True)
                build(schema, values)  # type: ignore[arg-type]
            except (HydraException, OmegaConfBaseException, ConfigError) as error:
                told = error.problems if isinstance(error, ConfigError) else [" ".join(str(error).split())]
                for problem in told:
                    problems.setdefault(problem, []).append(" ".join(_bare(text) for text in varied))
                continue
            run = config_hash(values)
            point = {name: _value(values, name, text) for name, _, text in (_bare(t).partition("=") for t in varied)}
            runs.setdefault(run, PlannedRun(run, point))
    if problems:
        raise ConfigError([f"{problem} [{_some(points)}]" for problem, points in problems.items()])
    return Plan(folder, tuple(_bare(text) for text in overrides), tuple(runs.values()))


def _some(points: Sequence[str]) -> str:
    return points[0] if len(points) == 1 else f"{points[0]} and {len(points) - 1} more"


def _bare(text: str) -> str:
    return text.lstrip("+")


def _value(values: Mapping[str, Any], key: str, text: str) -> Any:
    """The value of a dotted key in the composed configuration; of a group that sets a section, its choice."""
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return text if found is None or isinstance(found, Mapping) else found
