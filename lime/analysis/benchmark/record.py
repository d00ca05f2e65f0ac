"""The record of a measurement: what was run, where, and what came out. Tables are made from it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lime.analysis.benchmark.options import command_line
from lime.analysis.benchmark.timing import Spread
from lime.runs.environment import versions
from lime.system.atomic import write_json, write_text
from lime.system.printing import markdown as md
from lime.system.tables import markdown_table
from lime.system.threads import cores

SCHEMA = "lime-benchmark/1"
"""Name and version of the record's format; the version rises when a reader would have to change."""

PACKAGES = ("torch", "transformers", "peft", "lightning")


@dataclass(frozen=True)
class Column:
    """A column of a command's table: the key of a row's value, its title, and its format.

    A `Spread` is shown as `median (q1 to q3)`, each in that format; an absent value as a dash.
    """

    key: str
    title: str
    form: str = ""


def record(
    command: str,
    options: Any,
    columns: Sequence[Column],
    rows: Sequence[Mapping[str, Any]],
    *,
    notes: Sequence[str] = (),
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """A whole record, ready for JSON.

    Args:
        rows: one mapping per row; keys without a column are kept in the record alone.
        notes: sentences that belong under the table.
    """
    return {
        "schema": SCHEMA,
        "command": command,
        "command_line": command_line(command, options),
        "options": _plain(asdict(options)),
        "machine": machine(torch.device(device)),
        "versions": versions(PACKAGES),
        "columns": [asdict(column) for column in columns],
        "rows": [_plain(dict(row)) for row in rows],
        "notes": list(notes),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, threads, memory and, on a GPU, its name. No names of hosts, users or folders."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory / 2**30, 1),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "python": platform.python_version(),
    }


def save(content: Mapping[str, Any], path: Path) -> Path:
    """Write `path` (JSON) and beside it the table (`.md`); returns the path of the table."""
    write_json(path, content)
    table = path.with_suffix(".md")
    write_text(table, markdown(content))
    return table


def load(path: Path) -> dict[str, Any]:
    """A saved record.

    Raises:
        ValueError: not a record of this format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{path}: expected a record of format {SCHEMA}, found {schema!r}")
    return content


def markdown(content: Mapping[str, Any]) -> str:
    """The record as a Markdown table with its command and machine."""
    columns = [Column(**column) for column in content["columns"]]
    rows = content["rows"]
    columns = [column for column in columns if any(row.get(column.key) is not None for row in rows)]
    words = [i for i, one in enumerate(columns) if all(isinstance(row.get(one.key), str) for row in rows)]
    cells = [[md(_shown(row.get(column.key), column.form)) for column in columns] for row in rows]
    table = markdown_table([md(column.title) for column in columns], cells, words)
    notes = "".join(f"- {note}\n" for note in content["notes"])
    return f"{table}\n\n`{content['command_line']}`\n\nOn {describe(content)}.\n\n{notes}"


def describe(content: Mapping[str, Any]) -> str:
    """Machine and versions in a line."""
    one = content["machine"]
    cpu = f"{one['processor']} ({one['cpu_capability']}), {one['cores']} cores, {one['threads']} threads"
    return f"{one['gpu'] or cpu}; " + ", ".join(f"{name} {version}" for name, version in content["versions"].items())


def _shown(value: Any, form: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping) and value.keys() == {"median", "q1", "q3"}:
        median, low, high = (format(value[key], form) for key in ("median", "q1", "q3"))
        return f"{median} ({low} to {high})"
    return format(value, "" if isinstance(value, str) else form)


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        return asdict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
