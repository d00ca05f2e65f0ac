"""The embedded backbones: small models of the real transformers classes, with tokenizer, templates and processors.

Both are of the shapes of their large relatives (Qwen2 decoder with grouped keys and values, SigLIP tower or Qwen2-VL's
own, the same special tokens and chat templates) at widths that a laptop trains in minutes. Nothing here is loaded to
use them: once saved, they are ordinary checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from lime.system.atomic import write_json, write_text

FAMILIES = {"tiny_llava_onevision": "llava_onevision", "tiny_qwen2vl": "qwen2_vl"}
IMAGE_SIZE = 32  # LLaVA-OneVision: side of the vision tower's input, pixels
PATCH = 8
FRAMES = 8
QWEN_IMAGE_SIZE = 64
QWEN_FRAME_SIZE = 48

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<image>",
    "<video>",
]
VOCABULARY = 2100  # byte-level BPE, before the special tokens

# the turns of LLaVA-OneVision: media first, then the text on a line of its own
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] }}"
    "{% if message['content'] is string %}{{ '\n' + message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ ' <image>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}{{ ' <video>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ '\n' + part['text'] }}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# the turns of Qwen2-VL: a default system turn, media between vision marks
QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str]) -> Qwen2Tokenizer:
    """Byte-level BPE of `VOCABULARY` entries over `texts`: a Qwen2 tokenizer with both families' special tokens."""
    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    model = json.loads(raw.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(m) for m in model["merges"]],  # type: ignore[misc]
        unk_token=None,  # type: ignore[arg-type]  # byte-level: nothing is unknown
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=2048,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS})
    return tokenizer


def token_id(tokenizer: Qwen2Tokenizer, token: str) -> int:
    identity = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(identity, int)
    return identity


def _text_config(tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "bos_token_id": token_id(tokenizer, "<|endoftext|>"),
        "eos_token_id": token_id(tokenizer, "<|im_end|>"),
        "pad_token_id": token_id(tokenizer, "<|endoftext|>"),
    }


def build(name: str, tokenizer: Qwen2Tokenizer, seed: int = 0) -> PreTrainedModel:
    """The randomly initialised backbone `name`."""
    torch.manual_seed(seed)
    text = _text_config(tokenizer)
    if FAMILIES[name] == "llava_onevision":
        return LlavaOnevisionForConditionalGeneration(
            LlavaOnevisionConfig(
                text_config={**text, "model_type": "qwen2"},
                vision_config={
                    "model_type": "siglip_vision_model",
                    "hidden_size": 128,
                    "intermediate_size": 384,
                    "num_hidden_layers": 3,
                    "num_attention_heads": 4,
                    "image_size": IMAGE_SIZE,
                    "patch_size": PATCH,
                    "vision_use_head": False,
                },
                image_token_index=token_id(tokenizer, "<image>"),
                video_token_index=token_id(tokenizer, "<video>"),
                image_grid_pinpoints=[[IMAGE_SIZE, IMAGE_SIZE]],
                tie_word_embeddings=True,
            )
        )
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    half = head_dim // 2
    sections = [half // 4, (half - half // 4) // 2, half - half // 4 - (half - half // 4) // 2]
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            text_config={
                **text,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections},
            },
            vision_config={
                "depth": 3,
                "embed_dim": 128,
                "hidden_size": text["hidden_size"],
                "num_heads": 4,
                "mlp_ratio": 3,
                "patch_size": PATCH,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
            },
            image_token_id=token_id(tokenizer, "<|image_pad|>"),
            video_token_id=token_id(tokenizer, "<|video_pad|>"),
            vision_start_token_id=token_id(tokenizer, "<|vision_start|>"),
            vision_end_token_id=token_id(tokenizer, "<|vision_end|>"),
            tie_word_embeddings=True,
        )
    )


def save_processor(name: str, tokenizer: Qwen2Tokenizer, folder: Path) -> None:
    """Tokenizer, chat template and processor configurations in the layout of any checkpoint of the family."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    rescale: dict[str, Any] = {
        "do_convert_rgb": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
    }
    if FAMILIES[name] == "llava_onevision":
        normal = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
        size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        common = {**rescale, **normal, "do_resize": True, "size": size}
        image: dict[str, Any] = {"image_processor_type": "LlavaOnevisionImageProcessor", "do_pad": True}
        image["image_grid_pinpoints"] = [[IMAGE_SIZE, IMAGE_SIZE]]
        video: dict[str, Any] = {"video_processor_type": "LlavaOnevisionVideoProcessor"}
        processor: dict[str, Any] = {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": (IMAGE_SIZE // PATCH) ** 2,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
            "image_token": "<image>",
            "video_token": "<video>",
        }
        template = LLAVA_TEMPLATE
    else:
        normal = {
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        }
        common = {
            **rescale,
            **normal,
            "do_resize": True,
            "patch_size": PATCH,
            "temporal_patch_size": 2,
            "merge_size": 2,
        }
        image = {"image_processor_type": "Qwen2VLImageProcessor"}
        image["size"] = {"shortest_edge": 16 * 16, "longest_edge": QWEN_IMAGE_SIZE**2}
        video = {"video_processor_type": "Qwen2VLVideoProcessor"}
        video["size"] = {"shortest_edge": 16 * 16, "longest_edge": QWEN_FRAME_SIZE**2}
        processor = {"processor_class": "Qwen2VLProcessor"}
        template = QWEN_TEMPLATE
    common["processor_class"] = processor["processor_class"]
    write_json(folder / "preprocessor_config.json", common | image)
    write_json(folder / "video_preprocessor_config.json", common | video)
    write_json(folder / "processor_config.json", processor)
    write_text(folder / "chat_template.jinja", template)


def visual_tokens(name: str, kind: str) -> str:
    """The placeholder run that stands for one image or video of the embedded benchmark's size in a prompt."""
    if FAMILIES[name] == "llava_onevision":
        side = IMAGE_SIZE // PATCH
        pooled = (side + 1) // 2
        count = side * side + side * (side + 1) if kind == "image" else FRAMES * pooled * pooled + 1
        return " " + f"<{kind}>" * count
    side = (QWEN_IMAGE_SIZE if kind == "image" else QWEN_FRAME_SIZE) // PATCH // 2
    count = side * side * (1 if kind == "image" else FRAMES // 2)
    return "<|vision_start|>" + f"<|{kind}_pad|>" * count + "<|vision_end|>"


def render(name: str, turns: list[tuple[str, str]], kind: str | None = None) -> list[tuple[str, bool]]:
    """A conversation as text pieces with a mark on those that are learned (answers with their end token)."""
    qwen = FAMILIES[name] == "qwen2_vl"
    pieces = [("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", False)] if qwen else []
    for number, (question, answer) in enumerate(turns):
        media = visual_tokens(name, kind) if kind and number == 0 else ""
        user = f"<|im_start|>user\n{media}{question}" if qwen else f"<|im_start|>user{media}\n{question}"
        pieces.append((f"{user}<|im_end|>\n<|im_start|>assistant\n", False))
        pieces.append((f"{answer}<|im_end|>", True))
        pieces.append(("\n", False))
    return pieces[:-1]
