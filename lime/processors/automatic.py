"""Processors of vision-language models that this package does not know: transformers' own, without torchvision.

Images go through the checkpoint's own processor. Qwen2.5-VL, whose visual inputs are those of Qwen2-VL, also takes
videos as such. To the other models a video is shown as so many images, one per frame, since transformers reads videos
for them with torchvision alone. A frame is never cut into tiles.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lime.processors.config import ImageConfig, VideoConfig
from lime.processors.families import FrameProcessor, FramesAsImages, WithFrameProcessor, image_processor_of
from lime.processors.files import CheckpointFiles
from lime.processors.text import TextProcessor, is_text_only, load_text_processor

log = logging.getLogger(__name__)

SEEN_AS_QWEN2_VL = ("qwen2_5_vl",)
"""Model types whose prompts and visual inputs are laid out as Qwen2-VL's."""


def load_automatic_processor(
    path: str | Path, *, revision: str | None = None, image: ImageConfig, video: VideoConfig
) -> ProcessorMixin | TextProcessor:
    """The processor of any checkpoint of a vision-language model; of one that takes text alone, its `TextProcessor`.

    `video_processor` of what comes back is a `FrameProcessor` where the model takes videos, else `FramesAsImages`.

    Raises FileNotFoundError where processor files or a chat template are lacking, ValueError where the model has no
    processor for images, a library is missing, a budget has no effect on it, or it fails on a plain picture.
    """
    files = CheckpointFiles(str(path), revision)
    model_type = files.json("config.json").get("model_type", "")
    if is_text_only(model_type):
        return load_text_processor(path, revision, image, video)
    name = PROCESSOR_MAPPING_NAMES.get(model_type)
    base = _class_named(name) if name is not None else None
    if base is None:
        raise ValueError(
            f"model.path: {path} holds a {model_type!r} model, for which transformers has no processor; expected a "
            "vision-language model, or a causal language model for tasks of text"
        )
    attributes = base.get_attributes()
    if "image_processor" not in attributes:
        raise ValueError(f"model.path: {path}: {base.__name__} takes no images; a vision-language model is needed")
    still, moving = files.visual_configs()
    tokenizer = AutoTokenizer.from_pretrained(str(path), revision=revision)
    template = files.chat_template() or tokenizer.chat_template
    if not template:
        raise FileNotFoundError(
            f"model.path: {path} has no chat template; model=hf needs a model that was trained on conversations"
        )
    frames: FrameProcessor | FramesAsImages
    images: Any
    if model_type in SEEN_AS_QWEN2_VL:
        images = image_processor_of(Qwen2VLImageProcessorPil, still, image.min_pixels, image.max_pixels)
        frames = FrameProcessor(image_processor_of(Qwen2VLImageProcessorPil, moving, None, video.max_pixels), video)
    else:
        images = AutoImageProcessor.from_pretrained(str(path), revision=revision, backend="pil")
        _limit(images, image, video)
        frames = FramesAsImages(video, _uncut(images))
        log.warning("%s: videos are shown as %d images each, one per frame", model_type, video.num_frames)
    cls: Any = type(base.__name__, (WithFrameProcessor, base), {"__doc__": base.__doc__})
    parts = {"image_processor": images, "tokenizer": tokenizer, "video_processor": frames}
    parts = {key: part for key, part in parts.items() if key in attributes}
    try:
        processor = cls(**parts, chat_template=template, **files.options())
    except ImportError as error:
        raise ValueError(f"model.path: the processor of a {model_type} model lacks a library: {error}") from error
    processor.video_processor = frames
    return processor


def complete_tokens(processor: Any, config: Any) -> None:
    """Give a processor the ids of its placeholders where it does not have them, from the tokenizer or the model."""
    for kind in ("image", "video"):
        if getattr(processor, f"{kind}_token_id", None) is not None:
            continue
        token = getattr(processor, f"{kind}_token", None)
        known = token in processor.tokenizer.get_vocab() if isinstance(token, str) else False
        token_id = (
            processor.tokenizer.convert_tokens_to_ids(token) if known else getattr(config, f"{kind}_token_id", None)
        )
        setattr(processor, f"{kind}_token_id", -1 if token_id is None else int(token_id))


def check_images(processor: Any, prompt: str) -> None:
    """Raise ValueError where the processor cannot take one picture with a prompt, saying what it said."""
    try:
        processor(text=[prompt], images=[[Image.new("RGB", (64, 48))]], return_tensors="pt")
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(
            f"model=hf: {type(processor).__name__} does not take a picture with a prompt: {error}"
        ) from error


def _class_named(name: Any) -> Any:
    import transformers

    return getattr(transformers, name if isinstance(name, str) else name[0], None)


def _uncut(images: Any) -> dict[str, Any]:
    """What has an image processor show a frame of a clip whole, where it cuts pictures into tiles."""
    whole = {"do_image_splitting": False, "max_patches": 1}
    return {key: value for key, value in whole.items() if hasattr(images, key)}


def _limit(images: Any, image: ImageConfig, video: VideoConfig) -> None:
    """Apply the budgets that an unknown image processor has; the others are errors."""
    advice = f"has no effect on {type(images).__name__}; leave it null"
    if image.max_tiles is not None:
        if hasattr(images, "max_patches"):
            images.max_patches = image.max_tiles
        elif image.max_tiles == 1 and hasattr(images, "do_image_splitting"):
            images.do_image_splitting = False
        else:
            raise ValueError(f"model.image.max_tiles: {image.max_tiles} {advice} (or 1, where images are split)")
    if image.min_pixels is not None:
        raise ValueError(f"model.image.min_pixels: {advice}")
    if image.max_pixels is not None:
        size = dict(images.size or {})
        if "longest_edge" not in size:
            raise ValueError(f"model.image.max_pixels: {advice}")
        images.size = {**size, "longest_edge": min(size["longest_edge"], math.isqrt(image.max_pixels))}
    if video.max_pixels is not None:
        raise ValueError(f"model.video.max_pixels: {advice}")
