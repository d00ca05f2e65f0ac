"""NEFTune (arXiv 2310.05914): noise on the embeddings of the text, in training alone.

Shapes: B rows, T tokens, D width of an embedding, V kinds of visual tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

VISUAL = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
"""Options of a model's configuration that name the tokens in whose place it puts images and videos."""


@contextmanager
def noisy_embeddings(model: Any, inputs: dict[str, Tensor], alpha: float) -> Iterator[None]:
    """Add uniform noise to the input embeddings of the forward passes inside, drawn from torch's global generator:

        e_BTD + U(-1, 1) alpha / sqrt(L_B D)

    L counts the text tokens of a row, as in the source. Padding and the places of images and videos are no text: they
    get no noise and do not count. (The Trainer of transformers counts the padded width of the batch instead.)
    """
    ids_BT = inputs["input_ids"]
    visual = [value for key in VISUAL if isinstance(value := getattr(model.config, key, None), int)]
    visual_V = torch.tensor(visual, dtype=ids_BT.dtype, device=ids_BT.device)
    text_BT = inputs["attention_mask"].bool() & ~torch.isin(ids_BT, visual_V)
    lengths_B11 = text_BT.sum(1).clamp_min(1)[:, None, None]

    def add(module: nn.Module, args: Any, embeddings: Tensor) -> Tensor:
        if embeddings.shape[:-1] != ids_BT.shape:  # of a single token, by which some models look for placeholders
            return embeddings
        noise_BTD = torch.empty_like(embeddings, dtype=torch.float32).uniform_(-1, 1)
        scale_B11 = alpha / (lengths_B11 * math.prod(embeddings.shape[2:])).sqrt()
        return embeddings + (noise_BTD * scale_B11 * text_BT.unsqueeze(-1)).to(embeddings.dtype)

    handle = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
