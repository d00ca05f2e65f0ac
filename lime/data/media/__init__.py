"""Pictures (Pillow) and clips (PyAV or decord). Everything unreadable is a MediaError naming file and row."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lime.data.config import VIDEO_BACKENDS
from lime.data.files import BOUNDS, MEDIA_KINDS, Bounds, MediaError, media_file, regular_file
from lime.data.media.pictures import image_size, load_image
from lime.data.media.video import Clip, clip_seconds, frame_indices, frame_size, read_clip
from lime.data.media.video_decord import read_frames

__all__ = [
    "BOUNDS",
    "MEDIA_KINDS",
    "Bounds",
    "Clip",
    "MediaError",
    "clip",
    "frame_indices",
    "image_size",
    "load_image",
    "load_video",
    "media_file",
    "video_seconds",
    "video_size",
]


def load_video(
    path: str | Path,
    num_frames: int,
    backend: str = "pyav",
    row_id: str | None = None,
    bounds: Bounds = BOUNDS,
    rule: str = "rounded",
) -> np.ndarray:
    """`num_frames` frames spread evenly over a clip: (num_frames, H, W, 3) uint8, RGB, turned as players show them.

    A clip with fewer frames repeats some, so every clip gives the same number; frames of another size are scaled to the
    first one's. `rule`: as `frame_indices` has it. Raises MediaError for a file that is missing, holds no video, is
    damaged or cut short, or exceeds
    `bounds`; ValueError for an unknown backend.
    """
    if backend not in VIDEO_BACKENDS:
        raise ValueError(f"data.video_backend: expected one of {', '.join(VIDEO_BACKENDS)}, got {backend!r}")
    medium = regular_file(path, row_id, bounds)
    if backend == "decord":
        return read_frames(medium, num_frames, rule)
    return read_clip(medium, num_frames, rule).frames


def clip(path: str | Path, row_id: str | None = None, bounds: Bounds = BOUNDS) -> Clip:
    """A clip's first frame, and what is known of all of them, for checking it. Raises MediaError."""
    return read_clip(regular_file(path, row_id, bounds), 1)


def video_size(path: str | Path, row_id: str | None = None, bounds: Bounds = BOUNDS) -> tuple[int, int]:
    """(height, width) of the frames that `load_video` gives. Raises MediaError."""
    return frame_size(regular_file(path, row_id, bounds))


def video_seconds(path: str | Path, row_id: str | None = None, bounds: Bounds = BOUNDS) -> float:
    """How long a clip lasts. Raises MediaError."""
    return clip_seconds(regular_file(path, row_id, bounds))
