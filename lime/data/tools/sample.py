"""A small made data root, as `download` leaves one: rows as parquet, pictures and clips in archives.

For trying the commands where the published data set is not at hand, and for measuring how fast `verify` is.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lime.data.media.encoding import write_video
from lime.data.rows import COLUMNS
from lime.system.atomic import replacing_folder

IMAGES, CLIPS, TEXTS = "image_test_caltech101", "video_test_action_sequence", "glue_test_sst2"
COLORS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (40, 70, 200)}
FRAMES, FPS = 16, 8

Cells = dict[str, list[str]]


def write_sample(root: str | Path, *, images: int = 60, clips: int = 6, texts: int = 60, side: int = 96) -> Path:
    """A new folder `root` with `images` pictures of `side` x `side` pixels, `clips` of 16 frames and `texts`.

    One sixth of each kind are test rows (of one task each), the others training rows. The same arguments give the same
    rows. Raises FileExistsError where `root` is there already, ValueError where a count is below 6 or `side` is odd.
    """
    root = Path(root)
    if root.exists():
        raise FileExistsError(f"{root} is there already; name a new folder")
    for name, count in (("images", images), ("clips", clips), ("texts", texts)):
        if count < 6:
            raise ValueError(f"{name}: expected at least 6, got {count}")
    if side < 16 or side % 2:
        raise ValueError(f"side: expected an even number of at least 16, got {side}")
    rng = np.random.default_rng(0)
    names = list(COLORS)
    with replacing_folder(root, None) as temporary:
        rows: dict[str, Cells] = {}
        for folder in ("data", "images", "video"):
            (temporary / folder).mkdir()
        with zipfile.ZipFile(temporary / "images" / "images.zip", "w") as archive:
            for n in range(images):
                color = names[n % 3]
                archive.writestr(f"sample/{n:06d}.jpg", _picture(rng, color, side))
                question = f"Picture {n}: which color is it? Answer with one word."
                _add(rows, n, IMAGES, "image", f"images/sample/{n:06d}.jpg", question, color)
        with zipfile.ZipFile(temporary / "video" / "sample.zip", "w") as archive:
            for n in range(clips):
                clip = temporary / "clip.mp4"
                write_video(clip, _moving(rng, side, leftwards=bool(n % 2)), FPS)
                archive.write(clip, f"{n:06d}.mp4")
                clip.unlink()
                question = f"Clip {n}: where does the square go? (A) right (B) left. Answer with the letter."
                _add(rows, n, CLIPS, "video", f"video/sample/{n:06d}.mp4", question, "AB"[n % 2])
        for n in range(texts):
            word = ("fine", "dull")[n % 2]
            question = f"Sentence {n}: what a {word} film. Is it positive or negative?"
            _add(rows, n, TEXTS, "text", "", question, ("positive", "negative")[n % 2])
        for split, cells in rows.items():
            pq.write_table(pa.table(cells), temporary / "data" / f"{split}-00000-of-00001.parquet")
    return root


def _add(rows: dict[str, Cells], number: int, task: str, *values: str) -> None:
    cells = rows.setdefault(task if number % 6 == 5 else "train", {name: [] for name in COLUMNS})
    for name, value in zip(COLUMNS, values, strict=True):
        cells[name].append(value)


def _picture(rng: np.random.Generator, color: str, side: int) -> bytes:
    """A gradient of a color with some noise, as JPEG."""
    slope = np.linspace(0.6, 1.0, side)[:, None, None]
    pixels = slope * np.array(COLORS[color]) + rng.integers(0, 30, (side, side, 1))
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _moving(rng: np.random.Generator, side: int, leftwards: bool) -> np.ndarray:
    """(16, side, side, 3): a square that crosses a plain ground."""
    frames = np.full((FRAMES, side, side, 3), rng.integers(100, 200), dtype=np.uint8)
    size = side // 4
    places = np.linspace(0, side - size, FRAMES).astype(int)
    for frame, place in zip(frames, places[::-1] if leftwards else places, strict=True):
        frame[size : 2 * size, place : place + size] = 20
    return frames
