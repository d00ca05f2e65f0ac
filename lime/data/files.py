"""Media files by name: regular files inside the data root, within bounds; anything else is a MediaError.

Imports neither Pillow nor FFmpeg.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEDIA_KINDS = ("missing", "empty", "unreadable", "outside_root", "wrong_type", "damaged", "too_large")
"""What can be wrong with a media file."""


class MediaError(RuntimeError):
    """A media file that cannot be used; the message names the file, the row, and what is wrong.

    `kind` is one of `MEDIA_KINDS`.
    """

    def __init__(self, path: str | Path, problem: str, row_id: str | None = None, kind: str = "damaged") -> None:
        row = f" (row {row_id})" if row_id else ""
        super().__init__(one_line(f"{path}{row}: {problem}"))
        self.path, self.problem, self.row_id, self.kind = str(path), problem, row_id, kind

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.problem, self.row_id, self.kind)


def one_line(text: str) -> str:
    """Without control characters, which names of files may hold."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


@dataclass(frozen=True)
class Bounds:
    """What one file may cost: `pixels` of a picture or of one frame of a clip, `seconds` that a clip lasts."""

    pixels: int = 50_000_000
    seconds: float = 3600.0


BOUNDS = Bounds()


@dataclass(frozen=True)
class Medium:
    """A media file to read: the row that names it, for messages, and what it may cost."""

    path: Path
    row_id: str | None = None
    bounds: Bounds = BOUNDS

    def error(self, problem: str, kind: str = "damaged") -> MediaError:
        return MediaError(self.path, problem, self.row_id, kind)

    def check_pixels(self, width: int, height: int) -> None:
        """MediaError where a picture or frame of this size is too large."""
        if width * height > self.bounds.pixels:
            raise self.too_many_pixels(f"{width} x {height}")

    def too_many_pixels(self, count: str) -> MediaError:
        bound = f"over data.max_pixels={self.bounds.pixels}; make it smaller or raise the bound"
        return self.error(f"{count} pixels, {bound}", "too_large")

    def check_seconds(self, seconds: float) -> None:
        """MediaError where a clip lasts too long."""
        if seconds > self.bounds.seconds:
            bound = f"over data.max_seconds={self.bounds.seconds:g}; cut it or raise the bound"
            raise self.error(f"lasts at least {seconds:.0f} s, {bound}", "too_large")


def regular_file(path: str | Path, row_id: str | None = None, bounds: Bounds = BOUNDS) -> Medium:
    """`path`, where it is a regular file that holds something. A pipe or a device is never opened."""
    medium = Medium(Path(path), row_id, bounds)
    try:
        state = os.stat(path)  # noqa: PTH116  # pathlib costs more than opening a small picture
    except FileNotFoundError as error:
        raise medium.error("no such file", "missing") from error
    except NotADirectoryError as error:
        raise medium.error("no such file (a part of its path is a file)", "missing") from error
    except PermissionError as error:
        raise medium.error("no permission to read it", "unreadable") from error
    except (OSError, ValueError) as error:  # a name that is too long, a loop of links, a NUL character
        reason = getattr(error, "strerror", None) or error
        raise medium.error(f"cannot be read ({reason})", "unreadable") from error
    if stat.S_ISDIR(state.st_mode):
        raise medium.error("a folder, not a file", "wrong_type")
    if not stat.S_ISREG(state.st_mode):
        raise medium.error("not a regular file (a pipe, a socket or a device)", "wrong_type")
    if state.st_size == 0:
        raise medium.error("an empty file", "empty")
    return medium


def media_file(root: str | Path, media_path: str, row_id: str | None = None) -> Path:
    """The regular file that a row of the data root names.

    Raises MediaError where it is none, or where its path, with every link followed, leaves the root.
    """
    path = Path(root) / media_path
    if os.path.isabs(media_path) or ".." in path.parts[len(Path(root).parts) :]:  # noqa: PTH117
        problem = f"its media_path {media_path!r} leaves the data root; expected one relative to it"
        raise MediaError(path, problem, row_id, "outside_root")
    regular_file(path, row_id)
    top, real = os.path.realpath(root), os.path.realpath(path)
    if not real.startswith(top.rstrip("/") + "/"):
        raise MediaError(path, f"leads out of the data root, to {real}", row_id, "outside_root")
    return path
