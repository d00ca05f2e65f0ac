"""What this program made, and may therefore replace or remove; everything else belongs to somebody.

A folder that it made holds the file ``.lime-made.json``: program, version, what the folder is and, for one that is
replaced as a whole, its files with their checksums. A folder without it, with files that it does not list, or with
files that were changed since, is refused by name.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lime.system.signature import is_signed, signature

PROGRAM = "lime-moe"
MARKER = ".lime-made.json"
MADE_BY = "Written by lime-moe"
"""In every table, figure and report that is written where the user says, so that it can be replaced. JSON has its
schema, ``lime-…``, instead."""

_WHOLE = 2**30  # bytes; larger files are known by their size
_NAMED = 3


def mark(folder: Path, kind: str, *, files: Iterable[str] | bool = False) -> None:
    """Mark a folder as made by this program; with ``files``, list what is in it, all or these, and sign the list."""
    content: dict[str, Any] = {"made_by": PROGRAM, "version": _version(), "kind": kind}
    if files:
        listed = _files(folder) if files is True else files
        content["files"] = {name: _state(folder / name) for name in listed}
        content["signature"] = signature(content)
    temporary = folder / f".lime-part.{os.getpid()}.{uuid.uuid4().hex}"
    try:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(folder / MARKER)
    finally:
        temporary.unlink(missing_ok=True)


def kind_of(folder: Path) -> str | None:
    """What a folder that this program made is; None for any other."""
    content = _read(folder)
    return str(content.get("kind")) if content else None


def claim(folder: Path, kind: str, names: Iterable[str], *, earlier: bool = False) -> None:
    """Make sure that ``names`` in ``folder`` may be written and replaced, and mark the folder.

    Args:
        earlier: it is this program's, although it has no mark or another one.

    Raises:
        FileExistsError: the folder holds files of these names that this program did not make; names them.
    """
    before = kind_of(folder)
    if before == kind:
        return
    if before is not None and not earlier:
        raise FileExistsError(f"{folder} is the folder of a {before}; take a new folder")
    there = [name for name in names if os.path.lexists(folder / name)]
    if there and not earlier:
        raise FileExistsError(
            f"{folder} holds {_some(there)}, which no {kind} of this program wrote and this one would replace; "
            "take another folder"
        )
    mark(folder, kind)


def check_replaceable(folder: Path, kind: str | None, *, overwrite: bool = False) -> None:
    """Raise FileExistsError where ``folder`` is there and is not one of this kind, as this program left it.

    An empty folder is nobody's; with ``kind`` None only that is replaced.
    """
    folder = Path(os.path.realpath(folder))
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; expected a folder to write")
    if any(place.is_relative_to(folder) for place in (Path.cwd(), Path.home())):
        raise FileExistsError(f"{folder} holds the folder that you work in, or your home; take another folder")
    if overwrite or not any(folder.iterdir()):
        return
    listed = (_read(folder) or {}).get("files")
    if kind is None or kind_of(folder) != kind or not isinstance(listed, dict):
        raise FileExistsError(
            f"{folder} holds {_some(sorted(path.name for path in folder.iterdir()))} and was not made by this "
            f"program as {kind or 'such'}; take another folder, or say --overwrite to replace it with everything in it"
        )
    changed = [name for name in _files(folder) if name not in listed or listed[name] != _state(folder / name)]
    if changed:
        raise FileExistsError(
            f"{folder}: {_some(changed)} was added or changed since this program made the folder; keep it elsewhere, "
            "or say --overwrite to replace the folder with everything in it"
        )


def check_unchanged(folder: Path, names: Iterable[str]) -> None:
    """Raise ValueError where a file is not what the folder's mark says; a folder without a mark says nothing."""
    listed = (_read(folder) or {}).get("files")
    if not isinstance(listed, dict):
        return
    for name in names:
        if listed.get(name) != _state(folder / name):
            raise ValueError(
                f"{folder / name}: is not what was saved: its checksum is not the one in {MARKER}; take the folder as "
                "it was saved, or train again"
            )


def is_own(folder: Path, kind: str) -> bool:
    """Whether a run of this user made the folder (:mod:`lime.system.signature`) and all that is listed is unchanged."""
    content = _read(folder) or {}
    listed = content.get("files")
    if content.get("kind") != kind or not isinstance(listed, dict) or not is_signed(content):
        return False
    return all(state == _state(folder / name) for name, state in listed.items())


def check_output(path: Path, *, overwrite: bool = False) -> None:
    """Raise FileExistsError where ``path`` is a file that this program did not write. An empty file is nobody's.

    Files without the words of :data:`MADE_BY` are known by what was written together with them, of the same name: CSV
    by its Markdown, Markdown by its JSON.
    """
    if overwrite or not path.is_file() or path.stat().st_size == 0:
        return
    beside = {".csv": [path.with_suffix(".md")], ".md": [path.with_suffix(".json")]}.get(path.suffix, [])
    if any(_made_here(one) for one in (path, *beside)):
        return
    raise FileExistsError(f"{path} was not written by this program; name another file, or say --overwrite")


def _made_here(path: Path) -> bool:
    content = path.read_bytes() if path.is_file() else b""
    return MADE_BY.encode() in content or re.match(rb'\{\s*"schema": "lime-', content) is not None


def _version() -> str | None:
    try:
        return importlib.metadata.version(PROGRAM)
    except importlib.metadata.PackageNotFoundError:  # used from a checkout that is not installed
        return None


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("made_by") == PROGRAM else None


def _files(folder: Path) -> list[str]:
    """Everything in a folder that is no folder, and folders that are empty, by their paths within it."""
    names = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir()):
            names.append(path.relative_to(folder).as_posix())
    return [name for name in names if name != MARKER]


def _state(path: Path) -> str:
    """What a file is known by: its checksum, or its size where it is large."""
    if path.is_symlink() or not path.is_file():
        return "link" if path.is_symlink() else "other"
    size = path.stat().st_size
    if size > _WHOLE:
        return f"{size} bytes"
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
