"""Read the file of an offline run of Weights & Biases by its own message types.

The client of 0.31 ships the types but no reader for Python. The frames are those of LevelDB's log: blocks of 32 KiB,
records in parts, each part after a header of checksum, length and place (whole, first, middle, last).
"""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> list[Record]:
    """All records of a ``run-ID.wandb``."""
    found = []
    for content in _contents(path.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        found.append(record)
    return found


def values(items: Any) -> dict[str, Any]:
    """Key and value of the items of a history, summary or configuration record, nested as they were logged."""
    found: dict[str, Any] = {}
    for item in items:
        *sections, name = item.nested_key or [item.key]
        target = found
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = json.loads(item.value_json)
    return found


def records_at_end(folder: Path) -> list[Record]:
    """All records of the offline run in a folder, once the client's own process has written its end."""
    (path,) = folder.glob("run-*.wandb")
    deadline = time.monotonic() + 120
    found = records(path)
    while not any(one.HasField("exit") for one in found) and time.monotonic() < deadline:
        time.sleep(0.2)
        found = records(path)
    return found


def merged(record: list[Record], kind: str) -> dict[str, Any]:
    """Last value of every key of the records of one kind; the configuration is part of the run's."""
    parts = {
        "history": [one.history.item for one in record if one.HasField("history")],
        "summary": [one.summary.update for one in record if one.HasField("summary")],
        "config": [one.run.config.update for one in record if one.HasField("run")],
    }
    return {key: value for part in parts[kind] for key, value in values(part).items()}


def _contents(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B"
    place, parts = HEADER, b""
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        checksum, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        part = data[place + HEADER : place + HEADER + length]
        if kind == 0 or len(part) < length:  # the end, or a part that is being written
            return
        assert checksum == zlib.crc32(part, zlib.crc32(bytes([kind])))
        place += HEADER + length
        parts = part if kind in (WHOLE, FIRST) else parts + part
        if kind in (WHOLE, LAST):
            yield parts
