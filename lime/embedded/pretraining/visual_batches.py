"""Image and video batches for the pretraining: pool pixels as the processors of the backbones would give them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lime.embedded.pretraining import architecture
from lime.embedded.pretraining.batches import Encoder, bucketed, pad
from lime.embedded.pretraining.visual_corpus import image_dialogue, video_dialogue
from lime.processors.config import EMBEDDED


def normalise(pixels: np.ndarray, family: str) -> Tensor:
    """(…, H, W, 3) uint8 -> (…, 3, H, W) float32, as the image processor of the family rescales and normalises."""
    normal = architecture.SPECS[family]["normal"]
    mean, std = torch.tensor(normal["image_mean"]), torch.tensor(normal["image_std"])
    return ((torch.from_numpy(pixels).float() / 255 - mean) / std).movedim(-1, -3)


def patches(frames: Tensor, merge: int = 2, temporal: int = 2, side: int = architecture.PATCH) -> tuple[Tensor, Tensor]:
    """Qwen2-VL's input: (B, T, C, H, W) -> flattened patches (B t h w, C temporal side side), and grids (B, 3).

    A still image is one frame, repeated along time. Patches are ordered in `merge` x `merge` blocks.
    """
    if frames.shape[1] == 1:
        frames = frames.repeat_interleave(temporal, 1)
    b, t, c, h, w = frames.shape
    t, h, w = t // temporal, h // side, w // side
    grid = frames.reshape(b, t, temporal, c, h // merge, merge, side, w // merge, merge, side)
    flat = grid.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).reshape(b * t * h * w, c * temporal * side * side)
    return flat, torch.tensor([[t, h, w]]).repeat(b, 1)


class Pool:
    """The rendered pool of one backbone: pixels at its resolution and the attributes they show."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.family = name, EMBEDDED[name]
        llava = self.family == "llava_onevision"
        self.images = np.load(folder / f"images_{32 if llava else 64}.npy", mmap_mode="r")
        side = architecture.IMAGE_SIZE if llava else architecture.QWEN_FRAME_SIZE
        self.videos = np.load(folder / f"videos_{side}.npy", mmap_mode="r")
        items = json.loads((folder / "items.json").read_text())
        self.image_items: list[dict[str, Any]] = items["images"]
        self.video_items: list[dict[str, Any]] = items["videos"]
        # frames of clips serve the vision stage alone
        self.described = np.array([i for i, item in enumerate(self.image_items) if item["name"] != "frame"])

    def image_inputs(self, rows: np.ndarray) -> dict[str, Tensor]:
        pixels = normalise(self.images[np.sort(rows)][np.argsort(np.argsort(rows))], self.family).bfloat16()
        if self.family == "llava_onevision":  # the base view and one tile, here the same picture
            sizes = torch.full((len(rows), 2), 64)
            return {"pixel_values": pixels[:, None].expand(-1, 2, -1, -1, -1), "image_sizes": sizes}
        flat, grid = patches(pixels[:, None])
        return {"pixel_values": flat, "image_grid_thw": grid}

    def video_inputs(self, rows: np.ndarray) -> dict[str, Tensor]:
        frames = normalise(self.videos[rows], self.family).bfloat16()
        if self.family == "llava_onevision":
            return {"pixel_values_videos": frames}
        flat, grid = patches(frames)
        return {"pixel_values_videos": flat, "video_grid_thw": grid}


def visual_batches(
    pool: Pool, encoder: Encoder, kind: str, batch_size: int, seed: int
) -> Iterator[tuple[str, tuple[dict[str, Tensor], Tensor]]]:
    """Endless (kind, (model inputs, labels)) of images or videos with freshly drawn dialogues."""
    rng = np.random.default_rng([seed, 5 if kind == "image" else 6])
    tokenizer = encoder.tokenizer
    marks = {"image": ["<image>", "<|image_pad|>"], "video": ["<video>", "<|video_pad|>"]}[kind]
    marker = architecture.token_id(tokenizer, marks[pool.family == "qwen2_vl"])
    rows_of = pool.described if kind == "image" else np.arange(len(pool.video_items))
    while True:
        for index in bucketed(lambda: len(rows_of), lambda i: 0, batch_size * 16, rng, span=1):
            encoded = []
            for i in rows_of[index]:
                if kind == "image":
                    item = pool.image_items[i]
                    turns = image_dialogue(rng, item["name"], item)
                else:
                    item = pool.video_items[i]
                    turns = video_dialogue(rng, item["name"], item, item["kind"])
                encoded.append((encoder(turns, kind), i))
            encoded.sort(key=lambda pair: len(pair[0][0]))
            for b in rng.permutation(16):
                part = encoded[b * batch_size : (b + 1) * batch_size]
                ids, labels = pad([row for row, _ in part], tokenizer.pad_token_id)
                rows = np.array([i for _, i in part])
                inputs = pool.image_inputs(rows) if kind == "image" else pool.video_inputs(rows)
                inputs["input_ids"] = ids
                if pool.family == "qwen2_vl":
                    inputs["mm_token_type_ids"] = ids.eq(marker).int() * (1 if kind == "image" else 2)
                yield kind, (inputs, labels)


def mixed(
    streams: dict[str, Iterator[tuple[str, Any]]], pattern: list[str], first: tuple[list[str], int] = ([], 0)
) -> Iterator[tuple[str, Any]]:
    """Batches of the streams in the order of `pattern`, for ever; of another pattern for the `first` batches."""
    early, count = first
    for step in range(count):
        yield next(streams[early[step % len(early)]])
    while True:
        for kind in pattern:
            yield next(streams[kind])
