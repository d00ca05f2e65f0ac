"""Reading clips with PyAV: evenly spaced frames, turned as every player shows them.

FFmpeg is given files only, and only containers that hold their own frames: playlists, addresses and lists of other
files are refused. What a container announces is a promise; what counts is what the decoder gives.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np

from lime.data.files import Bounds, MediaError
from lime.data.signatures import describe_file
from lime.data.truncation import is_cut

CONTAINERS = (
    "mov,matroska,avi,asf,flv,mpegts,mpeg,mpegvideo,mp4,webm,ogg,gif,apng,webp,ivf,obu,nut,mxf,gxf,rm,wtv,dv,h261,h263,"
    "h264,hevc,vvc,m4v,mjpeg,vc1,vc1test,dirac,cavsvideo,avs2,avs3,yuv4mpegpipe,smk,bink,roq,flic,nuv,nsv,amv,dhav,ea,"
    "swf,4xm,mtv,lmlm4,ismv,avif,av1"
)
_PICTURES = ("mjpeg", "png", "bmp", "gif", "tiff", "webp")  # codecs of covers; of whole clips, where alone
_FILES_ONLY = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
_FEW = 64  # frames that one thread decodes as fast as several
_FASTEST = 240.0  # frames a second; more are counted as if they were so many
_STRAIGHT = 0.05  # of a turn's main entries: what the others may be


@dataclass
class Clip:
    """A decoded clip: `frames` (N, H, W, 3) uint8 as asked for, how many it has, and the sizes (h, w) they came in."""

    frames: np.ndarray
    seen: int
    sizes: set[tuple[int, int]]


@dataclass
class _Pass:
    """One decoding from the first frame to the last: the wanted frames by number."""

    frames: dict[int, np.ndarray] = field(default_factory=dict)
    seen: int = 0
    sizes: dict[tuple[int, int], None] = field(default_factory=dict)
    matrix: tuple[int, ...] = ()


def frame_indices(total: int, count: int) -> np.ndarray:
    """`count` indices spread evenly from the first to the last of `total` frames; a shorter clip repeats
    frames.
    """
    if total < 1:
        raise ValueError(f"cannot sample from {total} frames")
    return np.linspace(0, total - 1, count).round().astype(int)


def read_clip(path: Path, num_frames: int, row_id: str | None, bounds: Bounds) -> Clip:
    """`num_frames` frames spread evenly over a clip, all of the first one's size. Raises MediaError."""
    with opened(path, row_id) as container:
        guess = _announced(container, video_stream(container, path, row_id))
    while True:  # again where the container was wrong about its number of frames
        wanted = set(frame_indices(max(guess, 1), num_frames).tolist())
        found = _decode(path, wanted, guess, row_id, bounds)
        if found.seen == 0:
            raise MediaError(path, "holds no frame", row_id)
        if found.seen == guess:
            break
        guess = found.seen
    chosen = np.stack([found.frames[i] for i in frame_indices(guess, num_frames).tolist()])
    return Clip(turned(chosen, found.matrix), found.seen, set(found.sizes))


def frame_size(path: Path, row_id: str | None, bounds: Bounds) -> tuple[int, int]:
    """(height, width) of the frames that `read_clip` gives, from the first of them."""
    with opened(path, row_id) as container:
        frame = first_frame(container, video_stream(container, path, row_id), path, row_id, bounds)
        matrix = matrix_of(frame)
        lying = bool(matrix) and _straight(matrix) and abs(matrix[1]) > abs(matrix[0])
        return (frame.width, frame.height) if lying else (frame.height, frame.width)


def first_frame(container: Any, stream: Any, path: Path, row_id: str | None, bounds: Bounds) -> Any:
    """The first frame that a freshly opened clip shows. Raises MediaError."""
    prepared(stream, path, 1, row_id, bounds)
    for frame in _frames(container, stream):
        bounds.check_pixels(path, frame.width, frame.height, row_id)
        return frame
    raise MediaError(path, "holds no frame", row_id)


@contextmanager
def opened(path: Path, row_id: str | None) -> Iterator[Any]:
    """FFmpeg's view of a file; all that it says of a bad one becomes a MediaError."""
    try:
        with av.open(
            f"file:{os.path.abspath(path)}",  # noqa: PTH100  # resolves no link
            metadata_errors="replace",
            container_options=_FILES_ONLY,
        ) as container:
            yield container
    except MediaError:
        raise
    except PermissionError as error:
        raise MediaError(path, "no permission to read it", row_id, "unreadable") from error
    except Exception as error:  # PyAV raises FFmpeg's errors, and others for what it cannot convert
        found = describe_file(path)
        if found is not None and not found.endswith("video") and found != "a GIF picture":
            said = "a picture, not a video" if found.endswith("picture") else "not a readable video"
            raise MediaError(path, f"{said} (it holds {found})", row_id, "wrong_type") from error
        text = error.strerror if isinstance(error, av.FFmpegError) else error
        raise MediaError(path, f"not a readable video ({text or type(error).__name__})", row_id) from error


def video_stream(container: Any, path: Path, row_id: str | None) -> Any:
    """The film in a container: FFmpeg's choice, but for cover pictures, and for pictures beside a film that are not
    marked as such. Raises MediaError where there is none."""
    cover = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    films = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not films:
        what = "no video stream but a cover picture" if container.streams.video else "no video stream"
        raise MediaError(path, f"holds {what}", row_id, "wrong_type")
    moving = [stream for stream in films if stream.codec_context and stream.codec_context.name not in _PICTURES]
    films = moving or films
    best = container.streams.best("video")
    stream = best if best in films else films[0]
    if stream.codec_context is None:
        raise MediaError(path, "no decoder for it is known here (save it as H.264)", row_id)
    return stream


def turned(frames_NHWC: np.ndarray, matrix: tuple[int, ...]) -> np.ndarray:
    """Frames as a display matrix (a, b, c, d) shows them: x' = a x + c y, y' = b x + d y, x to the right, y down.

    Only quarter turns and mirrors are applied; without a matrix, or with a slanted one, frames stay as they are.
    """
    if not matrix or not _straight(matrix):
        return frames_NHWC
    a, b, c, d = matrix
    lying = abs(b) > abs(a)
    if lying:
        frames_NHWC = frames_NHWC.swapaxes(1, 2)
    if (c if lying else a) < 0:
        frames_NHWC = frames_NHWC[:, :, ::-1]
    if (b if lying else d) < 0:
        frames_NHWC = frames_NHWC[:, ::-1]
    return np.ascontiguousarray(frames_NHWC)


def _straight(matrix: tuple[int, ...]) -> bool:
    a, b, c, d = (abs(value) for value in matrix)
    main, other = (min(a, d), max(b, c)) if a > b else (min(b, c), max(a, d))
    return main > 0 and other <= _STRAIGHT * main


def matrix_of(frame: Any) -> tuple[int, ...]:
    """(a, b, c, d) of a frame's display matrix, () where it has none."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
            return a, b, c, d
    return ()


def _announced(container: Any, stream: Any) -> int:
    """Frames that the container says it has, or its packets where it says nothing (Matroska, raw streams)."""
    return stream.frames or sum(1 for packet in container.demux(stream) if packet.size)


def _decode(path: Path, wanted: set[int], announced: int, row_id: str | None, bounds: Bounds) -> _Pass:
    found = _Pass()
    with opened(path, row_id) as container:
        stream = prepared(video_stream(container, path, row_id), path, announced, row_id, bounds)
        rate = min(float(stream.average_rate or stream.guessed_rate or 25), _FASTEST)

        def at_end(last: Any, seen: int) -> None:
            check_end(container, stream, path, last, seen, row_id)

        start = None
        for frame in _frames(container, stream, at_end):
            if (size := (frame.height, frame.width)) not in found.sizes:
                bounds.check_pixels(path, frame.width, frame.height, row_id)
                found.sizes[size] = None
            if found.seen == 0:
                found.matrix, start = matrix_of(frame), frame.time
            if found.seen in wanted:
                found.frames[found.seen] = _pixels(frame, next(iter(found.sizes)))
            found.seen += 1
            span = frame.time - start if frame.time is not None and start is not None else float("inf")
            bounds.check_seconds(path, max(min(span, found.seen / rate), found.seen / _FASTEST), row_id)
    return found


def prepared(stream: Any, path: Path, announced: int, row_id: str | None, bounds: Bounds) -> Any:
    """The stream, ready to be decoded within bounds; MediaError where its header already exceeds them."""
    context = stream.codec_context
    bounds.check_pixels(path, context.width or 0, context.height or 0, row_id)
    context.options = {"max_pixels": str(bounds.pixels)}  # for frames that are larger than the header says
    context.thread_count = 1 if announced <= _FEW else 0
    rate = min(float(stream.average_rate or stream.guessed_rate or 25), _FASTEST)
    if stream.duration is not None:  # both may be wrong, but not both too high for a clip that is decoded soon
        bounds.check_seconds(path, min(float(stream.duration * stream.time_base), announced / rate), row_id)
    return stream


def _pixels(frame: Any, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8, RGB, scaled where its size is another than the clip's.

    By one thread: FFmpeg would start several for every frame, which costs more than the conversion of a small one.
    """
    height, width = size
    return frame.to_ndarray(format="rgb24", width=width, height=height, threads=1)


def check_end(container: Any, stream: Any, path: Path, last: Any, seen: int, row_id: str | None) -> None:
    """Raises MediaError where the file ends in the middle of what it holds. `last` is the last packet of the film."""
    size = path.stat().st_size
    behind = any(entry.pos + entry.size > size for entry in stream.index_entries)
    if behind or (last is not None and last.is_corrupt) or is_cut(path, container.format.name):
        text = f"damaged or cut short: the file ends after {seen} frames, in the middle of what it holds"
        raise MediaError(path, text, row_id)


def _frames(container: Any, stream: Any, at_end: Callable[[Any, int], None] | None = None) -> Iterator[Any]:
    """Every frame; `at_end` is given the last packet and the number of frames.

    Errors of the decoder are raised, but for those before the first key frame: of a clip cut out of a longer one.
    """
    seen, last, keyed = 0, None, False
    for packet in container.demux(stream):
        if not packet.size:  # a null frame (the picture before stays), or the demuxer's end
            continue
        last, keyed = packet, keyed or packet.is_keyframe
        try:
            decoded = packet.decode()
        except av.FFmpegError:
            if not keyed:
                continue
            if at_end is not None:
                at_end(last, seen)
            raise
        for frame in decoded:
            seen += 1
            yield frame
    for frame in stream.decode(None):
        seen += 1
        yield frame
    if at_end is not None:
        at_end(last, seen)
