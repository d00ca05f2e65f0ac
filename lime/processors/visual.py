"""Images and clips as a batch's visual inputs, for either family, without decoding or resizing anything twice.

A picture is resized and cut once and kept as uint8 (a quarter of the memory of float32); scaling and
normalising happen when a batch is put together, with the same result as the family's own processor.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lime.processors.families import FrameProcessor, normalise


@dataclass(frozen=True)
class Visual:
    """One image or clip, resized, uint8.

    `values`: LLaVA-OneVision: (tiles or frames, 3, S, S); Qwen2-VL: (patches, 3 * temporal * patch^2).
    `tokens`: placeholders it takes in a prompt. `size`: (height, width) before resizing. `grid`: [t, h, w]
    (Qwen2-VL). `seconds`: that one of the t steps stands for, where clips are sampled by a rate.
    """

    values: np.ndarray
    tokens: int
    size: tuple[int, int]
    grid: tuple[int, int, int] | None = None
    seconds: float | None = None


class VisualEncoder:
    """Images and clips to `Visual`, and `Visual`s to model inputs, by a processor from `load_processor`."""

    def __init__(self, processor: ProcessorMixin) -> None:
        if not isinstance(processor.video_processor, FrameProcessor):
            raise TypeError("expected a processor made by lime.processors.families.load_processor")
        self.processor: Any = processor
        self.images = processor.image_processor
        self.videos: FrameProcessor = processor.video_processor
        self.patched = isinstance(self.images, Qwen2VLImageProcessorPil)
        self.num_frames = self.videos.num_frames
        self._timed = "second_per_grid_ts" in processor.model_input_names  # Qwen2.5-VL places clips by their time
        self._counts: dict[tuple[Any, ...], int] = {}

    def image_tokens(self, height: int, width: int) -> int:
        """Placeholders that an image of this size takes."""
        return self._tokens("image", height, width)

    def video_tokens(self, height: int, width: int, frames: int | None = None) -> int:
        """Placeholders that a clip of so many frames of this size takes (`num_frames`, where not given)."""
        return self._tokens("video", frames or self.num_frames, height, width)

    def _tokens(self, kind: str, *size: int) -> int:
        if (kind, *size) not in self._counts:
            counts = self.processor._get_num_multimodal_tokens(**{f"{kind}_sizes": [size]})
            self._counts[kind, *size] = int(getattr(counts, f"num_{kind}_tokens")[0])
        return self._counts[kind, *size]

    def encode_image(self, image: Image.Image) -> Visual:
        """An RGB picture, resized and cut."""
        size = (image.height, image.width)
        out = self.images([image], do_rescale=False, do_normalize=False, return_tensors="np")
        values = out["pixel_values"] if self.patched else out["pixel_values"][0]
        grid = tuple(int(n) for n in out["image_grid_thw"][0]) if self.patched else None
        return Visual(_bytes(values), self.image_tokens(*size), size, grid)  # type: ignore[arg-type]

    def encode_video(self, frames: np.ndarray, length: float | None = None) -> Visual:
        """(T, H, W, 3) uint8 frames of a clip of this length in seconds, resized and laid out."""
        size = (frames.shape[1], frames.shape[2])
        values = self.videos.resize(frames)
        grid = None
        if self.patched:
            values, shape = self.videos.patchify(values)
            grid = (shape[0], shape[1], shape[2])
        seconds = self.videos.temporal_patch_size * length / len(frames) if self.patched and length else None
        return Visual(_bytes(values), self.video_tokens(*size, len(frames)), size, grid, seconds)

    def video_sampling(self) -> str:
        """All that decides the frames of a clip, as text: how many, and how they are resized and laid out."""
        return json.dumps(self.videos.to_dict(), sort_keys=True, default=str)

    def restored_video(
        self, values: np.ndarray, size: Sequence[int], grid: Sequence[int] | None, seconds: float | None
    ) -> Visual:
        """What `encode_video` made of a clip of `size` (height, width), from its parts."""
        height, width = size
        shape = (grid[0], grid[1], grid[2]) if grid is not None else None
        frames = len(values) if shape is None else shape[0] * self.videos.temporal_patch_size
        return Visual(values, self.video_tokens(height, width, frames), (height, width), shape, seconds)

    def inputs(self, images: Sequence[Visual], videos: Sequence[Visual]) -> dict[str, Tensor]:
        """The visual inputs of a batch, images and clips each in the order of their rows."""
        out: dict[str, Tensor] = {}
        if images:
            out["pixel_values"] = self._values(images, self.images)
            if self.patched:
                out["image_grid_thw"] = torch.tensor([v.grid for v in images])
            else:
                out["image_sizes"] = torch.tensor([v.size for v in images])
        if videos:
            out["pixel_values_videos"] = self._values(videos, self.videos.image_processor)
            if self.patched:
                out["video_grid_thw"] = torch.tensor([v.grid for v in videos])
            if self._timed and all(v.seconds is not None for v in videos):
                out["second_per_grid_ts"] = torch.tensor([v.seconds for v in videos])
        return out

    def _values(self, visuals: Sequence[Visual], processor: object) -> Tensor:
        if self.patched:
            flat = np.concatenate([v.values for v in visuals])
            split = flat.reshape(len(flat), 3, -1)
            return torch.from_numpy(normalise(split, processor, channel_axis=1).reshape(flat.shape))  # type: ignore[arg-type]
        most = max(len(v.values) for v in visuals)
        batch = np.zeros((len(visuals), most, *visuals[0].values.shape[1:]), dtype=np.float32)
        for place, visual in zip(batch, visuals, strict=True):
            place[: len(visual.values)] = normalise(visual.values, processor, channel_axis=1)  # type: ignore[arg-type]
        return torch.from_numpy(batch)


def _bytes(values: np.ndarray) -> np.ndarray:
    """Pixel values that are whole numbers, as uint8, owning their memory."""
    return np.ascontiguousarray(np.asarray(values).round().clip(0, 255).astype(np.uint8))
