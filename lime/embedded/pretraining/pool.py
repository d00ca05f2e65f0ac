"""Rendered pictures and clips for the pretraining, made once and kept as arrays in the work folder."""

from __future__ import annotations

import logging
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lime.embedded.benchmark import scenes_image, scenes_video
from lime.embedded.pretraining.architecture import FRAMES, IMAGE_SIZE, QWEN_FRAME_SIZE
from lime.embedded.pretraining.visual_corpus import IMAGE_WEIGHTS
from lime.system import interrupts
from lime.system.atomic import write_json

logger = logging.getLogger(__name__)
CHUNK = 1000


def shrink(frames: np.ndarray, side: int) -> np.ndarray:
    """Bicubic resize of (T, H, W, 3) uint8 to (T, side, side, 3), as the processors do it."""
    return np.stack([np.asarray(Image.fromarray(f).resize((side, side), Image.Resampling.BICUBIC)) for f in frames])


def sample(frames: np.ndarray, count: int = FRAMES) -> np.ndarray:
    """`count` uniformly spaced frames, first and last included."""
    return frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]


def _images(seed: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    rng = np.random.default_rng([seed, 1])
    names = list(IMAGE_WEIGHTS)
    weights = np.array(list(IMAGE_WEIGHTS.values()))
    pixels, items = np.empty((CHUNK, 64, 64, 3), np.uint8), []
    for i in range(CHUNK):
        if rng.random() < 0.08:  # a frame of a clip, upright or turned, for the vision stage alone
            video = names_of_videos[int(rng.integers(len(names_of_videos)))]
            clip, _ = scenes_video.VIDEOS[video](rng, frames=2)
            upright = bool(rng.random() < 0.5)
            frame = clip[int(rng.integers(2))]
            pixels[i] = frame if upright else frame[::-1, ::-1]
            items.append({"name": "frame", "video": video, "upright": upright})
            continue
        name = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        pixels[i], attributes = scenes_image.IMAGES[name](rng)
        items.append({"name": name, **_plain(attributes)})
    return pixels, items


names_of_videos = list(scenes_video.VIDEOS)


def _plain(attributes: dict[str, Any]) -> dict[str, Any]:
    # "name" is the renderer's; an icon's own name is kept apart
    renamed = {("icon" if k == "name" else k): v for k, v in attributes.items()}
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in renamed.items()}


def _videos(seed: int) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    rng = np.random.default_rng([seed, 2])
    small = np.empty((CHUNK // 4, FRAMES, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    large = np.empty((CHUNK // 4, FRAMES, QWEN_FRAME_SIZE, QWEN_FRAME_SIZE, 3), np.uint8)
    items: list[dict[str, Any]] = []
    previous = scenes_video.moving(rng)[0]
    for i in range(CHUNK // 4):
        name = names_of_videos[int(rng.integers(len(names_of_videos)))]
        clip, attributes = scenes_video.VIDEOS[name](rng)
        kind = scenes_video.TAMPERINGS[int(rng.integers(len(scenes_video.TAMPERINGS)))]
        frames = sample(scenes_video.tamper(clip, previous, kind, rng))
        small[i], large[i] = shrink(frames, IMAGE_SIZE), shrink(frames, QWEN_FRAME_SIZE)
        items.append({"name": name, "kind": kind, **_plain(attributes)})
        previous = clip
    return small, large, items


def build_pool(folder: Path, *, images: int, videos: int, seed: int, workers: int = 1) -> None:
    """Render `images` pictures and `videos` clips into `folder`, unless they are there."""
    if (folder / "items.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    items: dict[str, list[dict[str, Any]]] = {"images": [], "videos": []}
    with ProcessPoolExecutor(workers, initializer=interrupts.worker_process) as executor:
        count = images // CHUNK
        native = np.lib.format.open_memmap(folder / "images_64.npy", "w+", np.uint8, (count * CHUNK, 64, 64, 3))
        small = np.lib.format.open_memmap(
            folder / f"images_{IMAGE_SIZE}.npy", "w+", np.uint8, (count * CHUNK, IMAGE_SIZE, IMAGE_SIZE, 3)
        )
        for n, (pixels, chunk) in enumerate(executor.map(_images, [seed * 100_000 + i for i in range(count)])):
            native[n * CHUNK : (n + 1) * CHUNK] = pixels
            small[n * CHUNK : (n + 1) * CHUNK] = shrink(pixels, IMAGE_SIZE)
            items["images"] += chunk
        part = CHUNK // 4
        count = videos // part
        files = [
            np.lib.format.open_memmap(
                folder / f"videos_{side}.npy", "w+", np.uint8, (count * part, FRAMES, side, side, 3)
            )
            for side in (IMAGE_SIZE, QWEN_FRAME_SIZE)
        ]
        for n, (first, second, chunk) in enumerate(executor.map(_videos, [seed * 100_000 + i for i in range(count)])):
            files[0][n * part : (n + 1) * part] = first
            files[1][n * part : (n + 1) * part] = second
            items["videos"] += chunk
    write_json(folder / "items.json", items, indent=None)
    logger.info("pool: %d images, %d clips in %s", len(items["images"]), len(items["videos"]), folder)
