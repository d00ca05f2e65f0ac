"""The collator of a model: one of ours for the published families, transformers' own processor for others."""

from __future__ import annotations

from typing import Any

from transformers import ProcessorMixin

from lime.data.collate import BaseCollator, Collator, TextCollator
from lime.data.collate_processor import ProcessorCollator
from lime.data.config import DataConfig
from lime.data.media.frame_cache import FrameCache
from lime.processors.families import FrameProcessor
from lime.processors.text import TextProcessor


def make_collator(data: DataConfig, processor: ProcessorMixin | TextProcessor, family: str) -> BaseCollator[Any]:
    """What turns the rows of `data.root` into batches: a `Collator`; for other models a `ProcessorCollator`, or a
    `TextCollator` where they take text alone."""
    assert data.root is not None
    frames = data.frame_cache
    options: dict[str, Any] = {
        "max_length": data.max_length,
        "system_prompt": data.system_prompt,
        "video_backend": data.video_backend,
        "cache_mb": data.cache_mb // max(data.num_workers, 1),
        "bounds": data.bounds,
        "train_on": data.train_on,
    }
    if isinstance(processor, TextProcessor):
        return TextCollator(processor, family, data.root, **options)
    if isinstance(processor.video_processor, FrameProcessor):
        cache = FrameCache(frames.dir, frames.size_mb) if frames.dir is not None else None
        return Collator(processor, family, data.root, **options, frame_cache=cache)
    return ProcessorCollator(processor, family, data.root, **options)
