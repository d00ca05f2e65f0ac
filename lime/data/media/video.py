"""Reading clips with PyAV: evenly spaced frames, turned as every player shows them.

FFmpeg is given files only, and only containers that hold their own frames: playlists, addresses and lists of other
files are refused. What a container announces is a promise; what counts is what the decoder gives.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np

from lime.data.files import MediaError, Medium
from lime.data.media.signatures import describe_file
from lime.data.media.truncation import is_cut

CONTAINERS = (
    "mov,matroska,avi,asf,flv,mpegts,mpeg,mpegvideo,mp4,webm,ogg,gif,apng,webp,ivf,obu,nut,mxf,gxf,rm,wtv,dv,h261,h263,"
    "h264,hevc,vvc,m4v,mjpeg,vc1,vc1test,dirac,cavsvideo,avs2,avs3,yuv4mpegpipe,smk,bink,roq,flic,nuv,nsv,amv,dhav,ea,"
    "swf,4xm,mtv,lmlm4,ismv,avif,av1"
)
_PICTURES = ("mjpeg", "png", "bmp", "gif", "tiff", "webp")  # codecs of covers; of whole clips, where alone
_FILES_ONLY = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
_FEW = 64  # frames that one thread decodes as fast as several
_FASTEST = 240.0  # frames a second; more are counted as if they were so many
_STRAIGHT = 0.05  # of a turn's main entries: what the cross entries may be


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


def frame_indices(total: int, count: int, rule: str = "rounded") -> np.ndarray:
    """`count` indices spread evenly from the first to the last of `total` frames; a shorter clip repeats frames.

    `rule`: `rounded` to the nearest frame, or `truncated` to the one before.
    """
    if total < 1:
        raise ValueError(f"cannot sample from {total} frames")
    places = np.linspace(0, total - 1, count)
    return (places.round() if rule == "rounded" else places).astype(int)


def clip_seconds(medium: Medium) -> float:
    """How long a clip lasts, by the times of its packets; nothing is decoded. Raises MediaError."""
    with opened(medium) as container:
        stream = video_stream(container, medium)
        times = [packet.pts for packet in container.demux(stream) if packet.size]
        known = [time for time in times if time is not None]
        if len(known) < 2 or stream.time_base is None:
            return len(times) / _rate(stream)
        span = float((max(known) - min(known)) * stream.time_base)
        return span * len(known) / (len(known) - 1)  # the last frame is shown as long as others are


def read_clip(medium: Medium, num_frames: int, rule: str = "rounded") -> Clip:
    """`num_frames` frames spread evenly over a clip, all of the first one's size. Raises MediaError."""
    with opened(medium) as container:
        stream = video_stream(container, medium)
        # what the container says it has, or its packets where it says nothing (Matroska, raw streams)
        count = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
    while True:  # again where the container was wrong about its number of frames
        wanted = set(frame_indices(max(count, 1), num_frames, rule).tolist())
        decoded = _decode(medium, wanted, count)
        if decoded.seen == 0:
            raise medium.error("holds no frame")
        if decoded.seen == count:
            break
        count = decoded.seen
    chosen = np.stack([decoded.frames[i] for i in frame_indices(count, num_frames, rule).tolist()])
    return Clip(turned(chosen, decoded.matrix), decoded.seen, set(decoded.sizes))


def frame_size(medium: Medium) -> tuple[int, int]:
    """(height, width) of the frames that `read_clip` gives, from the first of them."""
    with opened(medium) as container:
        frame = first_frame(container, video_stream(container, medium), medium)
        matrix = matrix_of(frame)
        lying = bool(matrix) and _straight(matrix) and abs(matrix[1]) > abs(matrix[0])
        return (frame.width, frame.height) if lying else (frame.height, frame.width)


def first_frame(container: Any, stream: Any, medium: Medium) -> Any:
    """The first frame that a freshly opened clip shows. Raises MediaError."""
    _prepare(stream, medium, 1)
    for frame in _frames(container, stream):
        medium.check_pixels(frame.width, frame.height)
        return frame
    raise medium.error("holds no frame")


@contextmanager
def opened(medium: Medium) -> Iterator[Any]:
    """FFmpeg's view of a file; all that it says of a bad one becomes a MediaError."""
    name = f"file:{os.path.abspath(medium.path)}"  # noqa: PTH100  # resolves no link
    try:
        with av.open(name, metadata_errors="replace", container_options=_FILES_ONLY) as container:
            yield container
    except MediaError:
        raise
    except PermissionError as error:
        raise medium.error("no permission to read it", "unreadable") from error
    except Exception as error:  # PyAV raises FFmpeg's errors, and others for what it cannot convert
        content = describe_file(medium.path)
        if content is not None and not content.endswith("video") and content != "a GIF picture":
            problem = "a picture, not a video" if content.endswith("picture") else "not a readable video"
            raise medium.error(f"{problem} (it holds {content})", "wrong_type") from error
        text = error.strerror if isinstance(error, av.FFmpegError) else error
        raise medium.error(f"not a readable video ({text or type(error).__name__})") from error


def video_stream(container: Any, medium: Medium) -> Any:
    """The film in a container: FFmpeg's choice, but for cover pictures, and for pictures beside a film that are not
    marked as such. Raises MediaError where there is none."""
    cover = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    films = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not films:
        what = "no video stream but a cover picture" if container.streams.video else "no video stream"
        raise medium.error(f"holds {what}", "wrong_type")
    moving = [stream for stream in films if stream.codec_context and stream.codec_context.name not in _PICTURES]
    films = moving or films
    best = container.streams.best("video")
    stream = best if best in films else films[0]
    if stream.codec_context is None:
        raise medium.error("no decoder for it is known here (save it as H.264)")
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
    main, cross = (min(a, d), max(b, c)) if a > b else (min(b, c), max(a, d))
    return main > 0 and cross <= _STRAIGHT * main


def matrix_of(frame: Any) -> tuple[int, ...]:
    """(a, b, c, d) of a frame's display matrix, () where it has none."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
            return a, b, c, d
    return ()


def _rate(stream: Any) -> float:
    """Frames a second, as the container says."""
    return min(float(stream.average_rate or stream.guessed_rate or 25), _FASTEST)


def _decode(medium: Medium, wanted: set[int], announced: int) -> _Pass:
    decoded = _Pass()
    with opened(medium) as container:
        stream = video_stream(container, medium)
        _prepare(stream, medium, announced)
        start = None
        for frame in _frames(container, stream, medium):
            if (size := (frame.height, frame.width)) not in decoded.sizes:
                medium.check_pixels(frame.width, frame.height)
                decoded.sizes[size] = None
            if decoded.seen == 0:
                decoded.matrix, start = matrix_of(frame), frame.time
            if decoded.seen in wanted:
                decoded.frames[decoded.seen] = _pixels(frame, next(iter(decoded.sizes)))
            decoded.seen += 1
            span = frame.time - start if frame.time is not None and start is not None else float("inf")
            medium.check_seconds(max(min(span, decoded.seen / _rate(stream)), decoded.seen / _FASTEST))
    return decoded


def _prepare(stream: Any, medium: Medium, announced: int) -> None:
    """Sets the decoder's bounds; MediaError where the stream's header already exceeds them."""
    context = stream.codec_context
    medium.check_pixels(context.width or 0, context.height or 0)
    context.options = {"max_pixels": str(medium.bounds.pixels)}  # for frames that are larger than the header says
    context.thread_count = 1 if announced <= _FEW else 0
    if stream.duration is not None:  # both may be wrong, but not both too high for a clip that is decoded soon
        medium.check_seconds(min(float(stream.duration * stream.time_base), announced / _rate(stream)))


def _pixels(frame: Any, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8, RGB, scaled where its size is another than the clip's.

    By one thread: FFmpeg would start several for every frame, which costs more than the conversion of a small one.
    """
    height, width = size
    return frame.to_ndarray(format="rgb24", width=width, height=height, threads=1)


def check_end(container: Any, stream: Any, medium: Medium, last: Any, seen: int) -> None:
    """Raises MediaError where the file ends in the middle of what it holds. `last` is the last packet of the film."""
    size = medium.path.stat().st_size
    behind = any(entry.pos + entry.size > size for entry in stream.index_entries)
    if behind or (last is not None and last.is_corrupt) or is_cut(medium.path, container.format.name):
        raise medium.error(f"damaged or cut short: the file ends after {seen} frames, in the middle of what it holds")


def _frames(container: Any, stream: Any, whole: Medium | None = None) -> Iterator[Any]:
    """Every frame; where `whole` is given, its end is checked once all are read.

    Errors of the decoder are raised, but for those before the first key frame: of a clip cut out of a longer one.
    """
    seen, last, keyed = 0, None, False

    def check() -> None:
        if whole is not None:
            check_end(container, stream, whole, last, seen)

    for packet in container.demux(stream):
        if not packet.size:  # a null frame (the picture before stays), or the demuxer's end
            continue
        last, keyed = packet, keyed or packet.is_keyframe
        try:
            decoded = packet.decode()
        except av.FFmpegError:
            if not keyed:
                continue
            check()
            raise
        for frame in decoded:
            seen += 1
            yield frame
    for frame in stream.decode(None):
        seen += 1
        yield frame
    check()
