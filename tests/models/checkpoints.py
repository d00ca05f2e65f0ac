"""Checkpoints, made on the spot, of architectures that model=hf takes: Qwen2.5-VL and SmolVLM."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from tests.data import tiny

OTHERS = ("qwen2_5_vl", "smolvlm")
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SMOLVLM_TOKENS = ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", "<|im_start|>"]
SMOLVLM_TOKENS += [f"<row_{i}_col_{j}>" for i in range(1, 5) for j in range(1, 5)]


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="lime-others-")


@functools.cache
def checkpoint(model_type: str) -> Path:
    """A checkpoint of this type, made once per test process; treat it as read-only."""
    folder = Path(_scratch().name) / model_type
    folder.mkdir()
    torch.manual_seed(0)
    return (_qwen2_5_vl if model_type == "qwen2_5_vl" else _smolvlm)(folder)


def _text(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip


def _qwen2_5_vl(folder: Path) -> Path:
    tokenizer = tiny.tokenizer("qwen2_vl")
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tiny.SPECIALS["qwen2_vl"]}
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4, "out_hidden_size": 32,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 16, "fullatt_block_indexes": [1],
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = Qwen2_5_VLConfig(
        text_config={**_text(tokenizer), "rope_parameters": rope},
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    files = tiny.processor_files("qwen2_vl")
    files["processor_config.json"] = {"processor_class": "Qwen2_5_VLProcessor"}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(tiny.TEMPLATES["qwen2_vl"])
    return folder


def _smolvlm(folder: Path) -> Path:
    tokenizer = tiny.tokenizer("llava_onevision")
    tokenizer.add_special_tokens({"additional_special_tokens": SMOLVLM_TOKENS})
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    config = SmolVLMConfig(
        text_config={**_text(tokenizer), "model_type": "llama"},
        vision_config=vision,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    normal = {"do_convert_rgb": True, "do_rescale": True, "do_normalize": True, "do_resize": True, "resample": 1}
    normal |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255, "do_pad": True}
    images = {
        **normal, "image_processor_type": "SmolVLMImageProcessor", "do_image_splitting": True,
        "size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": "SmolVLMProcessor", "image_seq_len": 4})
    )
    (folder / "chat_template.jinja").write_text(SMOLVLM_TEMPLATE)
    return folder
