"""Unpacking zip and tar archives into a data root: nothing leaves the root, nothing half-done stays.

An archive is unpacked whole into a folder beside its place and only then moved. A refused member (a path or a link that
leads out of the root, a device file, an encrypted or a damaged member) is named, and nothing of its archive is kept.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tarfile import TarInfo
from typing import IO, Any, Protocol

RATIO = 100  # bytes that a byte of an archive may become: media hardly shrink, texts tenfold
SMALL = 64 * 2**20  # bytes up to which an archive may become any number of times its size
MEMBERS = 5_000_000
SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
_COPY = 2**20
_LONGEST_LINK = 4096


class ArchiveError(ValueError):
    """An archive that cannot or must not be unpacked; the message names it, the member and what is wrong."""

    def __init__(self, archive: Path, problem: str, member: str | None = None) -> None:
        where = f", member {member!r}" if member is not None else ""
        super().__init__(f"{archive}{where}: {problem}")


@dataclass(frozen=True)
class Member:
    """One entry: `kind` is file, folder, link (a symbolic one), hardlink or other; `target` where a link leads."""

    name: str
    kind: str
    size: int
    target: str = ""


class _Reader(Protocol):
    def members(self) -> list[Member]: ...
    def open(self, name: str) -> IO[bytes]: ...
    def close(self) -> None: ...


class _Zip(zipfile.ZipFile):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path

    def members(self) -> list[Member]:
        members = []
        for info in self.infolist():
            if info.flag_bits & 1:
                raise ArchiveError(self.path, "is encrypted", info.filename)
            mode = info.external_attr >> 16
            kind, target = "folder" if info.is_dir() else "file", ""
            if stat.S_ISLNK(mode) and info.file_size <= _LONGEST_LINK:
                kind, target = "link", self.read(info).decode("utf-8", "surrogateescape")
            elif stat.S_IFMT(mode) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                kind = "other"
            _bound(self.path, info.file_size, info.compress_size, 1, info.filename)
            # Python's reader turns the name's backslashes and cuts it at NUL; what the archive says counts.
            members.append(Member(info.orig_filename, kind, info.file_size, target))
        _bound(self.path, sum(member.size for member in members), self.path.stat().st_size, len(members))
        return members


class _Gzip(gzip.GzipFile):
    """Refuses to unpack more than the bound, whatever asks for it: headers and the bytes behind the last member too."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._path, self._packed = path, path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        _bound(self._path, self.tell() + max(size or 0, 0), self._packed, 0)
        return super().read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET:
            _bound(self._path, offset, self._packed, 0)
        return super().seek(offset, whence)


class _Tar:
    def __init__(self, path: Path) -> None:
        self.path = path
        packed = path.name.lower().endswith("gz")
        with ExitStack() as opened:
            self.stream: Any = opened.enter_context(_Gzip(path) if packed else path.open("rb"))
            self.file = tarfile.open(fileobj=self.stream)  # noqa: SIM115
            opened.pop_all()  # closed by close()
        self._infos: dict[str, TarInfo] = {}

    def members(self) -> list[Member]:
        members: list[Member] = []
        total, packed = 0, self.path.stat().st_size
        kinds = {"folder": TarInfo.isdir, "link": TarInfo.issym, "hardlink": TarInfo.islnk, "file": TarInfo.isreg}
        for info in self.file:
            total += info.size  # said before its bytes are read: a bomb is not unpacked to be counted
            _bound(self.path, total, packed, len(members))
            kind = next((kind for kind, holds in kinds.items() if holds(info)), "other")
            self._infos[info.name] = info
            members.append(Member(info.name, kind, info.size, info.linkname))
        # Python's reader takes a damaged header for the end, and does not read on to the checksum of gzip.
        self.stream.seek(self.file.offset)
        if self.stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("a damaged header, or its end is missing")
        while self.stream.read(_COPY):
            pass
        return members

    def open(self, name: str) -> IO[bytes]:
        stream = self.file.extractfile(self._infos[name])
        assert stream is not None
        return stream

    def close(self) -> None:
        self.file.close()
        self.stream.close()


_DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError, RuntimeError
)  # fmt: skip


def _bound(archive: Path, unpacked: int, packed: int, members: int, member: str | None = None) -> None:
    """ArchiveError where so many bytes come of so few, or an archive has too many members."""
    if unpacked > max(SMALL, RATIO * packed):
        ratio = f"{unpacked / 1e6:,.0f} MB packed into {packed / 1e6:,.2f} MB, more than {RATIO} to 1"
        raise ArchiveError(archive, f"{ratio}; refused, nothing was unpacked", member)
    if members > MEMBERS:
        raise ArchiveError(archive, f"more than {MEMBERS:,} members; refused, nothing was unpacked")


def _bound_links(archive: Path, members: list[Member]) -> None:
    """ArchiveError where files and links, which become copies, are far more than the archive."""
    sizes = {os.path.normpath(member.name): member.size for member in members if member.kind == "file"}
    total, packed = sum(sizes.values()), archive.stat().st_size
    for member in members:
        if member.kind in ("link", "hardlink"):
            size = sizes.get(os.path.normpath(_link_target(member)), 0)
            sizes[os.path.normpath(member.name)] = size
            total += size
            _bound(archive, total, packed, len(members), member.name)


def is_archive(path: Path) -> bool:
    """Whether a file's name says that it is an archive this module unpacks."""
    return path.name.lower().endswith(SUFFIXES)


def list_members(archive: Path) -> list[Member]:
    """Every member, checked: ArchiveError where one must not be unpacked or the archive cannot be read."""
    with _opened(archive) as (_, members):
        return members


def extract(archive: Path, staging: Path) -> list[Path]:
    """Unpacks into `staging` (a new folder); the files' paths relative to it.

    Links within the archive become copies of the file they lead to. Raises ArchiveError; `staging` may then hold a
    part, which the caller removes.
    """
    staging.mkdir(parents=True)
    written: list[Path] = []
    with _opened(archive) as (reader, members):
        for member in members:
            if member.kind == "folder":
                (staging / member.name).mkdir(parents=True, exist_ok=True)
            elif member.kind == "file":
                _write(archive, reader, member, staging / member.name)
                written.append(Path(member.name))
    for member in (one for one in members if one.kind in ("link", "hardlink")):
        source = staging / os.path.normpath(_link_target(member))
        if not source.is_file():
            raise ArchiveError(archive, f"a link to {member.target!r}, which the archive does not hold", member.name)
        (staging / member.name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, staging / member.name)
        written.append(Path(member.name))
    return written


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[_Reader, list[Member]]]:
    """A reader and its members, all of them checked; what a library says of damage becomes an ArchiveError."""
    try:
        reader: _Reader = _Zip(archive) if archive.name.lower().endswith(".zip") else _Tar(archive)
        with closing(reader):
            members = reader.members()
            for member in members:
                _check(archive, member)
            _bound_links(archive, members)
            yield reader, members
    except _DAMAGE as error:
        raise ArchiveError(archive, f"cannot be read ({error}); fetch it again") from error


def _write(archive: Path, reader: _Reader, member: Member, place: Path) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with reader.open(member.name) as source, place.open("xb") as out:
            shutil.copyfileobj(source, out, _COPY)
    except (FileExistsError, NotADirectoryError) as error:
        raise ArchiveError(archive, "clashes with another member of the same name", member.name) from error
    except _DAMAGE as error:
        raise ArchiveError(archive, f"damaged ({error}); fetch the archive again", member.name) from error
    if place.stat().st_size != member.size:
        raise ArchiveError(archive, "damaged (cut short); fetch the archive again", member.name)


def _check(archive: Path, member: Member) -> None:
    problem = None
    if member.kind == "other":
        problem = "is a device, a pipe or a socket; an archive of media holds files and folders"
    elif not member.name.strip("/") or "\0" in member.name:
        problem = "has no usable name"
    elif member.name != member.name.encode(errors="ignore").decode():
        problem = "has a name that is not UTF-8"
    elif _outside(member.name):
        problem = "leads out of the folder it is unpacked in"
    elif member.kind in ("link", "hardlink") and (_outside(member.target, link=True) or _leaves(_link_target(member))):
        problem = f"is a link to {member.target!r}, out of the folder it is unpacked in"
    if problem:
        raise ArchiveError(archive, f"{problem}; refused, nothing was unpacked", member.name)


def _outside(name: str, link: bool = False) -> bool:
    """Absolute, with a drive, with a backslash (a separator elsewhere) or, but for links, with a '..'."""
    drive = len(name) > 1 and name[1] == ":"
    return name.startswith("/") or drive or "\\" in name or (not link and ".." in PurePosixPath(name).parts)


def _link_target(member: Member) -> str:
    """Where a link leads, from the archive's top: a symbolic one counts from its own folder."""
    return member.target if member.kind == "hardlink" else f"{PurePosixPath(member.name).parent}/{member.target}"


def _leaves(name: str) -> bool:
    """Whether `name`, its '..' resolved, lies above the top."""
    normal = os.path.normpath(name)
    return normal == ".." or normal.startswith(("../", "/"))
