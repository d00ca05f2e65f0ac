"""What the machine refuses (room on a disk, permissions, memory, open files), in a sentence with what to do."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

_ADVICE = {
    errno.ENOSPC: "the disk is full: free some room, or take a folder on another disk (hydra.run.dir=FOLDER)",
    errno.EDQUOT: "your quota is used up: free some room, or take a folder elsewhere (hydra.run.dir=FOLDER)",
    errno.EIO: "the disk failed to write or read it: look at the disk, or take a folder on another one",
    errno.EROFS: "the disk can only be read: take a folder that can be written",
    errno.EACCES: "you may not write or read there: change its permissions, or take another folder",
    errno.EPERM: "you may not write or read there: change its permissions, or take another folder",
    errno.ENOTDIR: "a part of this path is a file, not a folder: take another folder",
    errno.ENOENT: "it is not there and cannot be made there: look at how the path is written, or take another",
    errno.EEXIST: "a file stands where a folder is wanted: take another name",
    errno.ENAMETOOLONG: "the name is too long for this disk: take a shorter one",
}  # fmt: skip
_MEMORY = re.compile(
    r"can't allocate memory|Cannot allocate memory|not enough memory|out of memory|failed to map segment|"
    r"Insufficient memory|bad_alloc", re.IGNORECASE
)  # fmt: skip
_FILES = re.compile(r"Too many open files|received 0 items of ancdata", re.IGNORECASE)


_THREADS = re.compile(r"can't start new thread|Thread creation failed|Resource temporarily unavailable", re.IGNORECASE)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the system inside names this file, where it names none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def explained(error: BaseException) -> str | None:
    """What the user has to know of an error of theirs, or of the machine's; None for a fault of the program."""
    for one in _chain(error):
        text = str(one)
        number = one.errno if isinstance(one, OSError) else None
        if number in (errno.EMFILE, errno.ENFILE) or _FILES.search(text):
            return f"{_first_line(text)}; {_files_advice()}"
        if number == errno.EAGAIN or _THREADS.search(text):
            return f"the machine gave no more threads or processes ({_first_line(text)}); {_threads_advice()}"
        if number == errno.ENOMEM or isinstance(one, MemoryError) or _MEMORY.search(text):
            return f"the machine gave no more memory ({_first_line(text) or type(one).__name__}); {_memory_advice()}"
    if isinstance(error, OSError) and error.errno in (*_ADVICE, errno.EFBIG):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; {_ADVICE.get(error.errno) or _size_advice()}"
    if isinstance(error, OSError) and error.errno is not None and error.filename and Path(str(error.filename)).is_dir():
        return f"{error.filename}: {error.strerror}; expected a file"
    return str(error) if isinstance(error, (ValueError, OSError)) else None


def check_files(num_workers: int) -> None:
    """Raise ValueError where this process may open too few files for its run, which would hang it.

    Raises the limit first, as far as the system lets it.
    """
    needed = 64 + 32 * num_workers
    limit = _limit("RLIMIT_NOFILE")
    if limit is None or limit >= needed:
        return
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or hard >= needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        return
    raise ValueError(
        f"data.num_workers: {num_workers} need about {needed} open files, this process may have {limit}; "
        f"{_files_advice()}"
    )


def _chain(error: BaseException | None) -> list[BaseException]:
    errors: list[BaseException] = []
    while error is not None and error not in errors:
        errors.append(error)
        error = error.__cause__
    return errors


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:300]


def _limit(kind: str) -> int | None:
    """The soft limit of this process, where there is one."""
    if resource is None:
        return None
    soft = resource.getrlimit(getattr(resource, kind))[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _size_advice() -> str:
    limit = _limit("RLIMIT_FSIZE")
    said = f" (now {limit / 2**20:,.1f} MB, `ulimit -f {limit // 1024}`)" if limit is not None else ""
    return f"this process may not write larger files{said}: raise that, `ulimit -f unlimited`"


def _threads_advice() -> str:
    if _limit("RLIMIT_AS") is not None:  # each takes address space
        return _memory_advice()
    limit = _limit("RLIMIT_NPROC")
    said = f" (now {limit})" if limit is not None else ""
    return f"raise the number of your processes, `ulimit -u`{said}, or lower data.num_workers or trainer.num_threads"


def _memory_advice() -> str:
    limit = _limit("RLIMIT_AS")
    said = f"this process may take {limit / 2**20:,.0f} MB (`ulimit -v`): raise that, or " if limit is not None else ""
    return f"{said}lower trainer.batch_size, evaluation.batch_size, data.num_workers or data.cache_mb"


def _files_advice() -> str:
    limit = _limit("RLIMIT_NOFILE")
    said = f" (now {limit})" if limit is not None else ""
    more = max(4096, 2 * (limit or 0))
    return f"raise the number of files that this process may open, `ulimit -n {more}`{said}, or lower data.num_workers"
