"""Tables that hold the pictures themselves: these as files, and the rows as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lime.data.media.signatures import describe
from lime.data.own.inference import infer_files
from lime.data.own.spec import SPEC, read_spec
from lime.data.own.tables import paths_of, read_table_file
from lime.data.rows import DataError
from lime.system.atomic import replacing_folder, write_text

FOLDER = "unpacked"
_SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "GIF": ".gif", "BMP": ".bmp", "WebP": ".webp", "TIFF": ".tif"}


def unpack(root: Path) -> tuple[int, str]:
    """Write every picture that a table holds to root/unpacked, and the rows beside them.

    Returns how many pictures there were, and what `tasks.yaml` says now (where there was one, what it has to say).
    Raises DataError where no table holds a picture, or one is of no known format; FileExistsError where the folder
    unpacked is there already.
    """
    spec = read_spec(root)
    if (root / FOLDER).exists():
        raise FileExistsError(f"{root / FOLDER} is there already; move it away to unpack once more")
    named, count = spec.files or infer_files(root), 0
    with replacing_folder(root / FOLDER, None) as temporary:
        for split, names in named.items():
            if Path(split).name != split:
                raise DataError(f"{spec.path}: files: {split}: cannot name a folder; expected letters and digits")
            (temporary / split).mkdir()
            rows = [row for name in names for path in paths_of(root, name) for row in read_table_file(path).rows]
            for index, row in enumerate(rows):
                before = count
                for column, value in row.items():
                    values = value if isinstance(value, list) else [value]
                    held = [one for one in values if _held(one) is not None]
                    for one in held:
                        data = _held(one)
                        suffix = _suffix(data, f"{root}: row {split}/{index}: {column}")
                        path = Path(split) / f"{index:06d}-{count - before}{suffix}"
                        (temporary / path).write_bytes(data)
                        values[values.index(one)] = f"{FOLDER}/{path.as_posix()}"
                        count += 1
                    if held:
                        row[column] = values if isinstance(value, list) else values[0]
            lines = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
            (temporary / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        if not count:
            raise DataError(f"{root}: none of its tables holds a picture; there is nothing to unpack")
    said = {"files": {split: f"{FOLDER}/{split}.jsonl" for split in named}}
    text = yaml.safe_dump(said, sort_keys=False, allow_unicode=True)
    if not spec.path.is_file():
        write_text(root / SPEC, text)
    return count, text


def _held(value: Any) -> Any:
    """The bytes of a picture that a value holds: as `datasets` writes it, {bytes, path}, or alone; else None."""
    if isinstance(value, Mapping):
        return value.get("bytes")
    is_picture = isinstance(value, bytes) and any(name in (describe(value[:512]) or "") for name in _SUFFIXES)
    return value if is_picture else None


def _suffix(data: Any, place: str) -> str:
    said = describe(bytes(data[:512])) or ""
    suffix = next((suffix for name, suffix in _SUFFIXES.items() if name in said), None)
    if suffix is None:
        raise DataError(f"{place} holds {said or 'bytes of no known format'}; expected a picture")
    return suffix
