"""What identifies the media of a data root: their content where `data.py prepare` recorded it, else size and time.

`media.sha256` holds the checksums (in the format of `sha256sum`), `media.stat` size and time of each file when it was
hashed. A listed file that still has both counts by its checksum; one that does not is hashed again. So a prepared root
keeps its identity wherever it is copied, and a replaced picture is never taken for the one before. The embedded
benchmark counts by the checksum in its manifest, as long as nothing was touched since that was written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lime.system.atomic import write_text

log = logging.getLogger(__name__)

CHECKSUMS = "media.sha256"  # `sha256sum --check media.sha256` reads it too
STATES = "media.stat"
EMBEDDED_DATA = "mmt47_mini"
ABSENT = "absent"
_SHOWN = 1000  # files hashed again before that is worth a line


def write_checksums(root: Path, paths: Sequence[str]) -> str:
    """Write `media.sha256` and `media.stat` for these files, relative to the root; the SHA-256 of the former."""
    states = [_state(root / path) for path in paths]
    listing = "".join(f"{digest}  {path}\n" for digest, path in zip(_hashes(root, paths), paths, strict=True))
    write_text(root / CHECKSUMS, listing)
    write_text(root / STATES, "".join(f"{state}  {path}\n" for state, path in zip(states, paths, strict=True)))
    return hashlib.sha256(listing.encode()).hexdigest()


def media_fingerprint(root: Path, paths: Iterable[str]) -> str:
    """SHA-256 over the state of these files, relative to the root. Files that are not there count as absent."""
    named = sorted(set(paths))
    if (generated := _generated(root, named)) is not None:
        return generated
    now = {path: _state(root / path) for path in named}
    hashes, states = _read(root / CHECKSUMS), _read(root / STATES)
    listed = {path for path in named if path in hashes and path in states and now[path] != ABSENT}
    changed = sorted(path for path in listed if now[path] != states[path])
    if len(changed) > _SHOWN:
        log.info("%s: %d media changed since `data.py prepare`; hashing them", root, len(changed))
    again = dict(zip(changed, _hashes(root, changed), strict=True))
    total = hashlib.sha256()
    for path in named:
        state = again.get(path, hashes[path]) if path in listed else now[path]
        total.update(f"{path}\0{state}\0".encode(errors="surrogateescape"))
    return total.hexdigest()


def _state(path: Path) -> str:
    try:
        state = path.stat()
    except (OSError, ValueError):  # ValueError: a path with a zero byte
        return ABSENT
    return f"{state.st_size} {state.st_mtime_ns}"


def _generated(root: Path, paths: Sequence[str]) -> str | None:
    """The checksum of a generated root whose files are all older than its manifest, which is written last."""
    manifest = root / "manifest.json"
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if content.get("name") != EMBEDDED_DATA:
            return None
        written = manifest.stat().st_mtime_ns
        states = [(root / path).stat() for path in paths]
        untouched = all(max(state.st_mtime_ns, state.st_ctime_ns) <= written for state in states)
        return str(content["checksum"]) if untouched else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _hashes(root: Path, paths: Sequence[str]) -> list[str]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing releases the interpreter
        return list(pool.map(lambda path: _sha256(root / path), paths))


def _sha256(path: Path) -> str:
    if not path.is_file():  # a folder, a device: read by nobody
        return ABSENT
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:  # reading the row will tell
        return ABSENT


def _read(path: Path) -> dict[str, str]:
    """A listing as {path: what stands before it}; {} where there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError:
        return {}
    entries = (line.partition("  ") for line in lines if "  " in line)
    return {name: said for said, _, name in entries}
