"""Check a plain configuration against a tree of dataclasses: every problem at once, each with its full key.

Knows neither Hydra nor any model library, so that a wrong key costs a second and not a model load.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """One or more problems of a configuration, collected and raised once.

    Attributes:
        problems: one message per problem, each beginning with the full key it is about.
    """

    def __init__(self, problems: Sequence[str]):
        self.problems = list(dict.fromkeys(problems))
        count = len(self.problems)
        title = "1 problem in the configuration" if count == 1 else f"{count} problems in the configuration"
        super().__init__("\n".join([f"{title}:", *(f"  - {problem}" for problem in self.problems)]))


def known_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Full dotted keys of a dataclass tree, sections included, in order of declaration."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        key = f"{prefix}{field.name}"
        yield key
        section = _section_of(hints[field.name])
        if section is not None:
            yield from known_keys(section, f"{key}.")


def open_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Full dotted keys of a dataclass tree that hold a mapping of any keys."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        hint, key = hints[field.name], f"{prefix}{field.name}"
        union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        if dict in (typing.get_origin(part) for part in (hint, *(typing.get_args(hint) if union else ()))):
            yield key
        if (section := _section_of(hint)) is not None:
            yield from open_keys(section, f"{key}.")


def unknown_key(key: str, schema: type) -> str:
    """The message for a key that is not in the schema, with the nearest one that is."""
    known = list(known_keys(schema))
    prefix, leaf = _split(key)
    while prefix and prefix[:-1] not in known:
        prefix = _split(prefix[:-1])[0]
    siblings = {_split(name)[1]: name for name in known if _split(name)[0] == prefix}
    elsewhere: dict[str, str] = {}
    for name in sorted(known, key=lambda name: name.count(".")):  # the nearest to the top first
        elsewhere.setdefault(_split(name)[1], name)
    nearest = [siblings[name] for name in difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.6)]
    nearest += [elsewhere[name] for name in difflib.get_close_matches(leaf, elsewhere, n=1, cutoff=0.75)]
    if not nearest and len(leaf) > 3:  # a part of a name: targets, experts
        nearest = [elsewhere[name] for name in elsewhere if leaf.rstrip("s") in name.split("_")]
    if nearest:
        return f"{key}: unknown key; did you mean {nearest[0]}?"
    return f"{key}: unknown key; known here: {', '.join(siblings.values())}"


def _split(key: str) -> tuple[str, str]:
    """``a.b.c`` as (``a.b.``, ``c``)."""
    head, dot, leaf = key.rpartition(".")
    return head + dot, leaf


def build(schema: type[T], values: Mapping[str, Any]) -> T:
    """Turn a plain mapping into an instance of ``schema``.

    Args:
        schema: a dataclass whose fields have defaults; sections are dataclasses too. Each may have a method
            ``errors() -> list[str]`` whose messages name full keys.
        values: nested mapping of plain Python values; absent keys take their defaults.

    Raises:
        ConfigError: with all unknown keys, all wrong types and all messages of the ``errors`` methods.
    """
    problems: list[str] = []
    instance = _build_section(schema, values, "", schema, problems)
    # A section that was built is checked by itself even when another key is wrong, so that all is said at once.
    problems.extend(_own_errors(instance))
    if problems:
        raise ConfigError(problems)
    return typing.cast(T, instance)


def _build_section(schema: type, values: Mapping[str, Any], prefix: str, root: type, problems: list[str]) -> Any:
    hints = typing.get_type_hints(schema)
    names = {field.name for field in dataclasses.fields(schema)}
    problems.extend(unknown_key(f"{prefix}{name}", root) for name in values if name not in names)
    arguments = {}
    for name in (name for name in values if name in names):
        key, hint, value = f"{prefix}{name}", hints[name], values[name]
        section = _section_of(hint)
        if section is not None and isinstance(value, Mapping):
            arguments[name] = _build_section(section, value, f"{key}.", root, problems)
            continue
        try:
            arguments[name] = convert(value, hint)
        except TypeError:
            problems.append(f"{key}: expected {describe(hint)}, got {_say(value)}")
    return schema(**arguments)


def _own_errors(instance: Any) -> Iterator[str]:
    if hasattr(instance, "errors"):
        yield from instance.errors()
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if dataclasses.is_dataclass(value):
            yield from _own_errors(value)


def convert(value: Any, hint: Any) -> Any:
    """``value`` as the annotated type, without guessing: only int to float and list to tuple.

    Raises:
        TypeError: where the value is of another type, or a number that is not finite.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
    elif hint is None or hint is type(None):
        if value is None:
            return None
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif hint in (int, str, bool):
        if type(value) is hint:
            return value
    elif origin in (list, tuple, Sequence):
        if isinstance(value, (list, tuple)):
            if origin is tuple and arguments and arguments[-1] is not Ellipsis:
                if len(arguments) != len(value):
                    raise TypeError
                return tuple(convert(item, part) for item, part in zip(value, arguments, strict=True))
            items = [convert(item, arguments[0] if arguments else Any) for item in value]
            return tuple(items) if origin is tuple else items
    elif origin in (dict, Mapping) or hint is dict:
        if isinstance(value, Mapping):
            part = arguments[1] if arguments else Any
            return {str(name): convert(item, part) for name, item in value.items()}
    elif isinstance(value, hint):
        return value
    raise TypeError


def _convert_union(value: Any, members: Sequence[Any]) -> Any:
    for member in members:
        try:
            return convert(value, member)
        except TypeError:
            continue
    raise TypeError


def describe(hint: Any) -> str:
    """A type in words: ``list of whole numbers or null``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(member) for member in arguments)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    if hint in names:
        return names[hint]
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)} ({describe(arguments[0])} each)"
    if origin in (list, tuple, Sequence):
        return f"a list of ({describe(arguments[0])})" if arguments else "a list"
    if origin in (dict, Mapping) and arguments and arguments[1] is not Any:
        return f"a section of keys ({describe(arguments[1])} each)"
    if origin in (dict, Mapping) or dataclasses.is_dataclass(hint):
        return "a section of keys"
    return str(getattr(hint, "__name__", hint))


def _say(value: Any) -> str:
    kinds = {
        int: "whole number",
        float: "number",
        str: "text",
        bool: "boolean",
        list: "list",
        dict: "section",
    }
    if value is None:
        return "null"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} (not finite)"
    return f"{value!r} ({kinds.get(type(value), type(value).__name__)})"


def _section_of(hint: Any) -> type | None:
    """The dataclass a field holds (also where it may be null), or None for a plain value."""
    candidates = (hint, *typing.get_args(hint))
    return next((c for c in candidates if dataclasses.is_dataclass(c) and isinstance(c, type)), None)
