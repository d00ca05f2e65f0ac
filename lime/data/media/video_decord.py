"""Reading clips with decord, where it gives the frames that FFmpeg gives.

decord seeks, which is right only where no frame needs one from before its key frame, in containers with an index. Any
other clip is read in order and compared with PyAV's frames; one in which they differ is refused by name.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from lime.data.files import Medium
from lime.data.media.video import check_end, first_frame, frame_indices, matrix_of, opened, read_clip, video_stream

_INDEXED = ("mov", "matroska")
_SURE_CODECS = ("h264", "hevc", "vp9")
_NEAR = 4.0  # mean difference of a frame's values (0 to 255) that two conversions of colors may have


def read_frames(medium: Medium, num_frames: int, rule: str = "rounded") -> np.ndarray:
    """(num_frames, H, W, 3) uint8 as PyAV reads them. Raises MediaError, also where decord reads otherwise."""
    if importlib.util.find_spec("decord") is None:
        raise ModuleNotFoundError(
            "data.video_backend=decord: decord is not installed (it has wheels for x86-64 only); "
            "install it or use data.video_backend=pyav"
        )
    total = _frames_to_seek(medium)
    if total:
        try:
            reader = _reader(medium.path)
            if len(reader) == total:
                return reader.get_batch(frame_indices(total, num_frames, rule).tolist()).asnumpy()
        except Exception:  # noqa: BLE001  # a trace of C++: what is wrong is found out below
            pass
    expected = read_clip(medium, num_frames, rule)
    try:
        frames = _in_order(_reader(medium.path), frame_indices(expected.seen, num_frames, rule).tolist())
    except Exception as error:  # DECORDError and RuntimeError with a trace of C++, which says nothing to the user
        raise medium.error("decord cannot read it; use data.video_backend=pyav") from error
    if frames.shape != expected.frames.shape or _difference(frames, expected.frames) > _NEAR:
        raise medium.error("decord gives other frames than FFmpeg; use data.video_backend=pyav")
    return frames


def _frames_to_seek(medium: Medium) -> int:
    """How many frames a clip has in which decord may seek; 0 for any other clip."""
    with opened(medium) as container:
        stream = video_stream(container, medium)
        known = container.format.name.split(",")[0] in _INDEXED and stream.codec_context.name in _SURE_CODECS
        if not known or len(container.streams.video) > 1:
            return 0
        if matrix_of(first_frame(container, stream, medium)):
            return 0
    with opened(medium) as container:
        stream = video_stream(container, medium)
        key, count, last = None, 0, None
        for packet in container.demux(stream):
            if not packet.size:
                continue
            if packet.pts is None or packet.is_discard:
                return 0
            key = packet.pts if packet.is_keyframe else key
            if key is None or packet.pts < key:  # shown before the key frame that it follows
                return 0
            count, last = count + 1, packet
            medium.check_seconds(float((packet.pts - (stream.start_time or 0)) * stream.time_base))
        check_end(container, stream, medium, last, count)
    return count


def _reader(path: Path) -> Any:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    return decord.VideoReader(str(path.absolute()), ctx=decord.cpu(0), num_threads=1)


def _in_order(reader: Any, indices: list[int]) -> np.ndarray:
    """These frames, by reading every one up to the last."""
    wanted, frames = set(indices), {}
    for number in range(max(indices) + 1):
        frame = reader.next()
        if number in wanted:
            frames[number] = _packed(frame.asnumpy())
    return np.stack([frames[number] for number in indices])


def _packed(frame_HWC: np.ndarray) -> np.ndarray:
    """A frame whose lines decord padded to a fourth channel, without the padding."""
    height, width, channels = frame_HWC.shape
    if channels == 3:
        return frame_HWC
    return frame_HWC.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)


def _difference(a_NHWC: np.ndarray, b_NHWC: np.ndarray) -> float:
    """The largest mean difference of a frame's values."""
    return max(float(np.abs(a.astype(np.int16) - b).mean()) for a, b in zip(a_NHWC, b_NHWC, strict=True))
