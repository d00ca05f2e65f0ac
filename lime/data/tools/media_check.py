"""Whether one media file is what its row says, by the readers that training uses.

Imports no model library, so that the processes that check files start fast.
"""

from __future__ import annotations

import time

from lime.data.files import BOUNDS, Bounds, MediaError
from lime.data.media import clip, load_image, media_file

Problem = tuple[str, str]
"""(kind, what is wrong); the kinds are `MEDIA_KINDS`, or `NOTE` for what is good to know of a usable file."""

NOTE = "note"
_EXTREME = 200  # side by side, from which on processors of the Qwen2-VL kind refuse a picture


def check_media(root: str, media_path: str, kind: str, bounds: Bounds = BOUNDS) -> str:
    """A note on a row's file, "" for none. `kind` is image or video; the whole file is decoded. Raises MediaError."""
    path = media_file(root, media_path)
    if kind == "image":
        width, height = load_image(path, bounds=bounds).size
    else:
        decoded = clip(path, bounds=bounds)
        if len(decoded.sizes) > 1:
            shown = ", ".join(f"{width} x {height}" for height, width in sorted(decoded.sizes))
            return f"its frames change their size ({shown}); all are scaled to the first one's"
        height, width = decoded.frames.shape[1:3]
    extreme = max(width, height) > _EXTREME * min(width, height)
    return f"{width} x {height} pixels: processors of the Qwen2-VL kind refuse this shape" if extreme else ""


def check_chunk(root: str, part: list[tuple[str, str]], bounds: Bounds = BOUNDS) -> tuple[list[Problem | None], float]:
    """What there is to say of each of these (media path, kind), and the seconds that libraries read and decoded."""
    started = time.perf_counter()
    problems: list[Problem | None] = []
    for media, kind in part:
        try:
            note = check_media(root, media, kind, bounds)
            problems.append((NOTE, note) if note else None)
        except MediaError as error:
            problems.append((error.kind, error.problem))
    return problems, time.perf_counter() - started
