"""Files and folders that readers see whole or not at all, whenever the writer is killed.

The one place of this project that replaces or removes files. A temporary name holds the writer's process and a random
number, so that no two writers share one, and starts with ``.lime-``, so that nobody else's file is taken for one.
Which folders may be replaced at all, :mod:`lime.system.ownership` says.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from lime.system.ownership import check_replaceable, mark

PART = re.compile(r"\.lime-part\.(\d+)\.[0-9a-f]{32}")
OLD = re.compile(r"\.lime-old\.(\d+)\.[0-9a-f]{32}\.(.+)", re.DOTALL)
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # safetensors' error is of no errno, and names no file
_STREAMS = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/self/fd/")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; it takes the place of ``path`` when the block ends without error.

    Data reach the disk before the name does. Leaves nothing behind when the block fails. A link is followed, and a
    file's permissions stay; a device or a pipe (``/dev/stdout``) is written to and never replaced.

    Raises:
        OSError: nothing can be written there; names ``path``.
    """
    path = Path(path)
    if str(path).startswith(_STREAMS) or (path.exists() and not path.is_file() and not path.is_dir()):
        with _errors_name(path, path):
            yield path
        return
    path = Path(os.path.realpath(path))
    before = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder stands where a file is to be written", str(path))
    if before is not None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "the file may not be written", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with _errors_name(path, temporary):
            yield temporary
            _flush(temporary)
            if before is not None:
                temporary.chmod(before)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text in one piece."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes in one piece."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Write JSON in one piece."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


@contextmanager
def replacing_folder(path: Path, kind: str | None, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``path``; it takes the place of ``path`` when the block ends without error.

    The new folder is marked as made by this program. A folder that was there is moved aside first, and is gone
    afterwards; at no moment does ``path`` hold a part of the new content.

    Args:
        kind: what the folder is, e.g. ``adapter``. Only a folder of the same kind is replaced unasked. None: it
            becomes the user's own, without a mark, and is never replaced.
        overwrite: replace whatever is there.

    Raises:
        FileExistsError: what is there was not made by this program, or was changed since; names it.
    """
    path = Path(os.path.realpath(path))
    check_replaceable(path, kind, overwrite=overwrite)
    temporary = temporary_beside(path)
    old = path.with_name(f".lime-old.{os.getpid()}.{uuid.uuid4().hex}.{path.name}")
    with _errors_name(path, temporary):
        temporary.mkdir(parents=True)
    try:
        with _errors_name(path, temporary):
            yield temporary
            if kind is not None:
                mark(temporary, kind, files=True)
            for file in temporary.rglob("*"):
                if file.is_file():
                    file.chmod(stat.S_IMODE(temporary.stat().st_mode) & 0o666)  # safetensors writes for the owner alone
                    _flush(file)
        check_replaceable(path, kind, overwrite=overwrite)  # again: the block may have taken long
        if path.exists():
            path.rename(old)
        try:
            temporary.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in ``folder``, one that this program made; nothing below it is looked at.

    What a writer was about to replace and had moved aside is put back. A writer that is alive keeps its files.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        leftover = PART.fullmatch(path.name) or OLD.fullmatch(path.name)
        if leftover is None or _alive(int(leftover[1])):
            continue
        if leftover.re is OLD and not (folder / leftover[2]).exists():
            path.rename(folder / leftover[2])
        else:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a whole folder of this program's own; no matter if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Move a file that was written under another name on the same disk, in place of ``target``."""
    source.replace(target)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process is inside; the lock file is gone afterwards, which others that wait for it notice.

    Raises:
        OSError: ``path`` cannot be made, which a lock would wait for without end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with FileLock(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """A name beside ``path`` that nobody else uses, for a writer that cannot use :func:`replacing`."""
    return path.with_name(f".lime-part.{os.getpid()}.{uuid.uuid4().hex}")


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _alive(process: int) -> bool:
    """Whether another process of this number runs on this machine."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


@contextmanager
def _errors_name(path: Path, temporary: Path) -> Iterator[None]:
    """A full disk and the like name the file that was to be written, not the temporary one (or one in it)."""
    try:
        yield
    except OSError as error:
        named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else temporary
        if error.errno is None or not named.is_relative_to(temporary):
            raise
        raise type(error)(error.errno, error.strerror, str(path / named.relative_to(temporary))) from error
    except Exception as error:
        if (match := _OS_ERROR.search(str(error))) is None:
            raise
        number = int(match[1])
        raise OSError(number, os.strerror(number), str(path)) from error
