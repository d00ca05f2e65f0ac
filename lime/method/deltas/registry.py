"""PEFT types of linear layers by name."""

from __future__ import annotations

from lime.method.deltas.base import Delta
from lime.method.deltas.dora import DoRADelta
from lime.method.deltas.lora import LoRADelta
from lime.method.deltas.lora_fa import LoRAFADelta
from lime.method.deltas.slicefine import SliceFineDelta

DELTAS: dict[str, type[Delta]] = {
    "lora": LoRADelta,
    "lora_fa": LoRAFADelta,
    "dora": DoRADelta,
    "slicefine": SliceFineDelta,
}
"""Type names as `LimeSettings.peft` knows them."""
