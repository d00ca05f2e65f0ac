"""Processors of both families without torchvision: PIL images, and video frames assembled in numpy.

transformers pairs its video processors with torchvision; here a video is a run of frames, each resized by the
PIL image processor of the family, laid out exactly as the family's own video processor does. Any checkpoint
layout is read: `processor_config.json` with or without nested image and video processors,
`preprocessor_config.json`, `video_preprocessor_config.json`, and the chat template as `chat_template.jinja`,
`chat_template.json`, inside `processor_config.json` or inside the tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, BatchFeature, LlavaOnevisionProcessor, ProcessorMixin, Qwen2VLProcessor
from transformers.image_utils import SizeDict
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.utils import PushToHubMixin

from lime.processors.config import FAMILIES, ImageConfig, VideoConfig
from lime.processors.files import CheckpointFiles

ImageProcessor = LlavaOnevisionImageProcessorPil | Qwen2VLImageProcessorPil


def normalise(values: np.ndarray, processor: ImageProcessor, channel_axis: int) -> np.ndarray:
    """(x * rescale_factor - mean) / std in float32, each step only where the processor asks for it."""
    out = np.asarray(values, dtype=np.float32)
    if processor.do_rescale:
        out = out * np.float32(processor.rescale_factor)
    if processor.do_normalize:
        shape = [1] * out.ndim
        shape[channel_axis] = -1
        mean = np.asarray(processor.image_mean, dtype=np.float32).reshape(shape)
        std = np.asarray(processor.image_std, dtype=np.float32).reshape(shape)
        out = (out - mean) / std
    return out


class FrameProcessor(PushToHubMixin):
    """Videos as runs of frames through a PIL image processor; `video` says how many of a clip (`frames_of`).

    A video is (T, H, W, 3) uint8 or a list of such frames. LLaVA-OneVision: `pixel_values_videos` (N, T, 3,
    S, S). Qwen2-VL: `pixel_values_videos` (sum of patches, 3 * temporal * patch^2) and `video_grid_thw` (N,
    3), an odd last frame repeated.
    """

    _auto_class = None

    def __init__(self, image_processor: Any, video: VideoConfig) -> None:
        self.image_processor = image_processor
        self.num_frames, self.fps, self.index_rule = video.num_frames, video.fps, video.index_rule
        self.patched = isinstance(image_processor, Qwen2VLImageProcessorPil)
        self.model_input_names = ["pixel_values_videos", *(["video_grid_thw"] if self.patched else [])]
        if self.patched:
            self.merge_size = self.image_processor.merge_size
            self.temporal_patch_size = self.image_processor.temporal_patch_size

    def to_dict(self) -> dict[str, Any]:
        """The configuration, as it stands in `video_preprocessor_config.json`."""
        content = {k: v for k, v in self.image_processor.to_dict().items() if k != "image_processor_type"}
        name = "Qwen2VLVideoProcessor" if self.patched else "LlavaOnevisionVideoProcessor"
        content |= {"video_processor_type": name, "num_frames": self.num_frames, "do_sample_frames": False}
        content |= {"fps": self.fps} if self.fps is not None else {}
        return content | ({"index_rule": self.index_rule} if self.index_rule != "rounded" else {})

    def frames_of(self, seconds: float) -> int:
        """How many frames a clip of this length is sampled to."""
        return self.num_frames if self.fps is None else min(max(1, round(seconds * self.fps)), self.num_frames)

    def resize(self, video: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """(T, H, W, 3) uint8 to (T, 3, h, w) uint8 at the size the model sees."""
        processor = self.image_processor
        frames = [np.ascontiguousarray(np.asarray(frame).transpose(2, 0, 1)) for frame in video]
        if not frames:
            raise ValueError("a video without a frame; expected at least one (H, W, 3) frame")
        if not processor.do_resize:
            return np.stack(frames)
        size = SizeDict(**dict(processor.size))
        resample = processor.resample
        if isinstance(processor, Qwen2VLImageProcessorPil):
            factor = processor.patch_size * processor.merge_size
            return np.stack([processor.resize(f, size, resample, factor=factor) for f in frames])
        if not size.height:
            size = SizeDict(height=size.shortest_edge, width=size.shortest_edge)
        return np.stack([processor.resize(f, size, resample) for f in frames])

    def patchify(self, frames: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """(T, C, h, w) frames to (patches, C * temporal * patch^2) and the grid [t, h, w] (Qwen2-VL's order)."""
        processor = self.image_processor
        p, m, tp = processor.patch_size, processor.merge_size, processor.temporal_patch_size
        if missing := -len(frames) % tp:
            frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
        t, c, h, w = frames.shape
        grid = [t // tp, h // p, w // p]
        split = frames.reshape(grid[0], tp, c, grid[1] // m, m, p, grid[2] // m, m, p)
        patches = split.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return patches.reshape(grid[0] * grid[1] * grid[2], c * tp * p * p), grid

    def get_num_of_video_patches(self, num_frames: int, height: int, width: int, videos_kwargs: object = None) -> int:
        """Patches (before merging) of a Qwen2-VL video of this size."""
        processor = self.image_processor
        size = processor.size
        h, w = smart_resize(
            height,
            width,
            processor.patch_size * processor.merge_size,
            min_pixels=size["shortest_edge"],
            max_pixels=size["longest_edge"],
        )
        steps = -(-num_frames // processor.temporal_patch_size)
        return steps * (h // processor.patch_size) * (w // processor.patch_size)

    def __call__(self, videos: Any, return_tensors: str | None = None, **unused: object) -> BatchFeature:
        """`videos`: one video or a list of them."""
        if isinstance(videos, np.ndarray) and videos.ndim == 4:
            videos = [videos]
        values: list[np.ndarray] = []
        grids: list[list[int]] = []
        for video in videos:
            frames = normalise(self.resize(video), self.image_processor, channel_axis=1)
            if self.patched:
                frames, grid = self.patchify(frames)
                grids.append(grid)
            values.append(frames)
        if not self.patched:
            return BatchFeature({"pixel_values_videos": values}, tensor_type=return_tensors)
        data = {"pixel_values_videos": np.concatenate(values), "video_grid_thw": np.array(grids)}
        return BatchFeature(data, tensor_type=return_tensors)


class FramesAsImages(PushToHubMixin):
    """Stands where a processor has its video processor: `num_frames` frames of a clip are shown as images, with
    `options` of the image processor. Raises ValueError for a rate."""

    _auto_class = None
    model_input_names: tuple[str, ...] = ()
    fps = 1

    def __init__(self, video: VideoConfig, options: dict[str, Any]) -> None:
        if video.fps is not None:
            raise ValueError("model.video.fps: this model sees the frames of a clip as images, equally many; set null")
        self.num_frames, self.index_rule, self.options = video.num_frames, video.index_rule, options

    def to_dict(self) -> dict[str, Any]:
        return {"num_frames": self.num_frames, "as_images": True, **self.options}


class WithFrameProcessor:
    """Lets a transformers processor hold one of these two where it expects its own video processor."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name == "video_processor" and isinstance(argument, FrameProcessor | FramesAsImages):
            return type(argument)
        return super().check_argument_for_proper_class(argument_name, argument)  # type: ignore[misc]


class LlavaOnevisionPilProcessor(WithFrameProcessor, LlavaOnevisionProcessor):
    """LLaVA-OneVision's processor on PIL and numpy."""


class Qwen2VLPilProcessor(WithFrameProcessor, Qwen2VLProcessor):
    """Qwen2-VL's processor on PIL and numpy."""


PROCESSORS: dict[str, tuple[type[ProcessorMixin], type[ImageProcessor]]] = {
    "llava_onevision": (LlavaOnevisionPilProcessor, LlavaOnevisionImageProcessorPil),
    "qwen2_vl": (Qwen2VLPilProcessor, Qwen2VLImageProcessorPil),
}
assert set(PROCESSORS) == set(FAMILIES)


def load_processor(
    path: str | Path,
    family: str,
    *,
    revision: str | None = None,
    image: ImageConfig | None = None,
    video: VideoConfig | None = None,
) -> ProcessorMixin:
    """The processor of a checkpoint, without torchvision.

    `path`: a local folder or a hub name. `image` and `video` override the checkpoint's budgets where they are
    not None. Raises FileNotFoundError where the checkpoint has no image processor or chat template,
    ValueError for a family that is not supported or a budget that leaves nothing.
    """
    if family not in PROCESSORS:
        raise ValueError(f"model.family: expected one of {', '.join(PROCESSORS)}, got {family!r}")
    image, video = image or ImageConfig(), video or VideoConfig()
    files = CheckpointFiles(str(path), revision)
    still, moving = files.visual_configs()
    processor_class, image_class = PROCESSORS[family]
    image_processor = image_processor_of(image_class, still, image.min_pixels, image.max_pixels, image.max_tokens)
    per_step = None
    if video.max_tokens is not None and issubclass(image_class, Qwen2VLImageProcessorPil):
        steps = math.ceil(video.num_frames / (moving.get("temporal_patch_size") or 2))
        per_step = video.max_tokens // steps
        if per_step < 1:
            raise ValueError(f"model.video.max_tokens: {video.max_tokens} leave none for each of {steps} frame pairs")
    frame_processor = image_processor_of(image_class, moving, None, video.max_pixels, per_step)
    if isinstance(image_processor, LlavaOnevisionImageProcessorPil) and image.max_tiles is not None:
        image_processor.image_grid_pinpoints = _within_tiles(image_processor, image.max_tiles)
    tokenizer = AutoTokenizer.from_pretrained(str(path), revision=revision)
    template = files.chat_template() or tokenizer.chat_template
    if not template:
        raise FileNotFoundError(
            f"model.path: {path} has no chat template (chat_template.jinja, chat_template.json, or in the "
            "tokenizer); it is part of the checkpoint: fetch it"
        )
    frames = FrameProcessor(frame_processor, video)
    processor = processor_class(image_processor, tokenizer, frames, chat_template=template, **files.options())
    if isinstance(image_processor, LlavaOnevisionImageProcessorPil):
        _check_tokens(processor, image.max_tokens, video)
    return processor


def _check_tokens(processor: Any, image_tokens: int | None, video: VideoConfig) -> None:
    """LLaVA-OneVision: keep the grids whose images take at most so many tokens; a clip's are what they are."""
    images = processor.image_processor
    if image_tokens is not None:
        grids = images.image_grid_pinpoints
        counts = {}
        for grid in grids:
            images.image_grid_pinpoints = [grid]
            worst = processor._get_num_multimodal_tokens(image_sizes=[tuple(grid)])
            counts[tuple(grid)] = int(worst.num_image_tokens[0])
        images.image_grid_pinpoints = [grid for grid in grids if counts[tuple(grid)] <= image_tokens]
        if not images.image_grid_pinpoints:
            raise ValueError(
                f"model.image.max_tokens: an image takes at least {min(counts.values())} tokens, "
                f"more than {image_tokens}"
            )
    if video.max_tokens is not None:
        clip = processor._get_num_multimodal_tokens(video_sizes=[(video.num_frames, 1, 1)]).num_video_tokens[0]
        if clip > video.max_tokens:
            raise ValueError(
                f"model.video.max_tokens: {video.num_frames} frames take {clip} tokens, more than {video.max_tokens}; "
                "lower model.video.num_frames"
            )


def image_processor_of(
    cls: type[ImageProcessor],
    content: dict[str, Any],
    min_pixels: int | None,
    max_pixels: int | None,
    max_tokens: int | None = None,
) -> ImageProcessor:
    known = set(cls.valid_kwargs.__annotations__)
    options = {key: value for key, value in content.items() if key in known and value is not None}
    if issubclass(cls, Qwen2VLImageProcessorPil):
        size = dict(options.pop("size", None) or cls.size)
        lower = min_pixels or options.pop("min_pixels", None) or size.get("min_pixels") or size.get("shortest_edge")
        upper = max_pixels or options.pop("max_pixels", None) or size.get("max_pixels") or size.get("longest_edge")
        if max_tokens is not None and upper is not None:
            side = (options.get("patch_size") or 14) * (options.get("merge_size") or 2)
            upper = min(upper, max_tokens * side * side)
        if lower is None or upper is None or (lower > upper and min_pixels is not None):
            raise ValueError(f"image budget: min_pixels {lower} and max_pixels {upper} leave no size")
        for key in ("min_pixels", "max_pixels"):
            options.pop(key, None)
        options["size"] = {"shortest_edge": min(lower, upper), "longest_edge": upper}
    return cls(**options)


def _within_tiles(processor: LlavaOnevisionImageProcessorPil, max_tiles: int) -> list[list[int]]:
    side = processor.size["height"] if "height" in processor.size else processor.size["shortest_edge"]
    pinpoints = [p for p in processor.image_grid_pinpoints if (p[0] // side) * (p[1] // side) <= max_tiles]
    if not pinpoints:
        raise ValueError(
            f"model.image.max_tiles: {max_tiles} keeps none of the checkpoint's grid pinpoints "
            f"{processor.image_grid_pinpoints} (a tile is {side} pixels wide)"
        )
    return pinpoints
