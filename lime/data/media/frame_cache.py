"""Resized video frames kept on disk between runs: bounded, least recently used out first, safe with many processes.

An entry's name is a SHA-256 over the clip's bytes and over everything that decides what is read from it (reader, number
of frames, resizing), so a replaced file, another sampling or another model never finds a wrong entry. Entries are
written under a lock into one part file and renamed into their place: a reader sees a whole entry or none, and what a
killed writer leaves is that part file, which the sum counts and the next writer replaces. Readers hold a file open, so
an entry that is evicted meanwhile is still read to its end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from lime.system.atomic import PART

log = logging.getLogger(__name__)

FORMAT = 2  # raise when the frames that are read of a clip change
_MAGIC = b"limeframes1\n"
_SUFFIX = ".frames"
_ENTRY = re.compile(r"[0-9a-f]{64}\.frames")
_LOCK, _TOTAL, _PART = ".lime-frames.lock", ".lime-frames.total", ".lime-frames.part"
_STALE = 3600.0  # seconds after which an unfinished write of an earlier version is a dead process's
_LOWEST = 0.9  # eviction goes on down to this share of the bound, so that it is rare


class FrameCache:
    """Arrays of uint8 frames by key, in `folder`, at most `size_mb` MiB in all.

    The bound holds over all processes: what is committed, is committed under a lock that keeps the sum. A full disk or
    a folder that cannot be written turns the cache off for this process, with a warning; it never fails a run.

    Raises ValueError for a size below 1 and NotADirectoryError where `folder` is a file.
    """

    def __init__(self, folder: str | Path, size_mb: int) -> None:
        if size_mb < 1:
            raise ValueError(f"size_mb: expected at least 1, got {size_mb}")
        self.folder, self.limit = Path(folder), size_mb * 2**20
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"data.frame_cache.dir: {folder} is a file; expected a folder (or one to make)")
        self._digests: dict[tuple[str, int, int, int], bytes] = {}
        self._usable = True

    def key(self, path: str | Path, sampling: str) -> str:
        """Name of the entry of this clip's bytes under this sampling. OSError where the file cannot be read.

        `sampling` is any text that says all that decides the frames. A clip is hashed once a process and file state.
        """
        return hashlib.sha256(self._digest(Path(path)) + f"{FORMAT} {sampling}".encode()).hexdigest()

    def get(self, key: str) -> tuple[np.ndarray, dict[str, Any]] | None:
        """The entry's frames and notes, or None. A damaged entry is removed and counts as none."""
        path = self._place(key)
        try:
            data = path.read_bytes()
        except OSError:  # absent, or evicted a moment ago
            return None
        entry = _unpack(data)
        if entry is None:
            log.warning("%s: a damaged entry of the frame cache was removed", path)
            path.unlink(missing_ok=True)
            return None
        _touch(path)
        return entry

    def put(self, key: str, values: np.ndarray, notes: dict[str, Any]) -> None:
        """Keeps `values` (uint8) and JSON `notes` under this key, evicting what was used longest ago.

        What is larger than the whole bound is not kept.
        """
        data = _pack(values, notes)
        if not self._usable or len(data) > self.limit:
            return
        place = self._place(key)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            self._commit(data, place)
        except OSError as error:
            self._usable = False
            log.warning("data.frame_cache.dir: %s cannot be written (%s); clips are not kept any more", place, error)

    def size(self) -> int:
        """Bytes of all entries on disk."""
        return sum(size for _, size, _ in self._entries())

    def _commit(self, data: bytes, place: Path) -> None:
        part, size = self.folder / _PART, len(data)
        with FileLock(str(self.folder / _LOCK)):
            if place.exists():  # another process was faster
                return
            part.unlink(missing_ok=True)  # of a killed writer: nobody else writes while the lock is held
            total = self._read_total()
            if total is None or total + size > self.limit:
                total = self._evict(size)
            self._write_total(total + size)  # before the bytes: a crash between leaves too high a sum, never too low
            try:
                part.write_bytes(data)
                part.replace(place)
            except OSError:
                part.unlink(missing_ok=True)
                raise

    def _evict(self, room: int) -> int:
        """Removes the entries used longest ago until `room` bytes fit; the bytes that are left."""
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        if total + room <= self.limit:
            return total
        for _, size, path in entries:
            if total + room <= _LOWEST * self.limit:
                break
            path.unlink(missing_ok=True)
            total -= size
        return max(total, 0)

    def _entries(self) -> list[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of every entry; unfinished writes of dead processes are removed."""
        entries: list[tuple[float, int, Path]] = []
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            entry = _ENTRY.fullmatch(path.name) is not None
            if not entry and PART.fullmatch(path.name) is None:  # not of this cache
                continue
            try:
                state = path.stat()
            except FileNotFoundError:
                continue
            if entry:
                entries.append((state.st_mtime, state.st_size, path))
            elif time.time() - state.st_mtime > _STALE:
                path.unlink(missing_ok=True)
        return entries

    def _read_total(self) -> int | None:
        try:
            return int((self.folder / _TOTAL).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _write_total(self, total: int) -> None:
        (self.folder / _TOTAL).write_text(str(total))

    def _place(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{_SUFFIX}"

    def _digest(self, path: Path) -> bytes:
        state = path.stat()
        known = (str(path), state.st_size, state.st_mtime_ns, state.st_ino)
        if known not in self._digests:
            with path.open("rb") as stream:
                self._digests[known] = hashlib.file_digest(stream, "sha256").digest()
        return self._digests[known]


def _touch(path: Path) -> None:
    with contextlib.suppress(OSError):  # evicted meanwhile, or a folder that may only be read: the order then stays
        os.utime(path)


def _pack(values: np.ndarray, notes: dict[str, Any]) -> bytes:
    if values.dtype != np.uint8:
        raise TypeError(f"expected uint8 frames, got {values.dtype}")
    body = np.ascontiguousarray(values).tobytes()
    head = json.dumps({"shape": values.shape, "crc32": zlib.crc32(body), "notes": notes}).encode()
    return _MAGIC + head + b"\n" + body


def _unpack(data: bytes) -> tuple[np.ndarray, dict[str, Any]] | None:
    if not data.startswith(_MAGIC):
        return None
    head, _, body = data[len(_MAGIC) :].partition(b"\n")
    try:
        header = json.loads(head)
        if zlib.crc32(body) != header["crc32"]:
            return None
        return np.frombuffer(bytearray(body), dtype=np.uint8).reshape(header["shape"]), header["notes"]
    except (ValueError, KeyError, TypeError):  # not JSON, or another content
        return None
