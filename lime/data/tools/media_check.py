"""Whether one media file is what its row says, by the readers that training uses.

Imports no model library, so that the processes that check files start fast.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from lime.data.media import BOUNDS, MEDIA_KINDS, Bounds, MediaError, clip, load_image, media_file
from lime.data.media.signatures import describe

__all__ = ["MEDIA_KINDS", "Checked", "Problem", "check_chunk", "check_media", "describe"]

Problem = tuple[str, str]
"""(kind, what is wrong); the kinds are `MEDIA_KINDS`."""

_EXTREME = 200  # side by side, from which on processors of the Qwen2-VL kind refuse a picture


@dataclass
class Checked:
    """Files of a chunk: (position, problem) of those that have one, (position, note) of usable ones with something to
    know, and the seconds that libraries read and decoded.
    """

    problems: list[tuple[int, Problem]] = field(default_factory=list)
    notes: list[tuple[int, str]] = field(default_factory=list)
    decoding: float = 0.0


def check_media(root: str, media_path: str, kind: str, bounds: Bounds = BOUNDS) -> str:
    """A note on a row's file, "" for none. `kind` is image or video; the whole file is decoded. Raises MediaError."""
    path = media_file(root, media_path)
    if kind == "image":
        return _shape_note(*load_image(path, bounds=bounds).size)
    found = clip(path, bounds=bounds)
    if len(found.sizes) > 1:
        shown = ", ".join(f"{width} x {height}" for height, width in sorted(found.sizes))
        return f"its frames change their size ({shown}); all are scaled to the first one's"
    return _shape_note(found.frames.shape[2], found.frames.shape[1])


def _shape_note(width: int, height: int) -> str:
    extreme = max(width, height) > _EXTREME * min(width, height)
    return f"{width} x {height} pixels: processors of the Qwen2-VL kind refuse this shape" if extreme else ""


def check_chunk(root: str, part: list[tuple[str, str]], bounds: Bounds = BOUNDS) -> Checked:
    """Every one of these (media path, kind)."""
    checked = Checked()
    started = time.perf_counter()
    for position, (media, kind) in enumerate(part):
        try:
            if note := check_media(root, media, kind, bounds):
                checked.notes.append((position, note))
        except MediaError as error:
            checked.problems.append((position, (error.kind, error.problem)))
    checked.decoding = time.perf_counter() - started
    return checked
