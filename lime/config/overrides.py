"""Check Hydra's command line against the schema before Hydra composes, so that every mistake is told at once."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lime.config.check import ConfigError, build, known_keys, unknown_key
from lime.config.identity import register_mini_root
from lime.config.schema import method_of
from lime.config.searched import register_searched
from lime.tuner.settings import PEFT_TYPES

SCHEMA_NODE = "schema"
EXPERIMENT_GROUP = "experiment"
LAUNCHER_PLUGINS = {"parallel": "submitit", "slurm": "submitit", "ray": "ray"}


def register(schema: Callable[[], Any], experiments: Path | None = None) -> None:
    """Offer the schema's defaults to Hydra as the config ``schema``, the first entry of every defaults list, and the
    overlays of a folder as the group ``experiment``.

    The schema is a plain mapping, without types: types are checked by :func:`lime.config.check.build`, which reports
    all wrong ones together where Hydra stops at the first.

    Args:
        experiments: folder of overlays, ``NAME.yaml`` for ``+experiment=NAME``. It stands beside the folder of the
            other groups, where Hydra does not look by itself.

    Raises:
        ConfigError: an overlay is not a YAML mapping; names the file.
    """
    register_searched()
    register_mini_root()
    store = ConfigStore.instance()
    store.store(SCHEMA_NODE, node=OmegaConf.create(dataclasses.asdict(schema())))
    for path in sorted(experiments.glob("*.yaml")) if experiments else ():
        node = _overlay(path, set(known_keys(schema)))  # type: ignore[arg-type]
        store.store(path.stem, node=node, group=EXPERIMENT_GROUP, package="_global_", provider=str(path))


def _overlay(path: Path, keys: set[str]) -> DictConfig:
    """An overlay. The keys it sweeps are forced as on the command line, so that either can replace the other."""
    try:
        node = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError([f"{path}: cannot be read as YAML ({_whole_message(error)})"]) from error
    if not isinstance(node, DictConfig):
        raise ConfigError([f"{path}: expected a mapping of keys to values, as in the other overlays"])
    params = OmegaConf.select(node, "hydra.sweeper.params")
    if params is not None:
        forced = {_forced(f"{key}=", keys)[:-1]: value for key, value in params.items()}
        OmegaConf.update(node, "hydra.sweeper.params", forced, merge=False)
    return node


def check(overrides: Sequence[str], config_dir: Path, config_name: str, schema: type) -> None:
    """Raise one :class:`ConfigError` with everything that is wrong with these command-line overrides.

    Unknown keys, unknown group choices, syntax, wrong types (every value of a sweep) and the schema's own checks.
    """
    problems: list[str] = []
    groups = _groups(config_dir)
    keys = set(known_keys(schema))
    usable: list[str] = []
    sweeps: dict[str, list[Any]] = {}
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            problems.append(f"{text}: cannot be read as KEY=VALUE ({_first_line(error)})")
            continue
        problem = _problem_of(override, groups, keys, schema)
        if problem is not None:
            problems.append(problem)
            continue
        if override.is_sweep_override():
            elements = list(override.sweep_iterator())
            prefix = text[: text.index("=") + 1]
            usable.append(f"{prefix}{elements[0]}")
            if override.key_or_group not in groups:
                parsed = [OverridesParser.create().parse_override(f"x={e}").value() for e in elements[1:]]
                sweeps[override.key_or_group] = parsed
        else:
            usable.append(text)
    try:
        with initialize_config_dir(str(config_dir), version_base="1.3", job_name=config_name):
            config = compose(config_name, overrides=[_forced(text, keys) for text in usable])
        values: Any = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError([*problems, _whole_message(error)]) from error
    problems.extend(_schema_problems(schema, values))
    for key, elements in sweeps.items():
        for element in elements:
            problems.extend(_schema_problems(schema, _with(values, key, element)))
    if problems:
        raise ConfigError(problems)


def force(arguments: Sequence[str], schema: type) -> list[str]:
    """The command line with ``key=value`` as ``++key=value`` for known keys.

    A group's file may hold a section that the schema leaves null; Hydra would refuse to set a key inside it.
    """
    keys = set(known_keys(schema))
    return [_forced(argument, keys) for argument in arguments]


def with_method(arguments: Sequence[str], schema: type) -> list[str]:
    """The command line with ``method=NAME`` before ``peft=TYPE`` or ``lime=off`` that comes without it: the method that
    these make (``peft=any`` is ``method=lime_any``), so that a run is never recorded under another name. Sweeps over
    types are left alone; they name their methods."""
    given = {name: value for name, _, value in (text.partition("=") for text in arguments)}
    kind, off = given.get("peft", "lora"), given.get("lime") in ("off", "'off'", '"off"')
    named = method_of(kind, not off) if kind in PEFT_TYPES else None
    if "method" not in set(known_keys(schema)) or "method" in given or named is None or not ("peft" in given or off):
        return list(arguments)
    place = next(n for n, text in enumerate(arguments) if text.partition("=")[0] in ("peft", "lime"))
    return [*arguments[:place], f"method={named}", *arguments[place:]]


def _forced(text: str, keys: set[str]) -> str:
    return f"++{text}" if "=" in text and text.partition("=")[0] in keys and "." in text.partition("=")[0] else text


def _groups(config_dir: Path) -> dict[str, list[str]]:
    folders = [path for path in sorted(config_dir.iterdir()) if path.is_dir()]
    stored = ConfigStore.instance().repo.get(EXPERIMENT_GROUP, {})
    groups = {path.name: sorted(file.stem for file in path.glob("*.yaml")) for path in folders}
    return {**groups, EXPERIMENT_GROUP: sorted(name.removesuffix(".yaml") for name in stored)} if stored else groups


def _problem_of(override: Override, groups: Mapping[str, list[str]], keys: set[str], schema: type) -> str | None:
    key = override.key_or_group
    if key.startswith(("hydra.", "hydra/")):
        return None
    if key in groups:
        names = override.sweep_iterator() if override.is_sweep_override() else [override.value()]
        for name in names:
            if name is not None and not isinstance(name, (list, dict)) and str(name) not in groups[key]:
                return _unknown_choice(key, str(name), groups[key])
            if key == "launcher" and (problem := _missing_launcher(str(name))):
                return problem
        return None
    return None if key in keys else unknown_key(key, schema)


def _unknown_choice(group: str, name: str, choices: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, choices, n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return f"{group}: no choice named {name!r}; {hint}(choices: {', '.join(choices)})"


def _missing_launcher(name: str) -> str | None:
    """What to install where Hydra's plugin for this launcher is not there."""
    plugin = LAUNCHER_PLUGINS.get(name)
    if plugin is None or find_spec(f"hydra_plugins.hydra_{plugin}_launcher") is not None:
        return None
    return f"launcher={name}: its plugin for Hydra is not installed; `pip install 'lime-moe[{name}]'`"


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


def _whole_message(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).strip().splitlines())
