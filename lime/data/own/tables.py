"""Tables as people have them: CSV, TSV, JSON, JSON lines, Parquet, and folders written by `save_to_disk`.

CSV and JSON are read by Python's own readers, since what they hold is text: `007` stays `007`, a number `1.50` in JSON
stays `1.50`, and the line where something is wrong is known. Parquet and saved folders are read as those of MMT-47 are
(lime.data.layout).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lime.data.layout import SplitFiles
from lime.data.rows import DataError

_DELIMITERS = ",;\t|"
csv.field_size_limit(2**31 - 1)


@dataclass(frozen=True)
class Table:
    """One file: the columns that any of its rows has, and its rows in order."""

    path: Path
    columns: list[str]
    rows: list[dict[str, Any]]


def is_table(path: Path) -> bool:
    """Whether this looks like a table that can be read."""
    return path.suffix.lower() in _READERS if path.is_file() else (path / "state.json").is_file()


def paths_of(root: Path, name: str) -> list[Path]:
    """The files that a name or a pattern in `files` means; none, where nothing fits a pattern."""
    is_pattern = any(sign in name for sign in "*?[") and not (root / name).exists()
    return sorted(root.glob(name)) if is_pattern else [root / name]


def read_table_file(path: Path) -> Table:
    """All rows of a file or saved folder. DataError naming the file and the line or row that cannot be read."""
    try:
        if path.is_dir() and (path / "state.json").is_file():
            return _read_arrow(path)
        if path.suffix.lower() not in _READERS:
            raise DataError(f"{path}: not a table that is known here; expected {', '.join(_READERS)} or a saved folder")
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        table = _READERS[path.suffix.lower()](path)
    except RecursionError as error:
        raise DataError(f"{path}: nested too deeply to be rows") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not table.rows:
        raise DataError(f"{path}: holds no row")
    if not table.columns:
        raise DataError(f"{path}: its rows hold nothing; expected objects {{column: value}}")
    return table


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}: line {line}: not UTF-8 text; save the file as UTF-8") from error


def _read_csv(path: Path) -> Table:
    text = _text(path)
    header = text[: max(text.find("\n"), 0) or len(text)]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(_DELIMITERS, key=_outside_quotes(header).count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[dict[str, Any]] = []
    columns: list[str] = []
    try:
        for cells in reader:
            if not cells:
                continue
            if not columns:
                columns = [name.strip() for name in cells]
                if problem := _header_problem(columns):
                    raise DataError(f"{path}: {problem}")
                continue
            if len(cells) != len(columns):
                raise DataError(
                    f"{path}: line {reader.line_num}: {len(cells)} values, {len(columns)} columns in the first line; "
                    f"quote a value that holds {delimiter!r}"
                )
            rows.append(dict(zip(columns, cells, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: not valid CSV ({error})") from error
    return Table(path, columns, rows)


def _outside_quotes(line: str) -> str:
    return "".join(line.split('"')[::2])


def _header_problem(columns: list[str]) -> str | None:
    if "" in columns:
        return f"column {columns.index('') + 1} of the first line has no name; expected one for each"
    twice = next((name for name in columns if columns.count(name) > 1), None)
    return f"two columns are named {twice!r}; rename one" if twice else None


def _read_json(path: Path) -> Table:
    """A list of objects, an object that holds one, or an object a line."""
    text = _text(path)
    try:
        content = json.loads(text, parse_float=str)
    except ValueError as error:
        if "\n" in text.strip() and text.lstrip().startswith("{") and "Extra data" in str(error):
            return _read_lines(path)
        raise DataError(f"{path}: not valid JSON ({error})") from error
    if isinstance(content, dict):
        lists = [
            value for value in content.values() if isinstance(value, list) and value and isinstance(value[0], dict)
        ]
        content = lists[0] if len(lists) == 1 and not _is_row(content) else [content]
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of objects, found {type(content).__name__}")
    return _of_objects(path, content, lambda number: f"entry {number}")


def _is_row(content: dict[str, Any]) -> bool:
    return "messages" in content or "conversations" in content


def _read_lines(path: Path) -> Table:
    objects, numbers = [], []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            objects.append(json.loads(line, parse_float=str))
        except ValueError as error:
            raise DataError(f"{path}: line {number}: not valid JSON ({error})") from error
        numbers.append(number)
    return _of_objects(path, objects, lambda index: f"line {numbers[index]}")


def _of_objects(path: Path, objects: list[Any], place: Callable[[int], str]) -> Table:
    for index, value in enumerate(objects):
        if not isinstance(value, dict):
            raise DataError(f"{path}: {place(index)}: expected an object {{column: value}}, got {str(value)[:40]!r}")
    return Table(path, list(dict.fromkeys(name for value in objects for name in value)), objects)


def _read_parquet(path: Path) -> Table:
    return _of_columns(path, SplitFiles(path.stem, shards=[path]))


def _read_arrow(path: Path) -> Table:
    return _of_columns(path, SplitFiles(path.name, folder=path))


def _of_columns(path: Path, files: SplitFiles) -> Table:
    names = files.column_names()
    values = files.columns(tuple(names))
    for name, classes in files.class_names().items():
        values[name] = [classes[v] if isinstance(v, int) and 0 <= v < len(classes) else v for v in values[name]]
    rows = [dict(zip(names, row, strict=True)) for row in zip(*(values[name] for name in names), strict=True)]
    return Table(path, names, rows)


_READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_lines,
    ".parquet": _read_parquet,
}
