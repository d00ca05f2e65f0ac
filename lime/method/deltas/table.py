"""Every PEFT type and mixture of experts, described once and without torch.

All else that differs from type to type is asked of this table: which options there are, what routes and how, the
methods of tables and command lines and their titles. A type of your own is two files: a module with its class that
calls `register`, and its YAML (docs/method.md). One of the package is an entry here beside them, so that a command line
is checked without torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lime.method.deltas.base import Delta

ORIENTATIONS = ("columns", "rows", "both")
PROMPT_INITS = ("vocabulary", "normal")
LORA_OPTIONS = ("r", "lora_alpha", "rslora", "dropout")
TOP_2: dict[str, Any] = {"selection": "topk", "top_k": 2, "temperature": 1.0, "jitter_noise": 0.0}
DENSE: dict[str, Any] = {"selection": "dense", "temperature": 1.0, "jitter_noise": 0.0}
"""Routings of a mixture: the two largest weights, or all."""


@dataclass(frozen=True)
class PeftType:
    """One PEFT type.

    Attributes:
        name: `peft` of `LimeSettings`, `peft.type` of a configuration.
        title: its name as papers write it, for tables and figures.
        delta: class of its update of a linear layer, or `module:Class`, which is then imported when a layer is adapted;
            absent for the two types that are no `Delta` (`prompt_tuning` and `any`).
        options: options of `LimeSettings` that shape the update. The class gets those, and `num_experts` where it is a
            mixture.
        routing: of a mixture of experts with its own learned router, the routing of its paper: `TOP_2`, `DENSE`, or one
            of them with other values; absent for a type that LiME modulates.
        by_sequence: a mixture that routes once for a whole sequence, by its mean embedding, and not by token.
        plain: options that the method without experts sets.
        limits: of its settings, further conditions: option, whether it holds, and what is expected.
    """

    name: str
    title: str
    delta: str | type[Delta] | None = None
    options: tuple[str, ...] = LORA_OPTIONS
    routing: dict[str, Any] | None = None
    by_sequence: bool = False
    plain: dict[str, Any] = field(default_factory=dict)
    limits: Callable[[Any], Iterable[tuple[str, bool, str]]] = lambda settings: ()

    @property
    def is_mixture(self) -> bool:
        """Whether the type is a mixture of experts by itself, without LiME."""
        return self.routing is not None

    def delta_class(self) -> type[Delta]:
        """The class of the update."""
        assert self.delta is not None, f"{self.name} has no class for one linear layer"
        if not isinstance(self.delta, str):
            return self.delta
        module, _, name = self.delta.partition(":")
        kind: type[Delta] = getattr(import_module(module), name)
        return kind

    def delta_options(self, settings: Any) -> dict[str, Any]:
        """What the constructor of `delta` takes of the settings of one layer. The layer's number of experts holds its
        `expert_layout`, and `lora_alpha` its `rslora`: `(alpha sqrt(r)) / r` is `alpha / sqrt(r)`."""
        options = [option for option in self.options if option not in ("expert_layout", "rslora")]
        values = {option: getattr(settings, option) for option in options + ["num_experts"] * self.is_mixture}
        if "rslora" in self.options and settings.rslora:
            values["lora_alpha"] *= math.sqrt(settings.r)
        return values


@dataclass(frozen=True)
class Method:
    """A row of a table of results: a type, with LiME's experts or as it is."""

    type: PeftType
    lime: bool

    @property
    def name(self) -> str:
        """`lime_lora`, `lora`, `moe_lora`."""
        return f"lime_{self.type.name}" if self.lime else self.type.name

    @property
    def title(self) -> str:
        """LiME LoRA, LoRA, MoE-LoRA."""
        return f"LiME {self.type.title}" if self.lime else self.type.title

    @property
    def is_plain(self) -> bool:
        """Whether it has no experts."""
        return not (self.lime or self.type.is_mixture)


TYPES: dict[str, PeftType] = {}
METHODS: dict[str, Method] = {}
"""By name; of a type `lime_NAME` and NAME, of a mixture NAME alone."""
MIXTURES: dict[str, dict[str, Any]] = {}
"""Types that are mixtures of experts by themselves, and the routing of each by its own paper."""


def register(kind: PeftType) -> None:
    """Make a type known, in this process, as an option of LiME and on the command line.

    Raises:
        ValueError: another type has that name, or it reads as that of a method of LiME.
    """
    if TYPES.get(kind.name, kind) != kind or is_lime(kind.name):
        raise ValueError(f"{kind.name}: there is a PEFT type or method of that name already; take another name")
    TYPES[kind.name] = kind
    if kind.routing is not None:
        MIXTURES[kind.name] = kind.routing
    else:
        METHODS[f"lime_{kind.name}"] = Method(kind, lime=True)
    if kind.name != "any":  # alone it would be another library's
        METHODS[kind.name] = Method(kind, lime=False)


def method_of(peft: str, enabled: bool) -> Method | None:
    """The method that a PEFT type makes, with experts or without; None for another library's type without LiME."""
    return METHODS.get(f"lime_{peft}" if enabled and not TYPES[peft].is_mixture else peft)


def is_lime(method: str) -> bool:
    """Whether a method is LiME over a type, which need not be known here."""
    return method.startswith("lime_")


def title_of(method: str) -> str:
    """Title of a method; its name where its type is not known here."""
    return METHODS[method].title if method in METHODS else method


def type_options() -> tuple[str, ...]:
    """Options that only some types have."""
    return tuple(dict.fromkeys(option for kind in TYPES.values() for option in kind.options))


def _mix_lora(settings: Any) -> Iterable[tuple[str, bool, str]]:
    fits = settings.num_experts % 2 == 0 and settings.num_experts <= 2 * settings.r
    yield "num_experts", fits, f"an even number up to 2 r ({2 * settings.r}): as many gates for A as for B"


def _more(settings: Any) -> Iterable[tuple[str, bool, str]]:
    largest = 2 * settings.r
    yield "num_experts", settings.num_experts <= largest, f"at most 2 r ({largest}), the largest rank"


def _prompt(settings: Any) -> Iterable[tuple[str, bool, str]]:
    yield "scope", settings.scope == "language_model", "language_model, whose input takes the virtual tokens"


_HERE = "lime.method.deltas"

for _type in (
    PeftType("lora", "LoRA", f"{_HERE}.lora:LoRADelta"),
    PeftType("lora_fa", "LoRA-FA", f"{_HERE}.lora_fa:LoRAFADelta"),
    PeftType("dora", "DoRA", f"{_HERE}.dora:DoRADelta"),
    PeftType(
        "slicefine",
        "SliceFine",
        f"{_HERE}.slicefine:SliceFineDelta",
        ("r", "dropout", "orientation"),
        plain={"orientation": "both"},
    ),
    PeftType("prompt_tuning", "prompt tuning", options=("num_virtual_tokens", "prompt_init"), limits=_prompt),
    PeftType("any", "any", options=("base", "base_options")),
    PeftType("moe_lora", "MoE-LoRA", f"{_HERE}.moe_lora:MoELoRADelta", routing=TOP_2),
    PeftType("moe_lora_fa", "MoE-LoRA-FA", f"{_HERE}.moe_lora_fa:MoELoRAFADelta", routing=TOP_2),
    PeftType("moe_dora", "MoE-DoRA", f"{_HERE}.moe_dora:MoEDoRADelta", routing=TOP_2),
    PeftType("hydra_lora", "HydraLoRA", f"{_HERE}.hydra_lora:HydraLoRADelta", routing=DENSE),
    PeftType("mix_lora", "MixLoRA", f"{_HERE}.mix_lora:MixLoRADelta", routing=DENSE, limits=_mix_lora),
    PeftType("mola", "MoLA", f"{_HERE}.mola:MoLADelta", (*LORA_OPTIONS, "expert_layout"), routing=TOP_2),
    PeftType("mocle", "MoCLE", f"{_HERE}.mocle:MoCLEDelta", routing=DENSE, by_sequence=True),
    PeftType("more", "MoRE", f"{_HERE}.more:MoREDelta", routing={**TOP_2, "top_k": 1}, by_sequence=True, limits=_more),
):
    register(_type)
