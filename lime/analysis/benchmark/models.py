"""Named architectures with random weights: what a step or decoding costs does not depend on the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from lime.models.architectures import ARCHITECTURES, CHECKPOINTS
from lime.processors.config import EMBEDDED

QWEN2_896 = "qwen2_896"
"""A text model of the width of the 0.5B backbone, four layers, and a small vocabulary, so that the layers decide."""


SMOL_135M = "smollm2_135m"
"""The language model of `model=smol_llava`, with its vocabulary: q and o 576 -> 576, k and v 576 -> 192, 30 layers."""
_TEXT: dict[str, dict[str, Any]] = {
    QWEN2_896: {
        "model_type": "qwen2",
        "vocab_size": 1024,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 4,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
    },
    SMOL_135M: {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
    },
}


def names() -> tuple[str, ...]:
    """All architectures that can be built."""
    return (*_TEXT, *EMBEDDED, *ARCHITECTURES)


def build(
    name: str, dtype: str = "float32", layers: int = 0, attention: str = "eager", device: str = "cpu", seed: int = 0
) -> PreTrainedModel:
    """A model with random weights, frozen; `layers` in each tower, 0: as published.

    Raises:
        ValueError: a name that is none of `names()`.
    """
    torch.manual_seed(seed)
    config = _config(name)
    if layers:
        text = config.get_text_config()
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:1] * layers
        vision = getattr(config, "vision_config", None)
        if vision is not None:
            vision.depth = vision.num_hidden_layers = layers
    kind: Any = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    with torch.device(device):
        model: PreTrainedModel = kind.from_config(config, dtype=getattr(torch, dtype), attn_implementation=attention)
    model.requires_grad_(False)
    return model


def _config(name: str) -> Any:
    if name in _TEXT:
        return AutoConfig.for_model(**_TEXT[name], tie_word_embeddings=True, bos_token_id=None, eos_token_id=None)
    if name in EMBEDDED:
        return AutoConfig.from_pretrained(CHECKPOINTS / name)
    if name in ARCHITECTURES:
        return AutoConfig.for_model(ARCHITECTURES[name].family, **ARCHITECTURES[name].config())
    raise ValueError(f"--architecture: unknown {name!r}; expected one of {', '.join(names())}")


def text_inputs(model: PreTrainedModel, batch: int, tokens: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random rows of text without padding: `input_ids` and `attention_mask`, (batch, tokens)."""
    vocabulary = min(model.config.get_text_config().vocab_size, 1000)  # ids below any special token
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, vocabulary, (batch, tokens), generator=generator).to(model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def parameters(model: nn.Module) -> int:
    """All parameters, each counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
