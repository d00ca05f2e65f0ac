"""The published backbones as shapes: configurations in code, so that models can be built without any weights.

Sources: the `config.json` files of the hub checkpoints named in `Architecture.checkpoint`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Architecture:
    """A published backbone.

    Attributes:
        name: name of the model in the configuration.
        family: `llava_onevision` or `qwen2_vl`.
        checkpoint: hub name of its weights.
        config: keyword arguments of the transformers configuration class.
    """

    name: str
    family: str
    checkpoint: str
    config: Callable[[], dict[str, Any]]


def _qwen2(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int, tied: bool
) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied,
    }


def _llava_onevision(text: dict[str, Any]) -> dict[str, Any]:
    # SigLIP so400m at 384 pixels, without the last block and the pooling head, whose outputs LLaVA does not use.
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 26,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
        "vision_use_head": False,
    }
    return {
        "text_config": {**text, "model_type": "qwen2"},
        "vision_config": vision,
        "tie_word_embeddings": text["tie_word_embeddings"],
    }


def _qwen2_vl(text: dict[str, Any]) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]}
    vision = {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": text["hidden_size"],
        "num_heads": 16,
        "mlp_ratio": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    return {
        "text_config": {**text, "rope_parameters": rope},
        "vision_config": vision,
        "tie_word_embeddings": text["tie_word_embeddings"],
    }


ARCHITECTURES: dict[str, Architecture] = {
    one.name: one
    for one in (
        Architecture(
            "llava_onevision",
            "llava_onevision",
            "llava-hf/llava-onevision-qwen2-7b-ov-hf",
            lambda: _llava_onevision(_qwen2(3584, 18944, 28, 28, 4, 152000, tied=False)),
        ),
        Architecture(
            "llava_onevision_0_5b",
            "llava_onevision",
            "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
            lambda: _llava_onevision(_qwen2(896, 4864, 24, 14, 2, 152000, tied=True)),
        ),
        Architecture(
            "qwen2vl",
            "qwen2_vl",
            "Qwen/Qwen2-VL-7B-Instruct",
            lambda: _qwen2_vl(_qwen2(3584, 18944, 28, 28, 4, 152064, tied=False)),
        ),
        Architecture(
            "qwen2vl_2b",
            "qwen2_vl",
            "Qwen/Qwen2-VL-2B-Instruct",
            lambda: _qwen2_vl(_qwen2(1536, 8960, 28, 12, 2, 151936, tied=True)),
        ),
    )
}


CHECKPOINTS = Path(__file__).parents[1] / "embedded" / "checkpoints"
"""Folder of the embedded backbones."""


def build_shapes(name: str, folder: Path | None = None) -> PreTrainedModel:
    """A backbone on the meta device: every shape, no weights, no memory.

    Args:
        name: a key of `ARCHITECTURES`, or the name of an embedded backbone.
        folder: a local checkpoint, of which only `config.json` is read; then the name does not matter.

    Raises:
        ValueError: unknown name.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    if folder is None and name in ARCHITECTURES:
        architecture = ARCHITECTURES[name]
        config = AutoConfig.for_model(architecture.family, **architecture.config())
    else:
        folder = folder or CHECKPOINTS / name
        if not (folder / "config.json").is_file():
            known = ", ".join(ARCHITECTURES)
            raise ValueError(f"model: no shapes for {name!r}: expected one of {known}, or a folder with a config.json")
        config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(config)
    return model
