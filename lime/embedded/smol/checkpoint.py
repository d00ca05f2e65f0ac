"""Both towers as one LLaVA-OneVision checkpoint, in the layout of the hub; its projector knows nothing yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from lime.embedded.smol.towers import PATCH, vision_config
from lime.system.atomic import write_json, write_text

TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<image>\\n' }}"
    "{% elif content['type'] == 'video' %}{{ '<video>\\n' }}"
    "{% else %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_INHERITED = ("architectures", "transformers_version", "_name_or_path", "dtype", "quantization_config")


def assemble(language: Any, tokenizer: Any, vision: dict[str, torch.Tensor], side: int, seed: int = 0) -> Any:
    """The joint model in float32, one tile of `side` pixels a picture; `tokenizer` gets the placeholders it needs.

    Rows of the placeholders in the embeddings and the projector are drawn with `seed`.
    """
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    tokenizer.pad_token, tokenizer.chat_template = "<|endoftext|>", TEMPLATE
    image, video = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    text = {key: value for key, value in language.config.to_dict().items() if key not in _INHERITED}
    places: dict[str, Any] = {"image_token_id": image, "video_token_id": video}
    config = LlavaOnevisionConfig(
        text_config=text | {"vocab_size": len(tokenizer)},
        vision_config=vision_config(side).to_dict(),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",  # without the class token
        vision_aspect_ratio="anyres_max_9",
        image_grid_pinpoints=[[side, side]],
        tie_word_embeddings=True,
        **places,
        image_token_index=image,
        video_token_index=video,
    )
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(vision)
    weights = language.model.state_dict()
    known = weights["embed_tokens.weight"]
    table = torch.empty(len(tokenizer), known.shape[1]).normal_(0, known.std().item())
    table[: len(known)] = known
    model.model.language_model.load_state_dict(weights | {"embed_tokens.weight": table})
    model.tie_weights()
    ends = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = ends, tokenizer.pad_token_id
    return model.eval()


def save_weights(model: Any, folder: Path) -> None:
    """Write configuration and weights (bfloat16) into `folder`."""
    model.to(torch.bfloat16).save_pretrained(folder)


def save_processor(tokenizer: Any, side: int, folder: Path) -> None:
    """Write tokenizer, template and processors into `folder`."""
    tokenizer.save_pretrained(folder)
    write_text(folder / "chat_template.jinja", TEMPLATE)
    pictures = {
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "do_convert_rgb": True,
        "do_pad": True,
        "image_grid_pinpoints": [[side, side]],
        "processor_class": "LlavaOnevisionProcessor",
    }
    write_json(folder / "preprocessor_config.json", pictures | {"image_processor_type": "LlavaOnevisionImageProcessor"})
    clips = {key: value for key, value in pictures.items() if key not in ("do_pad", "image_grid_pinpoints")}
    write_json(
        folder / "video_preprocessor_config.json", clips | {"video_processor_type": "LlavaOnevisionVideoProcessor"}
    )
    write_json(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": (side // PATCH) ** 2 + 1,
            "vision_feature_select_strategy": "default",
            "image_token": "<image>",
            "video_token": "<video>",
        },
    )
