"""From downloaded files to a data root that trains: archives unpacked where the rows look, and a manifest."""

from __future__ import annotations

import filecmp
import logging
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lime.data.files import MediaError, media_file
from lime.data.fingerprint import CHECKSUMS, write_checksums
from lime.data.layout import find_splits
from lime.data.rows import MANIFEST, MMTDataset, read_manifest
from lime.data.tools.archives import ArchiveError, extract, is_archive, list_members
from lime.system.atomic import locked, move, remove, write_json, write_text

log = logging.getLogger(__name__)

_FILMS = {
    ".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".wmv", ".asf", ".flv", ".mpg", ".mpeg", ".ts", ".3gp", ".ogv",
}  # fmt: skip
_MARKS = ".unpacked"
_STAGING = ".lime-unpacking"


@dataclass(frozen=True)
class Prepared:
    """What `prepare` found: `unpacked` archives, and the section it wrote into the manifest."""

    unpacked: list[str]
    manifest: dict[str, Any]


def prepare(root: str | Path) -> Prepared:
    """Unpacks every archive below `root` that is not unpacked yet, and writes manifest.json and media.sha256.

    Archives stay where they are. Where a file goes is read off the rows: if they name `video/a/1.mp4` and an archive
    holds `x/a/1.mp4`, its `x` becomes `video`. An archive that no row names is unpacked as its publishers say: into a
    folder of its own name if it holds clips, else into its own folder. The manifest counts rows, media and bytes of
    each split; what it already holds (such as allowed answers) is kept.

    Raises FileNotFoundError where the rows are not there, DataError for an unusable row, ArchiveError for an archive
    that is damaged or must not be unpacked (nothing of it is left), OSError where the disk is too small.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; expected the one that `scripts/data.py download` filled")
    with locked(root / ".lime-prepare.lock"):
        remove(root / _STAGING)  # of a run that was killed
        unpacked = []
        if not _has_rows(root):  # then they are in an archive
            unpacked = _unpack_all(root, _Places([]))
        dataset = MMTDataset(root)
        named = dataset.media_paths()
        unpacked += _unpack_all(root, _Places(named))
        remove(root / _STAGING)
        manifest = _manifest(root, dataset, named)
        write_json(root / MANIFEST, {**read_manifest(root), "prepared": manifest}, indent=1)
    return Prepared(unpacked, manifest)


def archives(root: Path) -> list[Path]:
    """Every archive below `root`, hidden folders left out, in order of their paths."""
    paths = (path for path in root.rglob("*") if path.is_file() and is_archive(path))
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts))


class _Places:
    """Where members of archives belong, by the media paths of the rows."""

    def __init__(self, named: Sequence[str]) -> None:
        self._by_name: dict[str, list[tuple[str, ...]]] = {}
        for path in named:
            parts = PurePosixPath(path).parts
            self._by_name.setdefault(parts[-1], []).append(parts)

    def move(self, members: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """(leading parts of the members, what they become), the pair that most members agree on; None for none."""
        votes: Counter[tuple[tuple[str, ...], tuple[str, ...]]] = Counter()
        for member in members:
            own = PurePosixPath(member).parts
            candidates = [(_common_end(own, parts), parts) for parts in self._by_name.get(own[-1], ())]
            most = max((length for length, _ in candidates), default=0)
            best = {(own[: len(own) - n], parts[: len(parts) - n]) for n, parts in candidates if n == most}
            if len(best) == 1:  # a name that two folders share says nothing by itself
                votes.update(best)
        return votes.most_common(1)[0][0] if votes else None


def _common_end(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    count = 0
    while count < min(len(a), len(b)) and a[-1 - count] == b[-1 - count]:
        count += 1
    return count


def _has_rows(root: Path) -> bool:
    try:
        find_splits(root)
    except FileNotFoundError:
        return False
    return True


def _unpack_all(root: Path, places: _Places) -> list[str]:
    return [str(path.relative_to(root)) for path in archives(root) if _unpack(root, path, places)]


def _unpack(root: Path, archive: Path, by_rows: _Places) -> bool:
    """Unpacks one archive, whole or not at all; False where that was done before."""
    mark = root / _MARKS / f"{'__'.join(archive.relative_to(root).parts)}.txt"
    state = f"{archive.stat().st_size} {archive.stat().st_mtime_ns}"
    if mark.is_file() and mark.read_text().split("\n")[0] == state:
        return False
    members = list_members(archive)
    size = sum(member.size for member in members)
    free = shutil.disk_usage(root).free
    if size > free:
        raise OSError(
            f"{archive}: unpacked it takes {size / 1e9:.1f} GB, {root} has {free / 1e9:.1f} GB left; "
            "make room and run this again"
        )
    files = [member.name for member in members if member.kind != "folder"]
    source, target = by_rows.move(files) or ((), _published_place(root, archive, files))
    log.info("unpacking %s into %s", archive.relative_to(root), root.joinpath(*target))
    staging = root / _STAGING / mark.stem
    try:
        written, places = extract(archive, staging), list[tuple[Path, Path]]()
        for path in written:
            parts = path.parts[len(source) :] if path.parts[: len(source)] == source else path.parts
            place = root.joinpath(*target, *parts)
            _stay_inside(root, archive, place)
            places.append((staging / path, place))
        if not mark.is_file():  # else they are of this archive as it was before
            _refuse_others(archive, places)
        for source_file, place in places:
            place.parent.mkdir(parents=True, exist_ok=True)
            move(source_file, place)
    finally:
        remove(staging)
    write_text(mark, f"{state}\n{len(written)} files\n")
    return True


def _refuse_others(archive: Path, places: Sequence[tuple[Path, Path]]) -> None:
    """Refuses to replace a file with another content that was not unpacked from this archive."""
    for staged, place in places:
        if place.is_file() and not filecmp.cmp(staged, place, shallow=False):
            raise ArchiveError(archive, f"{place} is there already, with another content; move it away, or the archive")


def _published_place(root: Path, archive: Path, files: Sequence[str]) -> tuple[str, ...]:
    """Clips: a folder of the archive's name beside it; everything else: the archive's own folder."""
    folder = archive.parent.relative_to(root).parts
    suffixes = {PurePosixPath(name).suffix.lower() for name in files}
    clips = bool(suffixes & _FILMS) or suffixes == {".gif"}
    return (*folder, archive.name[: archive.name.index(".")]) if clips else folder


def _stay_inside(root: Path, archive: Path, place: Path) -> None:
    """Refuses a place reached through a link in the root that leads elsewhere."""
    if not Path(os.path.realpath(place)).is_relative_to(os.path.realpath(root)):
        raise ArchiveError(archive, f"its place {place} leads out of {root} through a link; remove the link")


def _manifest(root: Path, dataset: MMTDataset, named: Sequence[str]) -> dict[str, Any]:
    present = [path for path in named if _is_usable(root, path)]
    if (root / CHECKSUMS).exists() and "prepared" not in read_manifest(root):
        raise FileExistsError(f"{root / CHECKSUMS} is there already, and was not written by this command; move it away")
    checksum = write_checksums(root, present)
    splits = dataset.splits.items()
    return {
        "splits": {n: {"rows": len(rows), **Counter(row.source_type for row in rows)} for n, rows in splits},
        "digests": {name: rows.digest() for name, rows in splits},
        "absent": dataset.absent,
        "rows_fingerprint": dataset.rows_fingerprint,
        "media": {
            "named": len(named),
            "present": len(present),
            "bytes": sum((root / path).stat().st_size for path in present),
            "checksums": CHECKSUMS,
            "checksum": checksum,
        },
    }


def _is_usable(root: Path, media_path: str) -> bool:
    try:
        media_file(root, media_path)
    except MediaError:
        return False
    return True
