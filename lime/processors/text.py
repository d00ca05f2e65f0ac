"""What stands in the place of a processor where a language model takes text alone: its tokenizer and chat template."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from lime.processors.config import FAMILIES, ImageConfig, VideoConfig
from lime.processors.files import CheckpointFiles

log = logging.getLogger(__name__)

PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] + '\n' }}{% endfor %}"
"""For models that were not trained on conversations: a line for each turn; the end of sequence ends an answer."""


def is_text_only(model_type: str) -> bool:
    """Whether transformers knows this type as a causal language model, and neither as one that takes pictures nor as
    an encoder."""
    others = (
        FAMILIES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )
    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not any(model_type in kind for kind in others)


class TextProcessor:
    """A tokenizer with what is asked of a processor; it takes no pictures and no clips."""

    image_processor: Any = None
    video_processor: Any = None
    image_token_id = -1
    video_token_id = -1

    def __init__(self, tokenizer: Any, chat_template: str) -> None:
        self.tokenizer, self.chat_template = tokenizer, chat_template

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> Any:
        """As the tokenizer's, with this template."""
        return self.tokenizer.apply_chat_template(messages, **{"chat_template": self.chat_template, **options})

    def __call__(self, text: str | list[str], **options: Any) -> Any:
        """As the tokenizer's."""
        return self.tokenizer(text, **options)

    def decode(self, *args: Any, **options: Any) -> str:
        """As the tokenizer's."""
        return str(self.tokenizer.decode(*args, **options))

    def save_pretrained(self, folder: str | Path) -> None:
        """Tokenizer and template."""
        self.tokenizer.chat_template = self.chat_template
        self.tokenizer.save_pretrained(folder)


def load_text_processor(
    path: str | Path, revision: str | None, image: ImageConfig, video: VideoConfig
) -> TextProcessor:
    """The tokenizer of a text-only checkpoint. Raises ValueError for a visual budget, which has no effect."""
    budgets = {f"model.image.{key}": value for key, value in vars(image).items()}
    budgets |= {f"model.video.{key}": getattr(video, key) for key in ("fps", "max_pixels", "max_tokens")}
    for key, value in budgets.items():
        if value is not None:
            raise ValueError(f"{key}: has no effect on a model that takes text alone; leave it null")
    tokenizer = AutoTokenizer.from_pretrained(str(path), revision=revision)
    template = CheckpointFiles(str(path), revision).chat_template() or tokenizer.chat_template
    if not template:
        log.warning(
            "%s has no chat template (it was not trained on conversations): a question is a line, its answer the next "
            "one, and %s ends it",
            path,
            tokenizer.eos_token,
        )
        begins = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
        template = ("{{ bos_token }}" if begins else "") + PLAIN_TEMPLATE
    return TextProcessor(tokenizer, template)
