"""Finding the splits of a data root: DatasetDict folders (`save_to_disk`) and parquet shards as the hub has them."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_SHARD = re.compile(r"^(?P<split>.+?)(?:-(?P<part>\d{5})-of-(?P<parts>\d{5})(?:-[0-9a-f]+)?)?\.parquet$")


@dataclass
class SplitFiles:
    """Where one split lies: an Arrow folder (`save_to_disk`) or its parquet shards in order."""

    split: str
    folder: Path | None = None
    shards: list[Path] = field(default_factory=list)
    _opened: Any = field(default=None, repr=False, compare=False)

    def column_names(self) -> list[str]:
        """The columns this split has: for parquet, those that all its shards have."""
        if self.folder is not None:
            with _reading(self.folder):
                return list(self._arrow().column_names)
        schemas = [_names_of(shard) for shard in self.shards]
        return [name for name in schemas[0] if all(name in names for names in schemas)]

    def class_names(self) -> dict[str, list[str]]:
        """The names of the classes of columns that `datasets` keeps as numbers."""
        if self.folder is not None:
            with _reading(self.folder):
                features = self._arrow().features.to_dict()
        else:
            with _reading(self.shards[0]):
                known = (pq.read_schema(self.shards[0]).metadata or {}).get(b"huggingface", b"{}")
                features = json.loads(known).get("info", {}).get("features", {})
        kinds = {name: kind for name, kind in features.items() if isinstance(kind, dict)}
        return {name: kind["names"] for name, kind in kinds.items() if kind.get("_type") == "ClassLabel"}

    def columns(self, names: tuple[str, ...]) -> dict[str, list[Any]]:
        """These columns as lists of Python values. ValueError naming the first row whose text is not UTF-8."""
        table = self.table(names)
        return {name: self._values(name, table.column(name)) for name in names}

    def raw_columns(self, names: tuple[str, ...]) -> dict[str, list[Any]]:
        """As `columns`, with text as the bytes it is stored in, whether they are UTF-8 or not."""
        table = self.table(names)
        return {name: _bytes(table.column(name)) for name in names}

    def table(self, names: tuple[str, ...]) -> pa.Table:
        """These columns as an Arrow table."""
        if self.folder is not None:
            with _reading(self.folder):
                return _as_text(self._arrow().select_columns(list(names)).with_format("arrow")[:])
        tables = []
        for shard in self.shards:
            with _reading(shard):
                tables.append(_as_text(pq.read_table(shard, columns=list(names))))
        for shard, table in zip(self.shards, tables, strict=True):
            for name in names:
                first, kind = tables[0].schema.field(name).type, table.schema.field(name).type
                if kind != first:
                    raise _RefusedError(
                        f"{shard}: its column {name!r} is of type {kind}, in {self.shards[0].name} of {first}; "
                        "expected text in both"
                    )
        return pa.concat_tables(tables)

    def _values(self, name: str, column: pa.ChunkedArray) -> list[Any]:
        try:
            return column.to_pylist()
        except UnicodeDecodeError:
            for index, value in enumerate(_bytes(column)):
                if isinstance(value, bytes) and not is_utf8(value):
                    raise ValueError(
                        f"{self.place}: row {self.split}/{index}: its {name} is not UTF-8 text; correct it"
                    ) from None
            raise

    @property
    def place(self) -> Path:
        """The folder or the first shard."""
        return self.folder if self.folder is not None else self.shards[0]

    def _arrow(self) -> Any:
        if self._opened is None:
            from datasets import Dataset

            assert self.folder is not None
            _check_arrow(self.folder, self.split)
            self._opened = Dataset.load_from_disk(str(self.folder))
        return self._opened


class _RefusedError(ValueError):
    """What is wrong with a split's files, already in full."""


@contextmanager
def _reading(place: Path) -> Iterator[None]:
    """Turns what Arrow says of damaged files into a ValueError that names the place."""
    try:
        yield
    except (PermissionError, _RefusedError):
        raise  # says all
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no more is known'}"
        raise ValueError(f"{place}: damaged or incomplete ({reason}); fetch it again") from error


def _as_text(table: pa.Table) -> pa.Table:
    """The columns of text, however Arrow holds them (short or large, dictionary, view, all null), as one type."""
    columns = []
    for column in table.columns:
        kind = column.type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
            column = column.cast(kind)
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        columns.append(column.cast(pa.large_string()) if is_text or pa.types.is_null(kind) else column)
    return pa.table(columns, names=table.column_names)


def _names_of(shard: Path) -> list[str]:
    with _reading(shard):
        return list(pq.read_schema(shard).names)


def is_utf8(value: bytes) -> bool:
    """Whether these bytes are UTF-8 text."""
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


_FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {chr(c) for c in range(0xFE00, 0xFE10)}


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: spaces of every kind, controls, zero-width characters and fillers."""
    return all(c.isspace() or c in _FILLERS or unicodedata.category(c) in ("Cc", "Cf") for c in text)


def _bytes(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return column.to_pylist()


def find_splits(root: Path) -> dict[str, SplitFiles]:
    """Every split below a data root, by name.

    Looked for at the root itself, in its `data` folder, and the same in each direct subfolder (such as
    MMT_47/); the first place that holds any split is taken. Raises FileNotFoundError, with what to do, where
    there is none, and for a split with a shard missing.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"data.root: {root} is not a folder. Expected the folder that holds the data set (a DatasetDict "
            "written by save_to_disk, or data/<split>-00000-of-00001.parquet) with its media beside it"
        )
    places = [root, root / "data"]
    for child in sorted(path for path in root.iterdir() if path.is_dir()):
        places += [child, child / "data"]
    for place in places:
        if place.is_dir() and (splits := _arrow_splits(place) or _parquet_splits(place)):
            return splits
    raise FileNotFoundError(
        f"data.root: {root} holds no split: neither Arrow folders (<split>/state.json) nor parquet files "
        "(data/<split>-00000-of-00001.parquet), at the root or one level below. It holds: "
        + (", ".join(sorted(path.name for path in root.iterdir())[:12]) or "nothing")
    )


def _arrow_splits(place: Path) -> dict[str, SplitFiles]:
    return {
        path.name: SplitFiles(path.name, folder=path)
        for path in sorted(place.iterdir())
        if path.is_dir() and (path / "state.json").is_file()
    }


def _parquet_splits(place: Path) -> dict[str, SplitFiles]:
    splits: dict[str, SplitFiles] = {}
    announced: dict[str, int] = {}
    parts: dict[tuple[str, int], Path] = {}
    for path in sorted(place.glob("*.parquet")):
        match = _SHARD.match(path.name)
        if match is None:
            continue  # a file called .parquet
        split, part, total = match["split"], int(match["part"] or 0), int(match["parts"] or 1)
        if (first := parts.setdefault((split, part), path)) != path:
            _twice(place, split, first, path)
        splits.setdefault(split, SplitFiles(split)).shards.append(path)
        if (before := announced.setdefault(split, total)) != total:
            raise ValueError(f"{place}: split '{split}' has shards of {before} and of {total}: two sets; remove one")
    for split, files in splits.items():
        if len(files.shards) != announced[split]:
            count = f"{len(files.shards)} of {announced[split]}"
            raise FileNotFoundError(f"{place}: split '{split}' has {count} parquet shards; fetch the others")
        _check_copies(place, split, files.shards)
    return splits


_CONTINUES = b"\xff\xff\xff\xff"  # before each message of an Arrow stream, and before the zero that ends it


def _check_arrow(folder: Path, split: str) -> None:
    """Refuses Arrow files of which one is there twice, or was cut between two of its batches: Arrow reads both."""
    with _reading(folder):
        names = [entry["filename"] for entry in json.loads((folder / "state.json").read_bytes())["_data_files"]]
    paths = [folder / name for name in names]
    for path, name in zip(paths, names, strict=True):
        if names.count(name) > 1:
            _twice(folder, split, path, path)
        with path.open("rb") as stream:
            modern = stream.read(4) == _CONTINUES
            stream.seek(max(0, path.stat().st_size - 8))
            end = stream.read()
        whole = end == _CONTINUES + bytes(4) if modern else end[-4:] == bytes(4) or end[-6:] == b"ARROW1"
        if not whole:
            raise _RefusedError(
                f"{folder}: damaged or incomplete ({path.name} was cut: its end mark is lacking); fetch it again"
            )
    _check_copies(folder, split, paths)


def _check_copies(place: Path, split: str, shards: Sequence[Path]) -> None:
    """Refuses two shards of one split with the same bytes."""
    seen: dict[tuple[int, str], Path] = {}
    sizes = [path.stat().st_size for path in shards]
    for path, size in zip(shards, sizes, strict=True):
        if sizes.count(size) > 1:
            with path.open("rb") as stream:
                key = (size, hashlib.file_digest(stream, "sha256").hexdigest())
            if (first := seen.setdefault(key, path)) != path:
                _twice(place, split, first, path)


def _twice(place: Path, split: str, first: Path, second: Path) -> None:
    raise _RefusedError(
        f"{place}: split '{split}': a shard is there twice ({first.name} and {second.name}); remove one"
    )
