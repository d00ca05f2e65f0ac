"""Pictures and frames of test rows as data URIs, small enough for a report."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from lime.data.media import BOUNDS, Bounds, MediaError, load_image, load_video, media_file

LONGEST = 288  # pixels
FRAMES = 4
QUALITY = 82


def data_uri(image: Image.Image) -> str:
    """A JPEG of at most `LONGEST` pixels a side as `data:image/jpeg;base64,…`."""
    small = image.convert("RGB")
    small.thumbnail((LONGEST, LONGEST))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def pictures(
    root: Path, media_path: str, modality: str, backend: str = "pyav", bounds: Bounds = BOUNDS
) -> tuple[list[str], str]:
    """(data URIs, note) of a row's picture or of `FRAMES` frames of its clip; the note says why there are none.

    Only files inside `root` are shown.
    """
    try:
        path = media_file(root, media_path)
        if modality == "image":
            return [data_uri(load_image(path, bounds=bounds))], ""
        return [data_uri(Image.fromarray(frame)) for frame in load_video(path, FRAMES, backend, bounds=bounds)], ""
    except MediaError as error:
        return [], str(error)
