"""LoRA-FA (arXiv 2308.03303): LoRA whose down-projection A stays as it was drawn."""

from __future__ import annotations

from lime.method.deltas.lora import LoRADelta


class LoRAFADelta(LoRADelta):
    """`zhat = (lora_alpha / r) B A dropout(x)` with A frozen; it is saved with the adapter.

    Arguments as in `LoRADelta`. Trains `r d_out` parameters, and keeps only the rank space (B, T, r) of its input for
    the backward pass.
    """

    frozen = ("A",)
