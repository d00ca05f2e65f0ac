"""Options of a subcommand: a dataclass, and the command line made from it."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")
DTYPES = ("float32", "bfloat16", "float16")
ATTENTION = ("eager", "sdpa", "flash_attention_2")


def option(default: Any, text: str, choices: Sequence[str] | None = None) -> Any:
    """A dataclass field with its help text, and for words the allowed ones."""
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices})


def add_arguments(parser: argparse.ArgumentParser, schema: type) -> None:
    """One `--option` for every field; tuples are lists with commas."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        given, hint = field.metadata["choices"], hints[field.name]
        text = field.metadata["help"] + (f"; of {', '.join(given)}" if given else "")
        kind: Any = {"action": argparse.BooleanOptionalAction} if hint is bool else {"metavar": metavar(hint)}
        text += f" (default: {_written(field.default)})"
        parser.add_argument(f"--{_flag(field.name)}", help=text, **kind)
        parser.set_defaults(**{field.name: field.default})


def parse(schema: type[T], values: dict[str, Any]) -> T:
    """An instance from the parsed command line.

    Raises:
        ValueError: all values that do not fit, by their option.
    """
    hints = typing.get_type_hints(schema)
    arguments, problems = {}, []
    for field in dataclasses.fields(schema):  # type: ignore[arg-type]
        value = values[field.name]
        try:
            arguments[field.name] = _convert(value, hints[field.name]) if isinstance(value, str) else value
        except ValueError as error:
            problems.append(f"--{_flag(field.name)}: {error}, got {value!r}")
            continue
        chosen, allowed = arguments[field.name], field.metadata["choices"]
        for one in chosen if isinstance(chosen, tuple) else (chosen,):
            if allowed and one not in allowed:
                problems.append(f"--{_flag(field.name)}: expected one of {', '.join(allowed)}, got {one!r}")
    if problems:
        raise ValueError("; ".join(problems))
    return schema(**arguments)


def command_line(command: str, options: Any) -> str:
    """The command that repeats a measurement: what differs from the defaults, but not where output goes."""
    parts = ["python scripts/benchmark.py", command]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value == field.default:
            continue
        if isinstance(value, bool):
            parts.append(f"--{'' if value else 'no-'}{_flag(field.name)}")
        else:
            parts.append(f"--{_flag(field.name)} {_written(value)}")
    return " ".join(parts)


def _written(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _convert(text: str, hint: Any) -> Any:
    if typing.get_origin(hint) is tuple:
        part = typing.get_args(hint)[0]
        return tuple(_convert(item.strip(), part) for item in text.split(",") if item.strip())
    if hint is str:
        return text
    try:
        return hint(text)
    except ValueError as error:
        kind = {int: "a whole number", float: "a number"}[hint]
        raise ValueError(f"expected {kind}") from error


def metavar(hint: Any) -> str:
    """How help shows a value."""
    if typing.get_origin(hint) is tuple:
        return metavar(typing.get_args(hint)[0]) + ",…"
    return {int: "N", float: "X"}.get(hint, "WORD")
