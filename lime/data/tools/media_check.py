"""Whether one media file is what its row says: there, inside the root, of the right kind, and decodable to its end.

Imports no model library, so that the processes that check files start fast.
"""

from __future__ import annotations

import functools
import os
import stat
import time
from dataclasses import dataclass, field

from PIL import Image

from lime.data.media import MediaError, load_video

Problem = tuple[str, str]
"""(kind, what is wrong); the kinds are `MEDIA_KINDS`."""

MEDIA_KINDS = ("missing", "empty", "unreadable", "outside_root", "wrong_type", "damaged")


@dataclass
class Checked:
    """Files of a chunk: (position, problem) of those that have one, and the seconds that libraries read and decoded."""

    problems: list[tuple[int, Problem]] = field(default_factory=list)
    decoding: float = 0.0


_HEAD = 512
_SIGNATURES = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"%PDF", "a PDF document"),
    (b"version https://git-lfs", "a Git LFS pointer (fetch the file itself: git lfs pull)"),
)


def check_media(root: str, media_path: str, kind: str, checked: Checked | None = None) -> Problem | None:
    """What is wrong with a row's file, or None. `kind` is image or video; the whole file is decoded.

    The time that Pillow or FFmpeg take is added to `checked`. Raises nothing for a bad file.
    """
    checked = checked if checked is not None else Checked()
    path = os.path.join(root, media_path)  # noqa: PTH118  # pathlib costs more than opening a small picture
    try:
        state = os.stat(path)  # noqa: PTH116
        folder, _, name = path.rpartition("/")
        real = os.path.realpath(path) if os.path.islink(path) else f"{_real(folder)}/{name}"  # noqa: PTH114
        if not real.startswith(_real(root) + "/"):
            return "outside_root", f"leads out of the data root, to {real}"
        if not stat.S_ISREG(state.st_mode):
            return "wrong_type", "a folder, not a file" if stat.S_ISDIR(state.st_mode) else "not a regular file"
        if state.st_size == 0:
            return "empty", "an empty file"
        started = time.perf_counter()
        try:
            return _check_image(path) if kind == "image" else _check_video(path)
        finally:
            checked.decoding += time.perf_counter() - started
    except FileNotFoundError:
        return "missing", "no such file"
    except NotADirectoryError:
        return "missing", "no such file (a part of its path is a file)"
    except PermissionError:
        return "unreadable", "no permission to read it"
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        return "unreadable", f"cannot be read ({error})"


@functools.lru_cache(maxsize=65536)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def check_chunk(root: str, part: list[tuple[str, str]]) -> Checked:
    """Every one of these (media path, kind)."""
    _real.cache_clear()  # links may have changed since
    checked = Checked()
    for position, (media, kind) in enumerate(part):
        problem = check_media(root, media, kind, checked)
        if problem is not None:
            checked.problems.append((position, problem))
    return checked


def _check_image(path: str) -> Problem | None:
    with open(path, "rb") as stream:  # noqa: PTH123
        try:
            with Image.open(stream) as image:
                image.load()
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            stream.seek(0)
            found = describe(stream.read(_HEAD))
            if found is None or found.endswith("picture"):
                return "damaged", f"not a readable picture ({error})"
            return _wrong(found, "a picture")
    return None


def _check_video(path: str) -> Problem | None:
    with open(path, "rb") as stream:  # noqa: PTH123  # FFmpeg would not tell a missing permission from damage
        head = stream.read(_HEAD)
    found = describe(head)
    if found is not None and not found.endswith("video"):
        return _wrong(found, "a video")
    try:
        load_video(path, 1)
    except MediaError as error:
        return "damaged", error.problem
    return None


def _wrong(found: str, expected: str) -> Problem:
    return "wrong_type", f"it holds {found}, the row expects {expected}"


def describe(head: bytes) -> str | None:
    """What the first bytes of a file say it is, or None where they say nothing."""
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if head[4:8] == b"ftyp":
        return "an MP4 video"
    if head.startswith(b"RIFF") and head[8:12] in (b"AVI ", b"WEBP"):
        return "an AVI video" if head[8:12] == b"AVI " else "a WebP picture"
    if head.lstrip()[:9].lower() in (b"<!doctype", b"<html>") or head.lstrip()[:5].lower() == b"<html":
        return "an HTML page"
    return "text" if _is_text(head) else None


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError:
        return False
    return bool(text) and all(letter.isprintable() or letter in "\t\r\n" for letter in text)
