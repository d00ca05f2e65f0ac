"""Training loop of the embedded backbones: bfloat16 weights on float32 masters, Muon with AdamW, stages by minutes.

On a CPU with bfloat16 matrix units the fastest form is bfloat16 weights with float32 attention (the backward pass of
`scaled_dot_product_attention` is slow in bfloat16), the optimisers acting on float32 copies.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from lime.data.collate import IGNORED

logger = logging.getLogger(__name__)
ATTENTION = "sdpa_float32"


def sdpa_float32(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention in float32 whatever the dtype of its inputs: (B, H, T, D) -> (B, T, H, D)."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    mask = attention_mask
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.float()
    out = F.scaled_dot_product_attention(
        query.float(),
        key.float(),
        value.float(),
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=bool(causal) and mask is None and query.shape[2] > 1,
        scale=scaling,
    )
    return out.to(query.dtype).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, sdpa_float32)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def patches_by_matrix_product(tower: Any) -> None:
    """Compute Qwen2-VL's patch embedding, a convolution whose kernel is the whole patch, as the matrix product it is.

    On a CPU the backward pass of the convolution costs as much as the rest of the tower.
    """
    embedding = tower.patch_embed

    def forward(patches: Tensor) -> Tensor:
        weight = embedding.proj.weight
        return F.linear(patches.to(weight.dtype), weight.flatten(1))

    embedding.forward = forward


@dataclass
class Stage:
    """What a stage did: for the model card."""

    name: str
    minutes: float
    steps: int = 0
    losses: dict[str, float] = field(default_factory=dict)


def learning_rate(progress: float, step: int, decay_from: float) -> float:
    """Factor on the peak rate: 80 steps of warm-up, constant, then linear to 2% from `decay_from` of the time on."""
    decay = 1.0 if progress < decay_from else max(0.02, (1 - progress) / (1 - decay_from))
    return min(1.0, (step + 1) / 80) * decay


def _optimizers(masters: dict[str, nn.Parameter], peak: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside transformer blocks, AdamW for everything else."""
    inner = {name for name, p in masters.items() if p.ndim == 2 and ("layers" in name or "blocks" in name)}
    rest = [p for name, p in masters.items() if name not in inner]
    adamw = torch.optim.AdamW(rest, lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    if not inner:
        return [adamw]
    matrices = [p for name, p in masters.items() if name in inner]
    options: dict[str, Any] = {"weight_decay": 0.05, "momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
    return [adamw, torch.optim.Muon(matrices, lr=peak, **options)]


def train(
    stage: str,
    module: nn.Module,
    batches: Iterator[tuple[str, object]],
    loss_of: Callable[[object], Tensor],
    *,
    minutes: float,
    peak: float = 2e-3,
    decay_from: float = 0.5,
    clip: float = 1.0,
    every: int = 100,
) -> Stage:
    """Train `module` in place for `minutes` on (kind, batch) pairs; returns the running losses per kind.

    Matrices inside transformer blocks learn by Muon, everything else (embeddings, norms, heads) by AdamW.
    """
    masters = {name: nn.Parameter(p.detach().float().clone()) for name, p in module.named_parameters()}
    module.bfloat16()
    live = dict(module.named_parameters())
    optimizers = _optimizers(masters, peak)
    result, started, step = Stage(stage, minutes), time.monotonic(), 0
    while (progress := (time.monotonic() - started) / (60 * minutes)) < 1:
        kind, batch = next(batches)
        loss = loss_of(batch)
        loss.backward()
        for name, master in masters.items():
            gradient = live[name].grad
            master.grad = None if gradient is None else gradient.float()
            live[name].grad = None
        nn.utils.clip_grad_norm_([p for p in masters.values() if p.grad is not None], clip)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = peak * learning_rate(progress, step, decay_from)
            optimizer.step()
        with torch.no_grad():
            for name, master in masters.items():
                live[name].copy_(master)
        step += 1
        value = float(loss.detach())
        result.losses[kind] = 0.97 * result.losses.get(kind, value) + 0.03 * value
        if step % every == 0:
            losses = " ".join(f"{k} {v:.3f}" for k, v in sorted(result.losses.items()))
            elapsed = time.monotonic() - started
            logger.info(
                "%s: %.0f s, step %d, %.0f ms/step, loss %s", stage, elapsed, step, 1e3 * elapsed / step, losses
            )
    result.steps = step
    return result


def answer_loss(model: Any, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Mean cross-entropy over the answer tokens; logits are computed at those positions only."""
    hidden = model.model(**inputs, use_cache=False).last_hidden_state
    picked = labels[:, 1:] != IGNORED
    return F.cross_entropy(model.lm_head(hidden[:, :-1][picked]).float(), labels[:, 1:][picked])
