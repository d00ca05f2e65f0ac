"""Clips of many kinds, encoded on the spot: {name: how to write it}. Every one is whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.data import tiny

Pixels = np.ndarray
MILLISECOND = Fraction(1, 1000)


def encode(
    path: Path,
    video: Pixels,
    codec: str = "libx264",
    *,
    container: str | None = None,
    pix_fmt: str = "yuv420p",
    fps: int = 8,
    times: Sequence[int] | None = None,
    last: int | None = None,
    shift: int = 0,
    turn: float | None = None,
    cover: bool = False,
    b_frames: int | None = 0,
    codec_options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """`video` (T, H, W, 3) as a file.

    `times`: milliseconds of each frame; `last`: those that the last one stays; `shift`: frames by which time stamps are
    moved; `turn`: degrees by which the container says to turn it; `cover`: a picture is listed before the film.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=container, options=muxer or {}) as out:
        out.metadata.update(metadata or {})
        picture = out.add_stream("mjpeg", rate=1) if cover else None
        if picture is not None:
            picture.width = picture.height = 128
            picture.pix_fmt = "yuvj420p"
        stream: Any = out.add_stream(codec, rate=fps, options=codec_options or {})
        stream.width, stream.height, stream.pix_fmt = video.shape[2], video.shape[1], pix_fmt
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        if times is not None:
            stream.codec_context.time_base = MILLISECOND
        if turn is not None:
            stream.set_display_rotation(turn)
        packets = []
        for number, pixels in enumerate(video):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], MILLISECOND
            packets += stream.encode(frame)
        packets += stream.encode()
        if picture is not None:
            out.mux(picture.encode(av.VideoFrame.from_ndarray(np.full((128, 128, 3), 255, np.uint8), format="rgb24")))
            out.mux(picture.encode())
        for packet in packets:
            step = int(1 / (fps * packet.time_base)) if times is None else 1
            packet.pts += shift * step
            packet.dts += shift * step
            if last is not None and packet is packets[-1]:
                packet.duration = last
            out.mux(packet)
    return path


def _square(frames: int = 24) -> Pixels:
    return tiny.moving_square(frames, 64)


def _sizes(path: Path) -> Path:
    """Half its frames in one size, half in another."""
    parts = [encode(path.with_name(f"{n}{path.suffix}"), video) for n, video in enumerate(
        (_square(12), tiny.moving_square(12, 96)[:, :, :80])
    )]  # fmt: skip
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()
    return path


_WITH_GAPS = [125 * n for n in (0, 1, 2, 6, 7, 8, 9, 13, 14, 15, 20, 21)]  # AVI fills them with null frames
Writer = Callable[[Path], Path]
WHOLE: dict[str, Writer] = {
    "plain.mp4": lambda p: encode(p, _square(), b_frames=None),
    "plain.mkv": lambda p: encode(p, _square(), b_frames=None),
    "plain.mov": lambda p: encode(p, _square()),
    "hevc.mp4": lambda p: encode(p, _square(), "libx265", b_frames=None, codec_options={"x265-params": "log-level=0"}),
    "vp8.webm": lambda p: encode(p, _square(), "libvpx"),
    "vp9.webm": lambda p: encode(p, _square(), "libvpx-vp9"),
    "open_gop.mp4": lambda p: encode(
        p, _square(), b_frames=None, codec_options={"x264-params": "open-gop=1:keyint=6:bframes=3:b-adapt=0"}
    ),
    "fragments.mp4": lambda p: encode(p, _square(), muxer={"movflags": "frag_keyframe+empty_moov"}),
    "live.mkv": lambda p: encode(p, _square(), muxer={"live": "1"}),
    "b_frames.avi": lambda p: encode(p, _square(), "mpeg4", b_frames=2),
    "b_frames.mp4": lambda p: encode(p, _square(), "mpeg4", b_frames=2),
    "windows.wmv": lambda p: encode(p, _square(), "wmv2"),
    "flash.flv": lambda p: encode(p, _square(), "flv"),
    "programme.mpg": lambda p: encode(p, _square(), "mpeg2video", fps=25, b_frames=2),
    "transport.ts": lambda p: encode(p, _square(), "mpeg2video", fps=25, b_frames=2),
    "transport_h264.ts": lambda p: encode(p, _square()),
    "motion.avi": lambda p: encode(p, _square(), "mjpeg", pix_fmt="yuvj420p"),
    "lossless.mkv": lambda p: encode(p, _square(), "ffv1"),
    "raw.h264": lambda p: encode(p, _square(), container="h264"),
    "raw.hevc": lambda p: encode(
        p, _square(), "libx265", container="hevc", codec_options={"x265-params": "log-level=0"}
    ),
    "raw.m1v": lambda p: encode(p, _square(), "mpeg1video", fps=25, container="mpeg1video"),
    "clip.gif": lambda p: encode(p, _square(), "gif", pix_fmt="rgb8"),
    "clip.apng": lambda p: encode(p, _square(), "apng", pix_fmt="rgb24", container="apng"),
    "slides.mp4": lambda p: encode(p, _square(5), times=[0, 1000, 2000, 3000, 4000], last=20000),
    "slides.mkv": lambda p: encode(p, _square(5), times=[0, 1000, 2000, 3000, 4000], last=20000),
    "fast_then_slow.mp4": lambda p: encode(p, _square(24), times=[30 * n for n in range(24)], last=9000),
    "cut5.mp4": lambda p: encode(p, _square(), shift=-5),
    "cut15.mp4": lambda p: encode(p, _square(), shift=-15, b_frames=None),
    "late.mp4": lambda p: encode(p, _square(), shift=480, muxer={"avoid_negative_ts": "disabled"}),
    "late.mkv": lambda p: encode(p, _square(), shift=80),
    "skipped.avi": lambda p: encode(p, _square(12), "mpeg4", times=_WITH_GAPS),
    "cover.mkv": lambda p: encode(p, _square(), cover=True),
    "cover.mp4": lambda p: encode(p, _square(), cover=True),
    "turned90.mp4": lambda p: encode(p, _square()[:, :48], turn=-90),
    "turned180.mp4": lambda p: encode(p, _square()[:, :48], turn=180),
    "turned270.mkv": lambda p: encode(p, _square()[:, :48], turn=90),
    "sizes.h264": _sizes,
    "sizes.ts": _sizes,
    "one.mp4": lambda p: encode(p, _square(1)),
}  # fmt: skip
