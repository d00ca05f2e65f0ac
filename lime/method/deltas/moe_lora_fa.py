"""MoE-LoRA-FA: MoE-LoRA whose down-projections stay as they were drawn."""

from __future__ import annotations

from lime.method.deltas.moe_lora import MoELoRADelta


class MoELoRAFADelta(MoELoRADelta):
    """`MoELoRADelta` with every A frozen, those of the routed experts and of the shared one, as LoRA-FA (arXiv
    2308.03303) freezes the A of LoRA; they are saved with the adapter.

    Trains `(E + 1) r d_out` parameters, and its router `E d_in`.
    """

    frozen = ("A",)
