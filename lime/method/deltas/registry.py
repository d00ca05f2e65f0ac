"""PEFT types of linear layers by name."""

from __future__ import annotations

from lime.method.deltas.base import Delta
from lime.method.deltas.dora import DoRADelta
from lime.method.deltas.hydra_lora import HydraLoRADelta
from lime.method.deltas.lora import LoRADelta
from lime.method.deltas.lora_fa import LoRAFADelta
from lime.method.deltas.mix_lora import MixLoRADelta
from lime.method.deltas.mocle import MoCLEDelta
from lime.method.deltas.moe_dora import MoEDoRADelta
from lime.method.deltas.moe_lora import MoELoRADelta
from lime.method.deltas.moe_lora_fa import MoELoRAFADelta
from lime.method.deltas.mola import MoLADelta
from lime.method.deltas.more import MoREDelta
from lime.method.deltas.slicefine import SliceFineDelta

DELTAS: dict[str, type[Delta]] = {
    "lora": LoRADelta,
    "lora_fa": LoRAFADelta,
    "dora": DoRADelta,
    "slicefine": SliceFineDelta,
    "moe_lora": MoELoRADelta,
    "moe_lora_fa": MoELoRAFADelta,
    "moe_dora": MoEDoRADelta,
    "hydra_lora": HydraLoRADelta,
    "mix_lora": MixLoRADelta,
    "mola": MoLADelta,
    "mocle": MoCLEDelta,
    "more": MoREDelta,
}
"""Type names as `LimeSettings.peft` knows them."""
