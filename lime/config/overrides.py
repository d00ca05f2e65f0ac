"""Check Hydra's command line against the schema before Hydra composes, so that every mistake is told at once."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import re
import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.core_plugins.basic_sweeper import BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lime.config.check import ConfigError, build, known_keys, open_keys, unknown_key
from lime.config.groups import choices, register_groups
from lime.config.identity import register_resolvers
from lime.config.source import COMPOSE_ERRORS, Opened, Source, said, values_of
from lime.method.deltas.table import TYPES, method_of
from lime.system.nested import differing, flattened

SCHEMA_NODE = "schema"
EXPERIMENT_GROUP = "experiment"
LAUNCHER_PLUGINS = {"parallel": "submitit", "slurm": "submitit", "ray": "ray"}
SWEPT_KEYS = "hydra.sweeper.params"
OPTIONAL_GROUPS = ("debug",)
"""Groups of which the primary configuration takes nothing; ``GROUP=null`` says so again."""
BASIC = "BasicSweeper"  # Hydra's own, which lists all runs beforehand
MOST_POINTS = 10_000  # of a sweep
Keys = frozenset[str]


def register(schema: Callable[[], Any], experiments: Path | None = None) -> None:
    """Offer the schema's defaults to Hydra as the config ``schema``, the first entry of every defaults list, and the
    overlays of a folder as the group ``experiment``.

    The schema is a plain mapping, without types: types are checked by :func:`lime.config.check.build`, which reports
    all wrong ones together where Hydra stops at the first.

    Args:
        experiments: folder of overlays, ``NAME.yaml`` for ``+experiment=NAME``. It stands beside the folder of the
            other groups, where Hydra does not look by itself. An overlay that is no grid lists its ``points``, sets of
            keys by name: they become the group ``NAME``, which it sweeps.

    Raises:
        ConfigError: an overlay is not a YAML mapping; names the file.
    """
    register_resolvers()
    register_groups()
    OmegaConf.register_new_resolver("choices", lambda group: ", ".join(choices(group)), replace=True)
    store = ConfigStore.instance()
    Plugins.instance()  # stores Hydra's own choices
    # Its swept keys can then be set one by one; other sweepers need not have any.
    sweeper = {**dataclasses.asdict(BasicSweeperConf()), "params": {}}
    store.store("basic", sweeper, group="hydra/sweeper", provider="hydra")
    store.store(SCHEMA_NODE, node=OmegaConf.create(dataclasses.asdict(schema())))
    for path in sorted(experiments.glob("*.yaml")) if experiments else ():
        node = _overlay(path, _keys(schema))
        for name, point in (node.pop("points", None) or {}).items():
            store.store(str(name), point, group=path.stem, package="_global_", provider=str(path))
        store.store(path.stem, node=node, group=EXPERIMENT_GROUP, package="_global_", provider=str(path))


def _overlay(path: Path, keys: Keys) -> DictConfig:
    """An overlay. The keys it sweeps are forced as on the command line, so that either can replace the other."""
    try:
        node = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError([f"{path}: cannot be read as YAML ({said(error)})"]) from error
    if not isinstance(node, DictConfig):
        raise ConfigError([f"{path}: expected a mapping of keys to values, as in the other overlays"])
    params = OmegaConf.select(node, "hydra.sweeper.params")
    if params is not None:
        forced = {_forced(f"{key}=", keys)[:-1]: value for key, value in params.items()}
        OmegaConf.update(node, "hydra.sweeper.params", forced, merge=False)
    return node


class Checked(NamedTuple):
    """A composed configuration, its section ``hydra`` included, and what is not wrong but should be told."""

    config: DictConfig
    notes: list[str]


def check(
    overrides: Sequence[str],
    config_dir: Path | str,
    config_name: str,
    schema: type,
    extra: str | None = None,
    multirun: bool | None = None,
) -> Checked:
    """Compose as Hydra would, once, and check the result.

    Args:
        extra: folder of ``--config-dir``.
        multirun: whether ``-m`` was given; None where that does not matter.

    Raises:
        ConfigError: everything that is wrong with these command-line overrides: unknown keys, unknown group choices,
            syntax, wrong types (every value of a sweep) and the schema's own checks.
    """
    keys = _keys(schema)
    with Source(str(config_dir), config_name, extra).opened() as place:
        reading = _Reading(place, keys, schema, multirun, overrides)
        for text in overrides:
            reading.take(text)
        problems = reading.problems
        try:
            config = place.compose([_forced(text, keys) for text in reading.usable])
            values: Any = values_of(config)
            problems += hydra_problems(config)
        except COMPOSE_ERRORS as error:
            raise ConfigError([*problems, *_culprits(place, reading.usable, keys, error)]) from error
        problems.extend(_schema_problems(schema, values))
        for key, elements in reading.swept.items():
            for element in elements:
                problems.extend(_schema_problems(schema, _with(values, key, element)))
        if problems:
            raise ConfigError(problems)
        several = bool(multirun) or config.hydra.mode == RunMode.MULTIRUN
        notes = [] if multirun is None or several else _sweep_without_m(config, overrides)
        return Checked(config, notes + _fallen_back(place, reading.usable, keys, values, schema))


class _Reading:
    """The overrides of a command line, read one by one: what is wrong with them, and one run that they stand for."""

    def __init__(self, place: Opened, keys: Keys, schema: type, multirun: bool | None, overrides: Sequence[str]):
        self._place, self._keys, self._schema, self._multirun = place, keys, schema, multirun
        self._overrides = overrides
        self.problems: list[str] = []
        self.usable: list[str] = []
        self.swept: dict[str, list[Any]] = {}
        self._searched = False

    def take(self, text: str) -> None:
        try:
            override = self._place.read([text])[0]
            if not self._searched or override.key_or_group == "hydra.searchpath":
                self._place.search([*self.usable, text])
                self._searched = True
        except COMPOSE_ERRORS as error:
            self.problems.append(f"{text}: cannot be read as KEY=VALUE ({_first_line(error)})")
            return
        key = override.key_or_group
        if override.is_sweep_override():
            self._sweep(text, override)
        elif (problem := self._problem(key, override)) is not None:
            self.problems.append(problem)
        elif override.value() is not None or not self._place.is_group(key) or override.is_delete():
            self.usable.append(text)

    def _sweep(self, text: str, override: Override) -> None:
        key = override.key_or_group
        try:
            values = self._ends(override) or listed(override)
        except ConfigError as error:
            self.problems += error.problems
            return
        prefix = text[: text.index("=") + 1]
        if self._multirun is False:
            self.problems.append(f"{text}: several values make a sweep, which needs -m (a list is {prefix}[…])")
        elements = [OverridesParser.create().parse_override(f"{prefix}{value}") for value in values]
        problems = [problem for element in elements if (problem := self._problem(key, element)) is not None]
        if self._place.is_group(key) and any(element.value() is None for element in elements):
            problems.append(f"{key}: null in a sweep: name the choices, or leave the group out")
        self.problems += problems
        if not problems:
            self.usable.append(f"{prefix}{values[0]}")
            if not self._place.is_group(key) and not override.is_hydra_override():
                self.swept[key] = [element.value() for element in elements[1:]]

    def _ends(self, override: Override) -> list[str]:
        """The two ends of an interval, which sweepers other than Hydra's own take; else nothing."""
        interval = override.value()
        if not isinstance(interval, IntervalSweep):
            return []
        single = [text for text in self._overrides if not self._place.read([text])[0].is_sweep_override()]
        sweeper = self._place.compose([_forced(text, self._keys) for text in single]).hydra.sweeper
        basic = str(sweeper.get("_target_", "")).endswith(BASIC)
        return [] if basic else [str(interval.start), str(interval.end)]

    def _problem(self, key: str, override: Override) -> str | None:
        if key.startswith(("hydra.", "hydra/")):
            return None
        if not self._place.is_group(key):
            return None if _is_key(key, self._keys) else unknown_key(key, self._schema)
        if override.is_delete():
            return None
        choices, value = self._place.choices(key), override.value()
        if value is None:
            return None if key in OPTIONAL_GROUPS else f"{key}: null is none of its choices ({', '.join(choices)})"
        names = value if isinstance(value, list) else [value]
        for name in names:
            if str(name) not in choices:
                return _unknown_choice(key, str(name), choices)
            if not isinstance(name, str):
                return f"{key}: expected the name of a choice, got {name!r}"
        if key == "launcher":
            return _unusable_launcher(str(value), self._multirun)
        return None


def listed(override: Override) -> list[str]:
    """The values of a swept override, as text for a command line.

    Raises:
        ConfigError: they cannot be listed, are none, or too many.
    """
    text = override.input_line
    if not override.is_discrete_sweep():
        raise ConfigError(
            [f"{text}: an interval has no list of values; name them (seed=1,2,3 or range(1,4)); "
             "scripts/optuna_search.py searches intervals"]
        )  # fmt: skip
    try:
        values = list(itertools.islice(override.sweep_string_iterator(), MOST_POINTS + 1))
    except COMPOSE_ERRORS as error:
        raise ConfigError([f"{text}: its values cannot be listed ({_first_line(error)})"]) from error
    if not values:
        raise ConfigError([f"{text}: matches nothing"])
    if len(values) > MOST_POINTS:
        raise ConfigError([f"{text}: more than {MOST_POINTS:,} values; expected at most so many"])
    return values


def force(arguments: Sequence[str], schema: type) -> list[str]:
    """The command line with ``key=value`` as ``++key=value`` for known keys.

    A group's file may hold a section that the schema leaves null; Hydra would refuse to set a key inside it.
    """
    keys = _keys(schema)
    return [_forced(argument, keys) for argument in arguments]


def with_method(arguments: Sequence[str], schema: type) -> list[str]:
    """The command line with ``method=NAME`` before ``peft=TYPE`` or ``lime=off`` that comes without it: the method that
    these make (``peft=any`` is ``method=lime_any``), so that a run is never recorded under another name. Sweeps over
    types are left alone; they name their methods."""
    given = {name: value for name, _, value in (text.partition("=") for text in arguments)}
    kind, off = given.get("peft", "lora"), given.get("lime") in ("off", "'off'", '"off"')
    named = method_of(kind, not off) if kind in TYPES else None
    if "method" not in set(known_keys(schema)) or "method" in given or named is None or not ("peft" in given or off):
        return list(arguments)
    place = next(n for n, text in enumerate(arguments) if text.partition("=")[0] in ("peft", "lime"))
    return [*arguments[:place], f"method={named.name}", *arguments[place:]]


def _forced(text: str, keys: Keys) -> str:
    key, equals, _ = text.partition("=")
    bare = key.lstrip("+")
    known = "." in key and _is_key(key, keys)
    return f"++{bare}{text[len(key) :]}" if equals and (known or bare.startswith(SWEPT_KEYS)) else text


@functools.cache
def _keys(schema: Any) -> Keys:
    """The keys of a schema; those below which any key may stand once more, with a dot."""
    return frozenset({*known_keys(schema), *(f"{key}." for key in open_keys(schema))})


def _is_key(key: str, keys: Keys) -> bool:
    return key in keys or any(f"{key[:place]}." in keys for place in range(len(key)) if key[place] == ".")


def _unknown_choice(group: str, name: str, choices: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, choices, n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return f"{group}: no choice named {name!r}; {hint}(choices: {', '.join(choices)})"


def _unusable_launcher(name: str, multirun: bool | None) -> str | None:
    """Why a launcher cannot be used here: no sweep, its plugin for Hydra or SLURM's command is not there."""
    plugin = LAUNCHER_PLUGINS.get(name)
    if plugin is None:
        return None
    if multirun is False:
        return f"launcher={name}: starts the runs of a sweep, which needs -m"
    if find_spec(f"hydra_plugins.hydra_{plugin}_launcher") is None:
        return f"launcher={name}: its plugin for Hydra is not installed; `pip install 'lime-moe[{name}]'`"
    if name == "slurm" and shutil.which("srun") is None:
        return "launcher=slurm: no srun on this machine; start it where SLURM is (or take launcher=parallel)"
    return None


def _schema_problems(schema: type, values: Any) -> list[str]:
    try:
        build(schema, values)
    except ConfigError as error:
        return error.problems
    return []


def _with(values: Any, key: str, value: Any) -> Any:
    """A copy of nested mappings with one dotted key set."""
    head, _, rest = key.partition(".")
    inner = _with(values.get(head) or {}, rest, value) if rest else value
    return {**values, head: inner}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def without_null_groups(arguments: Sequence[str]) -> list[str]:
    """The command line without ``debug=null``, which is the default and which Hydra does not take."""
    return [text for text in arguments if text.lstrip("+") not in [f"{group}=null" for group in OPTIONAL_GROUPS]]


_HOME = re.compile(r"(?<=[=,\[])~(?=/|,|\]|$)")


def with_home(arguments: Sequence[str]) -> list[str]:
    """The command line with ``KEY=~/…`` as the home folder, which shells leave as it is inside a word."""
    return [_HOME.sub(lambda _: str(Path.home()), text) if "=" in text else text for text in arguments]


def hydra_problems(config: DictConfig) -> list[str]:
    """What is wrong with Hydra's own section: interpolations that lead nowhere, values it fails on."""
    found = []
    for key in ("run.dir", "sweep.dir", "sweep.subdir", "job.name", "job.chdir", "sweeper.params"):
        try:
            value = OmegaConf.select(config, f"hydra.{key}")
            if OmegaConf.is_config(value):
                OmegaConf.to_container(value, resolve=True)
            elif value is None and key in ("run.dir", "sweep.dir", "sweep.subdir"):
                found.append(f"hydra.{key}: expected a folder, got null")
        except COMPOSE_ERRORS as error:
            found.append(f"hydra.{key}: {said(error)}")
    verbose = OmegaConf.select(config, "hydra.verbose", throw_on_missing=False)
    if not (isinstance(verbose, bool | str) or OmegaConf.is_list(verbose)):
        found.append(f"hydra.verbose: expected true, false, or the name or list of loggers, got {verbose!r}")
    for key in ("hydra_logging", "job_logging"):
        logging = OmegaConf.select(config, f"hydra.{key}", throw_on_missing=False)
        if logging is not None and (not OmegaConf.is_dict(logging) or "root" not in logging):
            found.append(f"hydra.{key}: expected a configuration of logging with root, or null, as hydra/{key}=default")
    return found


def _culprits(place: Opened, usable: Sequence[str], keys: Keys, error: Exception) -> list[str]:
    """Which of the overrides Hydra cannot take by themselves; the error alone where all can."""
    found = []
    for text in usable:
        try:
            values_of(place.compose([_forced(text, keys)]))
        except COMPOSE_ERRORS as own:
            found.append(f"{text}: {_told(own)}")
    return found or [_told(error)]


def _told(error: Exception) -> str:
    """Messages made for people as they are; of the others what kind they are."""
    meant = isinstance(error, (HydraException, OmegaConfBaseException))
    if "Cannot merge DictConfig with ListConfig" in str(error.__cause__):
        listed = getattr(error.__cause__, "object_type", None) is list
        return "expected " + ("a list, […]" if listed else "a section of keys, {…: …}")
    return said(error) if meant else f"Hydra cannot compose this ({type(error).__name__}: {said(error)})"


def _sweep_without_m(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """That an experiment's sweep is one run without -m."""
    swept = [str(key).lstrip("+") for key in config.hydra.sweeper.get("params") or {}]
    given = {text.lstrip("+").partition("=")[0] for text in overrides}
    left = [key for key in swept if key not in given]
    if not left:
        return []
    now = ", ".join(f"{key}={OmegaConf.select(config, key)}" for key in left)
    return [f"+experiment={config.name} sweeps {', '.join(left)}: without -m this is a single run, with {now}"]


def _fallen_back(place: Opened, usable: Sequence[str], keys: Keys, values: dict[str, Any], schema: type) -> list[str]:
    """Keys that ``~KEY`` removed and that now have the schema's default, which is another than the configuration's."""
    removed = [text for text in usable if text.startswith("~")]
    if not removed:
        return []
    try:
        rest = [_forced(text, keys) for text in usable if not text.startswith("~")]
        before = dataclasses.asdict(build(schema, values_of(place.compose(rest))))
        now = dataclasses.asdict(build(schema, values))
    except (*COMPOSE_ERRORS, ConfigError):  # what is left is right by itself: there is nothing to compare it with
        return []
    old, new = flattened(before), flattened(now)
    found = [f"{key} is {new.get(key)!r}, not {old.get(key)!r}" for key in differing([before, now])]
    if not found:
        return []
    return [f"{' '.join(removed)}: back to the schema's default, not the configuration's: {'; '.join(found)}"]
