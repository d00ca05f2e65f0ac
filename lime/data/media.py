"""Reading pictures (Pillow) and clips (PyAV or decord). Everything unreadable is a MediaError naming file
and row.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageOps

_DAMAGE_TOLERANCE = 0.05
_SHORT_TOLERANCE = 0.05
_NO_TIMESTAMP = 1e12  # seconds; decord gives about 9e15 where a frame has none


class MediaError(RuntimeError):
    """A media file that is missing or damaged; the message names the file, the row, and what is wrong."""

    def __init__(self, path: str | Path, problem: str, row_id: str | None = None) -> None:
        row = f" (row {row_id})" if row_id else ""
        super().__init__(f"{path}{row}: {problem}")
        self.path, self.problem, self.row_id = str(path), problem, row_id

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.problem, self.row_id)


def frame_indices(total: int, count: int) -> np.ndarray:
    """`count` indices spread evenly from the first to the last of `total` frames; a shorter clip repeats
    frames.
    """
    if total < 1:
        raise ValueError(f"cannot sample from {total} frames")
    return np.linspace(0, total - 1, count).round().astype(int)


def load_image(path: str | Path, row_id: str | None = None) -> Image.Image:
    """An RGB picture, turned as its EXIF orientation says. Raises MediaError."""
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError as error:
        raise MediaError(path, "no such file", row_id) from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise MediaError(path, f"not a readable picture ({error})", row_id) from error


def image_size(path: str | Path, row_id: str | None = None) -> tuple[int, int]:
    """(height, width) of a picture from its header, turned as its EXIF orientation says. Raises
    MediaError.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) >= 5
            return (width, height) if turned else (height, width)
    except FileNotFoundError as error:
        raise MediaError(path, "no such file", row_id) from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise MediaError(path, f"not a readable picture ({error})", row_id) from error


def load_video(path: str | Path, num_frames: int, backend: str = "pyav", row_id: str | None = None) -> np.ndarray:
    """`num_frames` frames spread evenly over a clip: (num_frames, H, W, 3) uint8, RGB.

    A clip with fewer frames repeats some, so every clip gives the same number. Raises MediaError for a file
    that is missing, holds no video, is damaged, or ends well before its container says; ValueError for an
    unknown backend.
    """
    if backend not in _READERS:
        raise ValueError(f"data.video_backend: expected one of {', '.join(_READERS)}, got {backend!r}")
    if not Path(path).is_file():
        raise MediaError(path, "no such file", row_id)
    return _READERS[backend](Path(path), num_frames, row_id)


def video_size(path: str | Path, row_id: str | None = None) -> tuple[int, int]:
    """(height, width) of a clip from its container. Raises MediaError."""
    if not Path(path).is_file():
        raise MediaError(path, "no such file", row_id)
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container, path, row_id)
            return stream.height, stream.width
    except av.FFmpegError as error:
        raise MediaError(path, f"not a readable video ({error})", row_id) from error


def _video_stream(container: Any, path: str | Path, row_id: str | None) -> Any:
    if not container.streams.video:
        raise MediaError(path, "holds no video stream", row_id)
    if container.format.name.endswith("_pipe") or container.format.name == "image2":  # FFmpeg's names of still pictures
        raise MediaError(path, "a picture, not a video", row_id)
    return container.streams.video[0]


def _load_pyav(path: Path, num_frames: int, row_id: str | None) -> np.ndarray:
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container, path, row_id)
            announced = stream.frames
            if announced == 0:  # mkv and webm do not say: count packets, then start again
                announced = sum(1 for packet in container.demux(stream) if packet.size)
                container.seek(0)
            if announced == 0:
                raise MediaError(path, "holds no frame", row_id)
            stream.thread_count = 1 if announced <= 64 else 0
            frames, seen, end = _decode(container, stream, set(frame_indices(announced, num_frames).tolist()))
            length = _length(stream)
    except av.FFmpegError as error:
        raise MediaError(path, f"not a readable video ({error})", row_id) from error
    if seen < announced * (1 - _DAMAGE_TOLERANCE) - 1:
        raise MediaError(path, f"damaged or cut short: only {seen} of {announced} frames", row_id)
    if length is not None and end is not None and end < length * (1 - _SHORT_TOLERANCE) - 2 * end / seen:
        raise MediaError(path, f"damaged or cut short: it ends after {end:.1f} of {length:.1f} seconds", row_id)
    return np.stack([frames[min(i, seen - 1)] for i in frame_indices(announced, num_frames).tolist()])


def _check_length(path: Path, end: float, seen: int, length: float | None, row_id: str | None) -> None:
    """Refuses a clip that ends (after `seen` frames) well before its container says."""
    if length is not None and end < length * (1 - _SHORT_TOLERANCE) - 2 * end / seen:
        text = f"damaged or cut short: it ends after {end:.1f} of {length:.1f} seconds"
        raise MediaError(path, text, row_id)


def _decode(container: Any, stream: Any, wanted: set[int]) -> tuple[dict[int, np.ndarray], int, float | None]:
    """The wanted frames (and always the last), how many there were, and the time at which the last one
    ends.
    """
    frames: dict[int, np.ndarray] = {}
    last, seen = None, 0
    for frame in container.decode(stream):
        if seen in wanted:
            frames[seen] = frame.to_ndarray(format="rgb24")
        last, seen = frame, seen + 1
    if last is None:
        return frames, 0, None
    frames.setdefault(seen - 1, last.to_ndarray(format="rgb24"))
    rate = stream.average_rate or stream.guessed_rate
    end = last.time + (float(1 / rate) if rate else 0.0) if last.time is not None else None
    return frames, seen, end


def _length(stream: Any) -> float | None:
    """Seconds of the video stream as its container says: the stream's duration, or the mkv DURATION tag."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base) + float((stream.start_time or 0) * stream.time_base)
    tag = stream.metadata.get("DURATION", "")
    parts = tag.split(":")
    if len(parts) != 3:
        return None
    try:
        hours, minutes, seconds = (float(part) for part in parts)
    except ValueError:
        return None
    return 3600 * hours + 60 * minutes + seconds


def _load_decord(path: Path, num_frames: int, row_id: str | None) -> np.ndarray:
    if importlib.util.find_spec("decord") is None:
        raise ModuleNotFoundError(
            "data.video_backend=decord: decord is not installed (it has wheels for x86-64 only); "
            "install it or use data.video_backend=pyav"
        )
    import decord

    try:
        with av.open(str(path)) as container:  # decord knows the frames that are left, not how many there should be
            length = _length(_video_stream(container, path, row_id))
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        total = len(reader)
        if total == 0:
            raise MediaError(path, "holds no frame", row_id)
        step = 1 / (reader.get_avg_fps() or 1e9)
        last = float(reader.get_frame_timestamp(total - 1)[0])
        end = (last if last < _NO_TIMESTAMP else step * (total - 1)) + step
        frames = reader.get_batch(frame_indices(total, num_frames).tolist()).asnumpy()
    except (av.FFmpegError, decord.DECORDError, RuntimeError, IndexError) as error:
        if isinstance(error, MediaError):
            raise
        text = str(error).strip().splitlines()[0]
        raise MediaError(path, f"not a readable video ({text})", row_id) from error
    _check_length(path, end, total, length, row_id)
    return frames


_READERS: dict[str, Callable[[Path, int, str | None], np.ndarray]] = {
    "pyav": _load_pyav,
    "decord": _load_decord,
}
