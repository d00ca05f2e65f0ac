"""Small real parts for tests: checkpoints of both families, encoded videos, and a data root, all made on
the spot.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import av
import datasets
import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

FAMILIES = ("llava_onevision", "qwen2_vl")
SPECIALS = {
    "llava_onevision": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"],
    "qwen2_vl": [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ],
}
# fmt: off
# The templates of the published checkpoints, including LLaVA-OneVision's space after the role.
TEMPLATES = {
    "llava_onevision": (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
        "{% for c in message['content'] | selectattr('type', 'equalto', 'image') %}"
        "{{ '<image>' }}{% endfor %}"
        "{% for c in message['content'] | selectattr('type', 'equalto', 'video') %}"
        "{{ '<video>' }}{% endfor %}"
        "{% for c in message['content'] | selectattr('type', 'equalto', 'text') %}"
        "{{ '\n' + c['text'] }}{% endfor %}"
        "{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "qwen2_vl": (
        "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
        "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
        "{% for c in message['content'] %}"
        "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
        "{% elif c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in c %}"
        "{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}
# fmt: on
PINPOINTS = [[32, 32], [32, 64], [64, 32], [64, 64]]
_NORMAL = {"do_convert_rgb": True, "do_rescale": True, "do_normalize": True, "do_resize": True, "resample": 3}
_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "rescale_factor": 1 / 255,
}


def tokenizer(family: str) -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer with the family's special tokens."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    corpus = ["what is shown in the image? answer yes or no", "A. red B. blue", "system user assistant"] * 4
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=320, show_progress=False, initial_alphabet=alphabet))
    spec = json.loads(raw.to_str())["model"]
    made = Qwen2Tokenizer(
        vocab=spec["vocab"],
        merges=[tuple(pair) for pair in spec["merges"]],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    made.add_special_tokens({"additional_special_tokens": SPECIALS[family]})
    return made


def model(family: str, tok: Qwen2Tokenizer) -> torch.nn.Module:
    """A randomly initialised model, two layers deep."""
    torch.manual_seed(0)
    ids = {token: tok.convert_tokens_to_ids(token) for token in SPECIALS[family]}
    text = {
        "vocab_size": len(tok),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    if family == "qwen2_vl":
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
        vision = {
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 4,
        }
        return Qwen2VLForConditionalGeneration(
            Qwen2VLConfig(
                text_config={**text, "rope_parameters": rope},
                vision_config={**vision, "spatial_merge_size": 2, "temporal_patch_size": 2},
                image_token_id=ids["<|image_pad|>"],
                video_token_id=ids["<|video_pad|>"],
                vision_start_token_id=ids["<|vision_start|>"],
                vision_end_token_id=ids["<|vision_end|>"],
            )
        )
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "patch_size": 8,
    }
    vision |= {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "vision_use_head": False}
    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            text_config={**text, "model_type": "qwen2"},
            vision_config=vision,
            image_token_index=ids["<image>"],
            video_token_index=ids["<video>"],
            image_grid_pinpoints=PINPOINTS,
        )
    )


def processor_files(family: str) -> dict[str, dict]:
    """The processor configurations, one per file, as in the published checkpoints."""
    if family == "llava_onevision":
        common = {**_NORMAL, **_CLIP, "size": {"height": 32, "width": 32}}
        return {
            "preprocessor_config.json": {
                **common,
                "image_processor_type": "LlavaOnevisionImageProcessor",
                "do_pad": True,
                "image_grid_pinpoints": PINPOINTS,
            },
            "video_preprocessor_config.json": {
                **common,
                "video_processor_type": "LlavaOnevisionVideoProcessor",
            },
            "processor_config.json": {
                "processor_class": "LlavaOnevisionProcessor",
                "num_image_tokens": 16,
                "vision_feature_select_strategy": "full",
                "vision_aspect_ratio": "anyres_max_9",
                "image_token": "<image>",
                "video_token": "<video>",
            },
        }
    common = {**_NORMAL, **_CLIP, "patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    size, frame = {"shortest_edge": 64, "longest_edge": 4096}, {"shortest_edge": 64, "longest_edge": 1024}
    return {
        "preprocessor_config.json": {**common, "image_processor_type": "Qwen2VLImageProcessor", "size": size},
        "video_preprocessor_config.json": {
            **common,
            "video_processor_type": "Qwen2VLVideoProcessor",
            "size": frame,
        },
        "processor_config.json": {"processor_class": "Qwen2VLProcessor"},
    }


def write_checkpoint(family: str, folder: Path) -> Path:
    """A checkpoint in the layout of the hub."""
    tok = tokenizer(family)
    model(family, tok).save_pretrained(folder)
    tok.save_pretrained(folder)
    for name, content in processor_files(family).items():
        (folder / name).write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(TEMPLATES[family])
    return folder


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="lime-tests-")


@functools.cache
def checkpoint(family: str) -> Path:
    """A checkpoint of this family, made once per test process; treat it as read-only."""
    folder = Path(_scratch().name) / family
    folder.mkdir()
    return write_checkpoint(family, folder)


def moving_square(frames: int = 24, side: int = 64) -> np.ndarray:
    """(T, side, side, 3) uint8: a square moving right, brightness rising with time, so every frame
    differs.
    """
    video = np.zeros((frames, side, side, 3), dtype=np.uint8)
    for t in range(frames):
        video[t] = 40 + (150 * t) // max(frames - 1, 1)
        left = (t * (side - 16)) // max(frames - 1, 1)
        video[t, 20:36, left : left + 16] = (220, 30, 30)
    return video


def write_video(path: Path, video: np.ndarray, codec: str = "libx264", fps: int = 8) -> Path:
    """Encodes `video` (T, H, W, 3) with PyAV into the container that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = video.shape[2], video.shape[1], "yuv420p"
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_image(path: Path, height: int = 48, width: int = 40, seed: int = 0) -> Path:
    """A random picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def row(kind: str, media: str, question: str, answer: str) -> dict[str, str]:
    """A row of the published columns."""
    return {"source_type": kind, "media_path": media, "question": question, "answer": answer}


def splits(train: int = 12, test: int = 4) -> dict[str, list[dict[str, str]]]:
    """Rows of the three modalities: `train` of them in train, `test` in each of three test splits."""

    def make(count: int, part: str) -> list[list[dict[str, str]]]:
        text = [row("text", "", f"is {n} {'very ' * (n % 5)}good in {part}?", "positive") for n in range(count)]
        image = [row("image", f"media/{part}_{n}.png", "what is shown?", "red") for n in range(count)]
        video = [row("video", f"media/{part}_{n}.mp4", "What tampering?", "ABCDEF"[n % 6]) for n in range(count)]
        return [text, image, video]

    text, image, video = make(test, "test")
    a, b, c = make(train // 3, "train")
    names = ("glue_test_sst2", "image_test_caltech101", "video_test_action_sequence")
    return {"train": a + b + c, **dict(zip(names, (text, image, video), strict=True))}


def write_root(root: Path, content: dict[str, list[dict[str, str]]], media: bool = True) -> Path:
    """A data root in the published layout: root/MMT_47 (a DatasetDict) and root/media."""
    parts = {name: datasets.Dataset.from_list(rows) for name, rows in content.items()}
    datasets.DatasetDict(parts).save_to_disk(str(root / "MMT_47"))
    for rows in content.values() if media else ():
        for number, item in enumerate(rows):
            if item["source_type"] == "image":
                write_image(root / item["media_path"], 40 + number, 48, seed=number)
            if item["source_type"] == "video":
                write_video(root / item["media_path"], moving_square(10 + number % 3, 48))
    return root
