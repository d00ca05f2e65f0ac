"""The types that the battery runs over. A new type is a new row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lime.method.deltas import table

RANK, EXPERTS = 4, 4

CAUSAL_MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "top-k, 3-grams, token norm": {"selection": "topk", "n_gram": 3, "routing_norm": "token"},
    "learned router, soft, 2-grams": {"router": "learned", "soft": True, "n_gram": 2},
}
"""Routing choices between which every causal branch of the method is taken."""
MIXTURE_MODES: dict[str, dict[str, Any]] = {"default": {}, "auto, 3-grams": {"selection": "auto", "n_gram": 3}}
"""The same for the mixtures that route by token."""

BEYOND_MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "scaled, soft, 2-grams": {"routing_norm": "scaled", "feature_slice": "leading", "soft": True, "n_gram": 2},
    "features of largest variance by the fused way": {"routing_norm": "slice", "rank_modulation": False},
}
MODULATORS = frozenset({"lime_experts.default", "lime_shared.default", "lime_gamma.default"})
"""Last parts of the names of a layer's trained modulators, with the zero-parameter router."""


@dataclass(frozen=True)
class Type:
    """A PEFT type, alone or under LiME.

    Attributes:
        options: what `lime.apply` is given.
        trained: last parts of the names of the update's trained parameters.
        count: number of them in one row of the report, of `(d_in, d_out, r)`.
        routed: it has experts.
        mixture: these are a mixture's own, with a learned router, and not LiME's modulators.
        starts_frozen: a fresh adapter changes nothing (a prompt of initial tokens does).
        exact_in_bf16: not even in the last digit of a bf16 base.
        causal: no output depends on later tokens (the routing of a prompt reads the whole input).
        beyond: with what is not of the paper: experts that modulate the rank, and routing that was calibrated.
    """

    options: dict[str, Any]
    trained: frozenset[str]
    count: Callable[[int, int, int], int]
    routed: bool = True
    mixture: bool = False
    starts_frozen: bool = True
    exact_in_bf16: bool = True
    causal: bool = True
    beyond: bool = False

    @property
    def modes(self) -> dict[str, dict[str, Any]]:
        if self.beyond:
            return BEYOND_MODES
        if self.mixture and self.causal:
            return MIXTURE_MODES
        return CAUSAL_MODES if self.routed and not self.mixture else {"default": {}}

    @property
    def modulators(self) -> frozenset[str]:
        """Last parts of the names of a layer's trained modulators (with the zero-parameter router), or of the router
        of a mixture."""
        if self.mixture:
            return frozenset({"lime_router.default.weight"})
        if self.beyond:
            return MODULATORS | {"lime_ranks.default"}
        return MODULATORS if self.routed else frozenset()

    def layer_count(self, d_in: int, d_out: int) -> int:
        """Trainable parameters of one adapted layer."""
        modulators = EXPERTS * d_out + d_out + 1 if self.routed and not self.mixture else 0
        return self.count(d_in, d_out, RANK) + modulators + EXPERTS * RANK * self.beyond


def _lora(d_in: int, d_out: int, r: int) -> int:
    return r * (d_in + d_out)


def _dora(d_in: int, d_out: int, r: int) -> int:
    return r * (d_in + d_out) + d_out


def _outputs(d_in: int, d_out: int, r: int) -> int:
    return r * d_out


def _inputs(d_in: int, d_out: int, r: int) -> int:
    return r * d_in


def _tokens(count: int, width: int, r: int) -> int:
    return count * width


_E = EXPERTS
_MIXTURES: dict[str, tuple[Callable[[int, int, int], int], set[str]]] = {  # routers of E x d_in included
    "moe_lora": (lambda d_in, d_out, r: (_E + 1) * r * (d_in + d_out) + _E * d_in, {"A", "B"}),
    "moe_lora_fa": (lambda d_in, d_out, r: (_E + 1) * r * d_out + _E * d_in, {"B"}),
    "moe_dora": (
        lambda d_in, d_out, r: (_E + 1) * r * (d_in + d_out) + _E * d_out + _E * d_in,
        {"A", "B", "magnitude"},
    ),
    "hydra_lora": (lambda d_in, d_out, r: r * d_in + _E * r * d_out + _E * d_in, {"A", "B"}),
    "mix_lora": (lambda d_in, d_out, r: r * (d_in + d_out) + _E * d_in, {"A", "B"}),
    "mola": (lambda d_in, d_out, r: _E * r * (d_in + d_out) + _E * d_in, {"A", "B"}),
    "mocle": (lambda d_in, d_out, r: r * d_in + _E * r * d_out + _E * d_in, {"A", "B"}),
    "more": (lambda d_in, d_out, r: 2 * r * (d_in + d_out) + _E * min(128, d_in), {"A", "B"}),
}


_LAYERS = {"r": RANK, "scope": "both"}
_PROMPT = {"peft": "prompt_tuning", "num_virtual_tokens": 5}
_DELTAS: dict[str, tuple[dict[str, Any], set[str], Callable[[int, int, int], int]]] = {
    "lora": ({"peft": "lora", **_LAYERS}, {"A", "B"}, _lora),
    "lora_fa": ({"peft": "lora_fa", **_LAYERS}, {"B"}, _outputs),
    "dora": ({"peft": "dora", **_LAYERS}, {"A", "B", "magnitude"}, _dora),
    "slicefine columns": ({"peft": "slicefine", **_LAYERS}, {"column_change"}, _outputs),
    "slicefine rows": ({"peft": "slicefine", "orientation": "rows", **_LAYERS}, {"row_change"}, _inputs),
    "slicefine both": (
        {"peft": "slicefine", "orientation": "both", **_LAYERS},
        {"column_change", "row_change"},
        _lora,
    ),
}

_LIBRARY = {  # alone these two are the peft library's own
    "lora": {"lora_A.default.weight", "lora_B.default.weight"},
    "dora": {"lora_A.default.weight", "lora_B.default.weight", "lora_magnitude_vector.default.weight"},
}

TYPES: dict[str, Type] = {
    **{
        f"lime {name}": Type(options, frozenset(f"lime_delta.default.{one}" for one in trained), count)
        for name, (options, trained, count) in _DELTAS.items()
    },
    "lime lora beyond the paper": Type(
        {**_DELTAS["lora"][0], "rank_modulation": True, "routing_norm": "standard", "feature_slice": "variance"},
        frozenset({"lime_delta.default.A", "lime_delta.default.B"}),
        _lora,
        beyond=True,
    ),
    **{
        name: Type(
            {**options, "enabled": False},
            frozenset(_LIBRARY.get(name, {f"lime_delta.default.{one}" for one in trained})),
            count,
            routed=False,
            exact_in_bf16=name != "dora",  # the library rounds its quotient of norms to bf16
        )
        for name, (options, trained, count) in _DELTAS.items()
    },
    "lime prompt_tuning": Type(
        _PROMPT, frozenset({"lime_delta.default.offset"}), _tokens, starts_frozen=False, causal=False
    ),
    "prompt_tuning": Type(
        {**_PROMPT, "enabled": False},
        frozenset({"lime_delta.default.offset"}),
        _tokens,
        routed=False,
        starts_frozen=False,
    ),
    "lime any lora": Type(
        {"peft": "any", "base": "lora", "base_options": {"r": RANK, "lora_alpha": 16}, "scope": "both"},
        frozenset(_LIBRARY["lora"]),
        _lora,
    ),
    **{
        name: Type(
            {"peft": name, **_LAYERS},
            frozenset(f"lime_delta.default.{one}" for one in trained),
            count,
            mixture=True,
            causal=not table.TYPES[name].by_sequence,
        )
        for name, (count, trained) in _MIXTURES.items()
    },
}
