"""Random-weight models of the real transformers classes, small enough for a test, and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

import lime
from lime.tuner.layers.linear import LimeLinear

FAMILIES = ("llava_onevision", "qwen2_vl")
VOCABULARY, PAD, BOS, EOS, IMAGE, VIDEO, VISION_START, VISION_END = 96, 80, 80, 81, 82, 83, 84, 85
WORDS = 70  # ids below this are plain words


def build(family: str, seed: int = 0, layers: int = 2, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A frozen-looking model in evaluation mode; the same seed gives the same weights."""
    torch.manual_seed(seed)
    text = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD,
    }  # fmt: skip
    model: PreTrainedModel
    if family == "qwen2_vl":
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
        model = Qwen2VLForConditionalGeneration(
            Qwen2VLConfig(
                text_config={**text, "rope_parameters": rope},
                vision_config={
                    "depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4,
                    "spatial_merge_size": 2, "temporal_patch_size": 2,
                },
                image_token_id=IMAGE, video_token_id=VIDEO,
                vision_start_token_id=VISION_START, vision_end_token_id=VISION_END,
            )
        )  # fmt: skip
    else:
        model = LlavaOnevisionForConditionalGeneration(
            LlavaOnevisionConfig(
                text_config={**text, "model_type": "qwen2"},
                vision_config={
                    "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2, "image_size": 16, "patch_size": 8, "vision_use_head": False,
                },
                image_token_index=IMAGE, video_token_index=VIDEO, image_grid_pinpoints=[[16, 16]],
            )
        )  # fmt: skip
    # Larger weights than at initialisation, so that attention and routing are far from uniform.
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.mul_(6.0)
    return model.to(dtype).eval()


def apply_random(model: PreTrainedModel, seed: int = 1, **options: Any) -> Any:
    """Adapt a model with LiME whose update is not zero, so that what is tested has an effect."""
    torch.manual_seed(seed)
    settings = lime.tuner.preset_settings(**{"r": 4, **options})
    adapted, _ = lime.apply(model, lime.LimeConfig.from_settings(settings, init_weights=False))
    with torch.no_grad():
        for layer in lime_layers(adapted):
            for gamma in layer.lime_gamma.values():
                gamma.fill_(0.5)
            for experts in layer.lime_experts.values():
                experts.uniform_(0.2, 1.8)
    return adapted.eval()


def lime_layers(model: nn.Module) -> list[LimeLinear]:
    return [module for module in model.modules() if isinstance(module, LimeLinear)]


def image(family: str, seed: int) -> dict[str, Tensor]:
    """Processor output of one image: a base view and one tile, or a 4 x 4 grid of patches."""
    g = torch.Generator().manual_seed(seed)
    if family == "qwen2_vl":
        return {
            "pixel_values": torch.randn(16, 3 * 2 * 4 * 4, generator=g),
            "image_grid_thw": torch.tensor([[1, 4, 4]]),
        }
    return {
        "pixel_values": torch.randn(1, 2, 3, 16, 16, generator=g),
        "image_sizes": torch.tensor([[16, 16]]),
    }


def row(family: str, words: int, seed: int, with_image: bool = False) -> dict[str, Any]:
    """One unpadded row: token ids, and its image where it has one."""
    g = torch.Generator().manual_seed(seed)
    text = torch.randint(1, WORDS, (words,), generator=g)
    if not with_image:
        return {"ids": text, "image": None}
    count = 4 if family == "qwen2_vl" else _llava_tokens()
    visual = torch.full((count,), IMAGE)
    if family == "qwen2_vl":
        visual = torch.cat([torch.tensor([VISION_START]), visual, torch.tensor([VISION_END])])
    return {"ids": torch.cat([text[:2], visual, text[2:]]), "image": image(family, seed)}


def _llava_tokens() -> int:
    return 4 + 2 * (2 + 1)  # base view; the tile's rows, each with a newline


def batch(family: str, rows: list[dict[str, Any]], side: str = "right", width: int | None = None) -> dict[str, Tensor]:
    """Model inputs of some rows, padded on one side to `width` or to the longest."""
    T = width or max(len(r["ids"]) for r in rows)
    ids = torch.full((len(rows), T), PAD)
    mask = torch.zeros(len(rows), T, dtype=torch.long)
    for i, r in enumerate(rows):
        span = slice(T - len(r["ids"]), T) if side == "left" else slice(0, len(r["ids"]))
        ids[i, span], mask[i, span] = r["ids"], 1
    out = {"input_ids": ids, "attention_mask": mask}
    images = [r["image"] for r in rows if r["image"] is not None]
    if images:
        out |= {key: torch.cat([one[key] for one in images]) for key in images[0]}
        if family == "qwen2_vl":
            out["mm_token_type_ids"] = (ids == IMAGE).long()
    elif family == "qwen2_vl":
        out["mm_token_type_ids"] = torch.zeros_like(ids)
    return out


def logits(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Logits of the real tokens of each row, (tokens, vocabulary)."""
    with torch.no_grad():
        out = model(**inputs).logits
    return [out[i, inputs["attention_mask"][i].bool()] for i in range(out.shape[0])]
