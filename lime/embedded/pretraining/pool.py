"""Rendered pictures and clips for the pretraining, made once and kept as arrays in the work folder."""

from __future__ import annotations

import logging
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lime.embedded.benchmark import scenes_image, scenes_video
from lime.embedded.benchmark.chance import pick
from lime.embedded.pretraining.architecture import FRAMES, IMAGE_SIZE, QWEN_FRAME_SIZE
from lime.embedded.pretraining.visual_corpus import IMAGE_WEIGHTS
from lime.system import interrupts
from lime.system.atomic import write_json

logger = logging.getLogger(__name__)
CHUNK = 1000
VIDEO_CHUNK = CHUNK // 4
VIDEO_NAMES = list(scenes_video.VIDEOS)


def attributes_of(rendered: dict[str, Any]) -> dict[str, Any]:
    """A renderer's attributes as plain values. An icon's own name is "icon": "name" is the renderer's."""
    renamed = {("icon" if key == "name" else key): value for key, value in rendered.items()}
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in renamed.items()}


def shrink(frames: np.ndarray, side: int) -> np.ndarray:
    """Bicubic resize of (T, H, W, 3) uint8 to (T, side, side, 3), as the processors do it."""
    return np.stack([np.asarray(Image.fromarray(f).resize((side, side), Image.Resampling.BICUBIC)) for f in frames])


def sample(frames: np.ndarray, count: int = FRAMES) -> np.ndarray:
    """`count` uniformly spaced frames, first and last included."""
    return frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]


def render_images(seed: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    rng = np.random.default_rng([seed, 1])
    names = list(IMAGE_WEIGHTS)
    weights = np.array(list(IMAGE_WEIGHTS.values()))
    pixels, items = np.empty((CHUNK, 64, 64, 3), np.uint8), []
    for i in range(CHUNK):
        if rng.random() < 0.08:  # a frame of a clip, upright or turned, for the vision stage alone
            video = pick(rng, VIDEO_NAMES)
            clip, _ = scenes_video.VIDEOS[video](rng, frames=2)
            upright = bool(rng.random() < 0.5)
            frame = clip[int(rng.integers(2))]
            pixels[i] = frame if upright else frame[::-1, ::-1]
            items.append({"name": "frame", "video": video, "upright": upright})
            continue
        name = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        pixels[i], attributes = scenes_image.IMAGES[name](rng)
        items.append({"name": name, **attributes_of(attributes)})
    return pixels, items


def render_videos(seed: int) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    rng = np.random.default_rng([seed, 2])
    small = np.empty((VIDEO_CHUNK, FRAMES, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    large = np.empty((VIDEO_CHUNK, FRAMES, QWEN_FRAME_SIZE, QWEN_FRAME_SIZE, 3), np.uint8)
    items: list[dict[str, Any]] = []
    previous = scenes_video.moving(rng)[0]
    for i in range(VIDEO_CHUNK):
        name = pick(rng, VIDEO_NAMES)
        clip, attributes = scenes_video.VIDEOS[name](rng)
        kind = pick(rng, scenes_video.TAMPERINGS)
        frames = sample(scenes_video.tamper(clip, previous, kind, rng))
        small[i], large[i] = shrink(frames, IMAGE_SIZE), shrink(frames, QWEN_FRAME_SIZE)
        items.append({"name": name, "kind": kind, **attributes_of(attributes)})
        previous = clip
    return small, large, items


def _array(folder: Path, kind: str, count: int, *shape: int) -> np.ndarray:
    file = folder / f"{kind}_{shape[-1]}.npy"
    return np.lib.format.open_memmap(file, "w+", np.uint8, (count, *shape, shape[-1], 3))


def build_pool(folder: Path, *, images: int, videos: int, seed: int, workers: int = 1) -> None:
    """Render `images` pictures and `videos` clips into `folder`, unless they are there."""
    if (folder / "items.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    items: dict[str, list[dict[str, Any]]] = {"images": [], "videos": []}
    with ProcessPoolExecutor(workers, initializer=interrupts.worker_process) as executor:
        count = images // CHUNK
        native, small = _array(folder, "images", count * CHUNK, 64), _array(folder, "images", count * CHUNK, IMAGE_SIZE)
        for n, (pixels, chunk) in enumerate(executor.map(render_images, [seed * 100_000 + i for i in range(count)])):
            part = slice(n * CHUNK, (n + 1) * CHUNK)
            native[part], small[part] = pixels, shrink(pixels, IMAGE_SIZE)
            items["images"] += chunk
        count = videos // VIDEO_CHUNK
        clips = [_array(folder, "videos", count * VIDEO_CHUNK, FRAMES, side) for side in (IMAGE_SIZE, QWEN_FRAME_SIZE)]
        for n, (*sizes, chunk) in enumerate(executor.map(render_videos, [seed * 100_000 + i for i in range(count)])):
            for frames, pixels in zip(clips, sizes, strict=True):
                frames[n * VIDEO_CHUNK : (n + 1) * VIDEO_CHUNK] = pixels
            items["videos"] += chunk
    write_json(folder / "items.json", items, indent=None)
    logger.info("pool: %d images, %d clips in %s", len(items["images"]), len(items["videos"]), folder)
