"""Tiny models of the architectures of transformers, from their configurations: the table of docs/architectures.md.

python -m tests.tuner.architectures > docs/architectures.md
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto import modeling_auto as auto

import lime

SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "embedding_size", "d_embed"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim"), 48),
    **dict.fromkeys(("ffn_hidden_size", "n_inner", "dff", "moe_intermediate_size", "shared_intermediate_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers", "depth"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("head_dim", "d_kv", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "qk_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("vocab_size", "n_vocab"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k"), 2),
    "entity_vocab_size": 16,
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_chunk_size": 8,
    "num_key_value_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "rotary_dim": 4,
    "num_labels": 3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
"""Values for the options that a configuration has, under the names that they go by."""


@dataclass(frozen=True)
class Architecture:
    """A model type of transformers.

    Attributes:
        options: of its configuration, over `SIZES`; `...` leaves an option at its default.
        needs: arguments that `lime.apply` needs for it; it says so without them.
    """

    options: dict[str, Any] = field(default_factory=dict)
    needs: dict[str, Any] = field(default_factory=dict)


def _types(names: str, **needs: Any) -> dict[str, Architecture]:
    return {name: Architecture(needs=needs) for name in names.split()}


_LAYERS = {"depths": [1, 1], "hidden_sizes": [16, 32], "num_attention_heads": [2, 4]}
DECODERS = {
    **_types(
        "gpt2 gptj gpt_neox gpt_bigcode opt bloom mpt codegen llama mistral mixtral qwen2 qwen3 qwen2_moe gemma gemma2 "
        "gemma3_text phi phi3 stablelm starcoder2 olmo olmo2 cohere granite persimmon glm glm4 helium smollm3 biogpt "
        "xglm ctrl openai-gpt exaone4 bitnet arcee jetmoe falcon_h1 rwkv falcon"
    ),
    "gpt_neo": Architecture({"attention_types": [[["global", "local"], 1]]}),
    "deepseek_v2": Architecture(
        {"num_key_value_heads": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}
    ),
    "deepseek_v3": Architecture(
        {"num_key_value_heads": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}
    ),
    "nemotron": Architecture({"head_dim": 8, "num_key_value_heads": 2}),
    "qwen3_next": Architecture({"layer_types": ["linear_attention", "full_attention"]}),
    "jamba": Architecture({"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_offset": 0}),
    **_types("mamba", target_modules="all-linear"),
    "mamba2": Architecture({"head_dim": 16, "state_size": 8, "n_groups": 1}, {"target_modules": "all-linear"}),
}
ENCODERS = {
    **_types(
        "bert roberta albert electra distilbert deberta deberta-v2 mpnet mobilebert camembert xlm-roberta "
        "nystromformer big_bird modernbert roformer convbert xlm flaubert megatron-bert rembert yoso luke splinter "
        "data2vec-text bert-generation clip_text_model"
    ),
    "esm": Architecture({"vocab_size": 64, "position_embedding_type": "absolute"}),
    **_types("fnet", target_modules="all-linear"),
}
VISION = {
    **_types(
        "vit dinov2 dinov2_with_registers vit_msn vit_mae siglip_vision_model clip_vision_model dpt beit deit "
        "data2vec-vision ijepa imagegpt",
        scope="vision_tower",
    ),
    "yolos": Architecture({"image_size": [16, 16]}, {"scope": "vision_tower"}),
    **{
        name: Architecture(
            {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "patch_size": 2,
             "num_layers": ..., "num_hidden_layers": ..., "num_attention_heads": ...},
            {"scope": "vision_tower"},
        )
        for name in ("swin", "swinv2")
    },
    "segformer": Architecture(
        {**_LAYERS, "num_encoder_blocks": 2, "sr_ratios": [2, 1], "patch_sizes": [3, 3], "strides": [2, 2],
         "mlp_ratios": [2, 2], "decoder_hidden_size": 16, "image_size": ...},
        {"scope": "vision_tower"},
    ),
    "pvt": Architecture(
        {**_LAYERS, "num_encoder_blocks": 2, "sequence_reduction_ratios": [2, 1], "patch_sizes": [4, 2],
         "strides": [4, 2], "mlp_ratios": [2, 2]},
        {"scope": "vision_tower"},
    ),
    "pvt_v2": Architecture(
        {**_LAYERS, "num_encoder_blocks": 2, "sr_ratios": [2, 1], "patch_sizes": [3, 3], "strides": [2, 2],
         "mlp_ratios": [2, 2], "out_features": ["stage1", "stage2"]},
        {"scope": "vision_tower"},
    ),
    "convnext": Architecture(
        {"layer_scale_init_value": 1.0,
         "depths": [1, 1], "hidden_sizes": [16, 32], "num_stages": 2, "patch_size": 4, "image_size": 32,
         "out_features": ["stage1", "stage2"]},
        {"scope": "vision_tower", "target_modules": "all-linear"},
    ),
}  # fmt: skip
ENCODER_DECODERS = _types(
    "t5 mt5 umt5 longt5 switch_transformers bart mbart marian pegasus blenderbot blenderbot-small m2m_100 nllb-moe "
    "bigbird_pegasus plbart"
)
KINDS = {
    "decoder": DECODERS,
    "encoder": ENCODERS,
    "vision": VISION,
    "encoder-decoder": ENCODER_DECODERS,
}
ARCHITECTURES = {name: one for kind in KINDS.values() for name, one in kind.items()}
OTHER_TOKENS = {
    **_types("canine longformer led pegasus_x fsmt"),
    "funnel": Architecture({"block_sizes": [1, 1], "num_hidden_layers": ...}),
}
"""Types whose attention lays its tokens out in another order or number than the model's own."""

TOKENS = 6


def config_of(model_type: str) -> PretrainedConfig:
    """The tiny configuration of a type."""
    known = AutoConfig.for_model(model_type)
    options = {
        name: value
        for name, value in SIZES.items()
        if (getattr(known, name, None) is not None or name.endswith("_token_id"))
        and not isinstance(getattr(type(known), name, None), property)
    }
    options |= {**ARCHITECTURES, **OTHER_TOKENS}[model_type].options
    return AutoConfig.for_model(model_type, **{name: value for name, value in options.items() if value is not ...})


HEADS = (
    auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    auto.MODEL_FOR_CAUSAL_LM_MAPPING,
    auto.MODEL_FOR_MASKED_LM_MAPPING,
    auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    auto.MODEL_MAPPING,
)


def build(model_type: str) -> Any:
    """A random tiny model in evaluation mode: a sequence-to-sequence or causal model, else a masked one, else an image
    classifier, else the bare one."""
    config = config_of(model_type)
    kind: Any = next(mapping[type(config)] for mapping in HEADS if type(config) in mapping)
    torch.manual_seed(0)
    model = (kind[0] if isinstance(kind, tuple) else kind)(config).eval()
    with torch.no_grad():  # so that attention is far from uniform
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.weight.std() < 0.1:
                module.weight.mul_(4.0)
    return model


def inputs_of(model: Any) -> dict[str, Tensor]:
    """Two rows: of ids, the second padded on the right, or of pixels."""
    generator = torch.Generator().manual_seed(1)
    if model.main_input_name == "pixel_values":
        size = getattr(model.config, "image_size", 16)
        height, width = (size, size) if isinstance(size, int) else size
        channels = getattr(model.config, "num_channels", 3)
        return {"pixel_values": torch.randn(2, channels, height, width, generator=generator)}
    ids = torch.randint(3, 60, (2, TOKENS), generator=generator)
    mask = torch.ones_like(ids)
    ids[1, -2:], mask[1, -2:] = 0, 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(3, 60, (2, 4), generator=generator)
    return inputs


def output_of(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The model's first output; the same numbers are drawn on every call."""
    torch.manual_seed(3)
    out = model(**inputs)
    first: Tensor = next(value for value in out.to_tuple() if isinstance(value, Tensor) and value.is_floating_point())
    return first


def table() -> str:
    """The page docs/architectures.md."""
    lines = [HEADER]
    for kind, types in KINDS.items():
        for name, one in types.items():
            model = build(name)
            _, report = lime.apply(model, **one.needs)
            leaves: dict[str, int] = {}
            for row in report.rows:
                leaf = row.module.rpartition(".")[2]
                leaves[leaf] = leaves.get(leaf, 0) + 1
            needs = ", ".join(f"`{option}={value!r}`" for option, value in one.needs.items()) or "nothing"
            layers = ", ".join(f"{leaf} ({count})" for leaf, count in leaves.items())
            lines.append(f"| `{name}` | {type(model).__name__} | {kind} | {needs} | {layers} |")
    return "\n".join(lines) + "\n"


HEADER = f"""# Architectures

One line adapts a model of transformers, `lime.apply(model)`. This table holds what was tried: tiny models built from
the configurations of {len(ARCHITECTURES)} text-only, vision-only and encoder-decoder types. For each of them a test
checks that a fresh adapter changes nothing, that every trained parameter receives a gradient, that the adapter has an
effect and comes back from its file exactly, and that models that generate do so; and, where an argument is needed, that
the error without it names it in one sentence. The vision-language models of the project have their own tests.

Without arguments the attention projections of the language model are adapted, whatever they are called (`q_proj`,
`query`, `query_key_value`, `c_attn`, `qkv`, `dense`, …; GPT-2's `Conv1D` layers too). Layers of an attention module
that are no projections of tokens (gates, position biases) are left out and named in the log; models without attention
projections say which layers they have.

Six types lay their attention's tokens out in another order or number than the model's own (`canine`, `funnel`,
`longformer`, `led`, `pegasus_x`, `fsmt`). They adapt in the same way and take batches without padding; a padded batch
is refused with the layer's name, as its padding cannot be told apart there.

| type | class | kind | needs | adapted layers (of two blocks) |
|---|---|---|---|---|"""


if __name__ == "__main__":
    sys.stdout.write(table())
