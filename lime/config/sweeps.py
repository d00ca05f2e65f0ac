"""The plan of a sweep: every run that one command stands for, checked before the first one starts.

``sweep.json`` in the sweep's folder keeps it, so that tables can show which runs are still missing.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override

from lime.config.check import ConfigError, build
from lime.config.identity import EMBEDDED_DATA
from lime.config.overrides import BASIC, MOST_POINTS, listed
from lime.config.source import COMPOSE_ERRORS, Opened, Source, said, values_of
from lime.system.atomic import write_json
from lime.system.ownership import check_output

SWEEP_FILE = "sweep.json"
SWEEP_SCHEMA = "lime-sweep/1"


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


def make_plan(
    overrides: Sequence[str],
    config_dir: Path | str,
    config_name: str,
    schema: Callable[[], Any],
    extra: str | None = None,
) -> Plan | None:
    """Compose and check every run of a sweep.

    Args:
        overrides: the command line, already checked by itself.
        extra: folder of ``--config-dir``.

    Returns:
        None where another sweeper than Hydra's own decides on the runs as it goes.

    Raises:
        ConfigError: with every problem of every run, each named by the run's point; points that would share a folder.
    """
    with Source(str(config_dir), config_name, extra).opened() as place:
        given = place.read(overrides)
        fixed = [text for text, item in zip(overrides, given, strict=True) if not item.is_sweep_override()]
        composed = place.compose(fixed)
        if not str(composed.hydra.sweeper.get("_target_", "")).endswith(BASIC):
            return None
        texts = [f"{key}={value}" for key, value in (composed.hydra.sweeper.params or {}).items()]
        try:
            parsed = [*place.read(texts), *given]
        except COMPOSE_ERRORS as error:
            raise ConfigError([f"hydra.sweeper.params: {said(error)}"]) from error
        planning = _Planning(place, Path(str(composed.hydra.sweep.dir)), schema)
        for job in _points(parsed):
            planning.take(job)
    if planning.problems:
        raise ConfigError([f"{problem} [{_some(points)}]" for problem, points in planning.problems.items()])
    return Plan(planning.folder, tuple(_bare(text) for text in overrides), tuple(planning.runs.values()))


def _points(parsed: Sequence[Override]) -> list[tuple[list[str], list[str]]]:
    """Each run's whole command line, and the part of it that is swept."""
    swept = {item.get_key_element(): len(listed(item)) for item in parsed if item.is_sweep_override()}
    last = {item.get_key_element(): item for item in parsed}
    if math.prod(n for key, n in swept.items() if last[key].is_sweep_override()) > MOST_POINTS:
        raise ConfigError([f"the sweep has more than {MOST_POINTS:,} points; expected at most so many"])
    jobs = BasicSweeper.split_arguments(list(parsed), None)[0]
    return [(job, [text for text in job if text.partition("=")[0] in swept]) for job in jobs]


class _Planning:
    """The runs of a sweep by folder, and what is wrong with its points."""

    def __init__(self, place: Opened, folder: Path, schema: Callable[[], Any]):
        self._place, self.folder, self._schema = place, folder, schema
        self.problems: dict[str, list[str]] = {}
        self.runs: dict[str, PlannedRun] = {}
        self._embedded: dict[str, Any] = {}

    def take(self, job: tuple[list[str], list[str]]) -> None:
        line, varied = job[0], [_bare(text) for text in job[1]]
        name = " ".join(varied)
        try:
            config = self._place.compose(line, number=len(self.runs))
            values = values_of(config)
            build(self._schema, values)  # type: ignore[arg-type]
            folder, run = Path(str(config.hydra.sweep.dir)), str(config.hydra.sweep.subdir)
        except ConfigError as error:
            for told in error.problems:
                self._problem(told, name)
            return
        except COMPOSE_ERRORS as error:
            self._problem(said(error), name)
            return
        point = {key: _value(values, key, text) for key, _, text in (text.partition("=") for text in varied)}
        if folder != self.folder:
            self._problem(f"it would lie in {folder}, the sweep in {self.folder}: give it a command of its own", name)
            return
        before = self.runs.setdefault(run, PlannedRun(run, point))
        if before.point != point:
            other = ", ".join(f"{key}={value}" for key, value in before.point.items() if value != point[key])
            self._problem(
                f"the same run as {other}, in the same folder: nothing differs that can change a result", name
            )
        self._check_embedded(values, name)

    def _check_embedded(self, values: Mapping[str, Any], name: str) -> None:
        """Two variants of the embedded benchmark in one folder would be generated over each other."""
        data = values.get("data") or {}
        if data.get("name") == EMBEDDED_DATA and data.get("root"):
            variant = {key: value for key, value in data["mini"].items() if key != "workers"}
            if self._embedded.setdefault(os.path.realpath(data["root"]), variant) != variant:
                self._problem(
                    f"data.root: {data['root']} would hold another variant for each point; leave it out", name
                )

    def _problem(self, problem: str, point: str) -> None:
        self.problems.setdefault(problem, []).append(point)


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
