"""Which backbone to load and how its processors see images and videos. Imports no framework."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path

from lime.system.checks import not_one_of, too_small

FAMILIES: dict[str, str] = {
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
}
"""Supported families (the `model_type` of a checkpoint's config.json) and their transformers classes."""

AUTOMATIC = "hf"
"""Family of every other vision-language model of transformers, which is seen through its own processor, and of causal
language models."""

EMBEDDED: dict[str, str] = {"tiny_llava_onevision": "llava_onevision", "tiny_qwen2vl": "qwen2_vl"}
"""Backbones that come with the package, and their families."""

CHECKPOINTS = Path(__file__).parents[1] / "embedded" / "checkpoints"
"""Folder of the embedded backbones."""

DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flex_attention")


@dataclass
class ImageConfig:
    """Image budget. Null leaves what the checkpoint's own processor says.

    Attributes:
        max_tiles: tiles that an image is cut into beside its base view (LLaVA-OneVision, InternVL; 1 in the published
            runs). 1 shows an image whole to SmolVLM, which else cuts it as its processor says.
        min_pixels: least pixels of the resized image (Qwen2-VL).
        max_pixels: most pixels of the resized image (Qwen2-VL).
        max_tokens: most visual tokens of an image in the prompt, by fewer tiles or fewer pixels.
    """

    max_tiles: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_tokens: int | None = None


@dataclass
class VideoConfig:
    """Video budget.

    Attributes:
        num_frames: frames of a clip, spread evenly from its first to its last; with `fps`, the most of them.
        max_pixels: most pixels of a frame (Qwen2-VL); null for the checkpoint's.
        max_tokens: most visual tokens of a clip in the prompt: by fewer pixels (Qwen2-VL); where a frame's tokens are
            fixed (LLaVA-OneVision) it is an error if the frames take more.
        fps: frames a second, at most `num_frames` of a clip (Qwen2-VL, Qwen2.5-VL; the clips of other models are all of
            one length); null for `num_frames` of every clip.
        index_rule: how a place between two frames becomes one of them: `rounded` to the nearest, or `truncated` to the
            one before, as in the published runs.
    """

    num_frames: int = 8
    max_pixels: int | None = None
    max_tokens: int | None = None
    fps: float | None = None
    index_rule: str = "rounded"


INDEX_RULES = ("rounded", "truncated")
BUDGETS = ("checkpoint", "published")
QUANTIZATIONS = ("8bit", "4bit")

PUBLISHED: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "llava_onevision": ({"max_tiles": 1}, {"num_frames": 8}),
    "qwen2_vl": ({"max_pixels": 384 * 384}, {"num_frames": 8, "max_pixels": 384 * 384}),
}
"""Image and video budget of the published runs by family: 384 x 384 pixels, one tile, 8 frames (their 2,048 tokens are
data.max_length)."""


@dataclass
class RecipeConfig:
    """Training settings that suit a backbone: what `peft.r`, `optim.*_lr` and `trainer.*` are unless set.

    The defaults are the published runs' (7B backbones); the embedded backbones, a thousand times smaller, take larger
    ranks, rates and batches.

    Attributes:
        rank: of `peft.r`.
        moe_lr: of `optim.moe_lr`.
        peft_lr: of `optim.peft_lr`.
        max_epochs: of `trainer.max_epochs`.
        batch_size: of `trainer.batch_size`.
        accumulate_grad_batches: of `trainer.accumulate_grad_batches`.
    """

    rank: int = 2
    moe_lr: float = 1e-3
    peft_lr: float = 4e-4
    max_epochs: int = 3
    batch_size: int = 2
    accumulate_grad_batches: int = 2


@dataclass
class ModelConfig:
    """A backbone.

    Attributes:
        name: its name in records and tables.
        family: `llava_onevision`, `qwen2_vl`, or `hf` for every other vision-language model of transformers, which is
            seen through its own processor, and for causal language models, which take tasks of text.
        path: local folder or hub name; null only for the embedded ones, which come with the package.
        revision: commit on the hub; the one that was loaded is recorded in every run.
        dtype: of the frozen weights: `auto` (as saved), `float32`, `bfloat16` or `float16`.
        attn_implementation: attention of transformers: `sdpa`, `eager`, `flash_attention_2` or `flex_attention`.
        device_map: spreads the model over devices, in an evaluation: `auto`, `balanced`, `cpu`, …; null for one device.
        quantization: loads the frozen base in `8bit` or `4bit`, by bitsandbytes; null for neither.
        budget: `published` sees images and videos as the published runs did (384 x 384 pixels, one tile, 8 frames),
            `checkpoint` as the checkpoint's own processor says; what image and video set goes before.
        image: image budget.
        video: video budget.
        recipe: training settings that suit it.
    """

    name: str = "tiny_llava_onevision"
    family: str = "llava_onevision"
    path: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    attn_implementation: str = "sdpa"
    device_map: str | None = None
    quantization: str | None = None
    budget: str = "checkpoint"
    image: ImageConfig = field(default_factory=ImageConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)

    def errors(self) -> list[str]:
        """Everything wrong with this configuration, one sentence each, beginning with the full key."""
        words = {"family": (*FAMILIES, AUTOMATIC), "dtype": DTYPES, "attn_implementation": ATTENTION, "budget": BUDGETS}
        problems = not_one_of(self, "model", words)
        if self.path is None and self.name not in EMBEDDED:
            problems.append(
                f"model.path: needed for {self.name!r}: a local folder or a hub name "
                f"(only {', '.join(EMBEDDED)} come with the package)"
            )
        if self.path is None and EMBEDDED.get(self.name, self.family) != self.family:
            problems.append(f"model.family: {self.name} is of family {EMBEDDED[self.name]}, got {self.family!r}")
        if self.path is None and self.revision is not None:
            problems.append("model.revision: has no effect on an embedded backbone; leave it null")
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            known = ", ".join(QUANTIZATIONS)
            problems.append(f"model.quantization: expected one of {known} or null, got {self.quantization!r}")
        if self.budget == "published" and self.family == AUTOMATIC:
            problems.append(
                f"model.budget: the published runs know {', '.join(PUBLISHED)} only; leave it at checkpoint and set "
                "model.image.* and model.video.*"
            )
        return problems + self._budget_errors()

    def visual(self) -> tuple[ImageConfig, VideoConfig]:
        """Image and video budget with those of `budget` where nothing else is set."""
        image, video = dataclasses.replace(self.image), dataclasses.replace(self.video)
        if self.budget == "published":
            for part, values in zip((image, video), PUBLISHED[self.family], strict=True):
                for name, value in values.items():
                    if getattr(part, name) is None:
                        setattr(part, name, value)
        return image, video

    def _budget_errors(self) -> list[str]:
        image, video = self.image, self.video
        counts = {f"model.image.{key}": value for key, value in vars(image).items()}
        rates = {"model.video.fps": video.fps}
        counts |= {f"model.video.{key}": getattr(video, key) for key in ("num_frames", "max_pixels", "max_tokens")}
        problems = too_small(image, "model.image", dict.fromkeys(vars(image), 1))
        problems += too_small(video, "model.video", dict.fromkeys(("num_frames", "max_pixels", "max_tokens"), 1))
        if video.fps is not None and not 0 < video.fps < math.inf:
            problems.append(f"model.video.fps: expected a number above 0 or null, got {video.fps}")
        problems += not_one_of(video, "model.video", {"index_rule": INDEX_RULES})
        if image.min_pixels and image.max_pixels and image.min_pixels > image.max_pixels:
            problems.append(f"model.image.min_pixels: {image.min_pixels} is above max_pixels {image.max_pixels}")
        without_effect = {
            "llava_onevision": (
                "model.image.min_pixels",
                "model.image.max_pixels",
                "model.video.max_pixels",
                "model.video.fps",
            ),
            "qwen2_vl": ("model.image.max_tiles",),
            AUTOMATIC: ("model.image.max_tokens", "model.video.max_tokens"),
        }.get(self.family, ())
        text = f"has no effect on family {self.family}; leave it null"
        return problems + [f"{key}: {text}" for key in without_effect if (counts | rates)[key] is not None]

    @property
    def location(self) -> str:
        """The folder or hub name to load from."""
        return self.path if self.path is not None else str(CHECKPOINTS / self.name)
