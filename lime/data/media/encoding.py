"""Writing the media of the embedded benchmark: JPEG images and H.264 clips, the same bytes every time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

JPEG = {"quality": 92, "subsampling": 0}
# Without look-ahead and macroblock tree: with them x264 encodes the same small clip differently from run to run.
H264 = {"preset": "veryfast", "crf": "20", "x264-params": "mbtree=0:rc-lookahead=0:sync-lookahead=0"}


def write_image(path: Path, pixels: np.ndarray) -> None:
    """(H, W, 3) uint8 as JPEG, without chroma subsampling."""
    Image.fromarray(pixels).save(path, "JPEG", **JPEG)


def write_video(path: Path, frames: np.ndarray, fps: int) -> None:
    """(T, H, W, 3) uint8, H and W even, as H.264 in an mp4 file of `fps` frames per second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options=H264)
        stream.height, stream.width = frames.shape[1], frames.shape[2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        stream.codec_context.thread_count = 1
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
