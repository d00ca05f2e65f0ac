"""Prompt tuning (arXiv 2104.08691) as an update: learned virtual tokens before the input embeddings.

Shapes: B sequences, T tokens, V virtual tokens, H embedding width, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lime.method.deltas.table import PROMPT_INITS

NORMAL_STD = 0.02


class PromptDelta(nn.Module):
    """The frozen part e0 of a prompt and its learned offset d, both (V, H).

        prompt = e0 + d * (P + gamma p_s)          with LiME
        prompt = e0 + d                            without

    `d` starts at zero. e0 is the buffer `initial`: it never trains, and is saved with the adapter.

    Args:
        embedding_NH: embeddings of the vocabulary.
        num_virtual_tokens: V.
        init: `vocabulary`, the embeddings of V tokens drawn at random without replacement (with it where V exceeds the
            vocabulary); `normal`, from N(0, 0.02^2). Both from torch's global generator.
        dtype: dtype of e0 and d.
        zero_init: start at `d = 0` (the method); `False` starts at a random offset, for tests.

    Raises:
        ValueError: unknown init.
    """

    frozen: tuple[str, ...] = ()
    initial: Tensor

    def __init__(
        self,
        embedding_NH: Tensor,
        *,
        num_virtual_tokens: int,
        init: str = "vocabulary",
        dtype: torch.dtype = torch.float32,
        zero_init: bool = True,
    ):
        super().__init__()
        vocabulary, width = embedding_NH.shape
        device = embedding_NH.device
        if init == "vocabulary":
            draws = -(-num_virtual_tokens // vocabulary)
            rows = torch.cat([torch.randperm(vocabulary, device="cpu") for _ in range(draws)])[:num_virtual_tokens]
            initial_VH = embedding_NH.detach().index_select(0, rows.to(device)).to(dtype)
        elif init == "normal":
            initial_VH = torch.empty(num_virtual_tokens, width, dtype=dtype, device=device).normal_(0.0, NORMAL_STD)
        else:
            raise ValueError(f"prompt_init: expected one of {', '.join(PROMPT_INITS)}, got {init!r}")
        self.register_buffer("initial", initial_VH)
        self.offset = nn.Parameter(torch.zeros(num_virtual_tokens, width, dtype=dtype, device=device))
        if not zero_init:
            nn.init.normal_(self.offset, std=0.2)

    def frozen_signal(self, embeddings_BTH: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Frozen routing signal `z = e0 + mean input embedding`, shape (B, V, H)."""
        mean_BH = mean_embedding(embeddings_BTH, mask_BT).to(self.initial.dtype)
        return self.initial + mean_BH.unsqueeze(1)


def mean_embedding(embeddings_BTH: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Mean over the unmasked tokens of each sequence, in float32 or wider, shape (B, H); zero where there are none."""
    embeddings_BTH = embeddings_BTH.to(torch.promote_types(embeddings_BTH.dtype, torch.float32))
    if mask_BT is None:
        return embeddings_BTH.mean(1)
    kept_BT = mask_BT.to(embeddings_BTH.dtype)
    return torch.einsum("bth,bt->bh", embeddings_BTH, kept_BT) / kept_BT.sum(1, keepdim=True).clamp_min(1)
