"""Every option of LiME in one torch-free dataclass, checked in one place.

`lime.tuner.LimeConfig` (the `peft` configuration) and the configuration schema of the experiment framework
are both built from `LimeSettings`, so an option, its default and its check exist once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from lime.method.deltas.table import MIXTURES, ORIENTATIONS, PROMPT_INITS, TYPES, PeftType, type_options

ROUTERS = ("zero", "learned")
FEATURE_SLICES = ("leading", "trailing", "central", "random", "variance")
ROUTING_NORMS = ("slice", "token", "tensor", "scaled", "standard")
CALIBRATED_NORMS = ("scaled", "standard")
"""Those with a scale of each feature of its own, from the frozen outputs on training rows."""
SELECTIONS = ("auto", "topk", "dense")
WINDOW_ANCHORS = ("first", "last")
SCOPES = {
    "language_model": ("language_model",),
    "vision_tower": ("vision_tower",),
    "both": ("language_model", "vision_tower"),
    "projector": ("projector",),
    "language_model+projector": ("language_model", "projector"),
    "vision_tower+projector": ("vision_tower", "projector"),
    "all": ("language_model", "vision_tower", "projector"),
}
"""Scopes, and the kinds of towers that each has."""
EXPERT_LAYOUTS = ("uniform", "inverted_triangle")


@dataclass
class LimeSettings:
    """Options of one LiME adapter (arXiv 2604.02338, equations 1, 3, 4; `E` experts, update of rank `r`).

    Attributes:
        enabled: `False` adapts with the plain PEFT type alone, as a baseline: no experts, no routing.
        peft: type of the shared update `zhat`: `lora`, `lora_fa` (A frozen), `dora` (with a learned magnitude),
            `slicefine` (a slice of the frozen weight itself), `prompt_tuning` (virtual tokens before the input), or
            `any` other type of the `peft` library, named by `base`. Or, in place of LiME, a mixture of experts with a
            learned router: `moe_lora`, `moe_lora_fa`, `moe_dora`, `hydra_lora`, `mix_lora`, `mola`, `mocle` or `more`
            (`preset_settings` gives each the routing of its paper). Or a type of one's own (docs/method.md).
        r: rank of the update, of each expert of a mixture; for `slicefine` the number of columns, of rows, or of each.
        lora_alpha: numerator of the update's scale `s = lora_alpha / r`, of the LoRA types.
        rslora: their scale is `s = lora_alpha / sqrt(r)` instead (rsLoRA, arXiv 2312.03732).
        dropout: probability of dropping an input feature of the update, in training.
        orientation: what `slicefine` trains of the frozen weight: `columns`, `rows` or `both`.
        num_virtual_tokens: length of the prompt of `prompt_tuning`.
        prompt_init: frozen part of that prompt: embeddings drawn from the `vocabulary`, or `normal`, N(0, 0.02^2).
        base: for `any`, the type of the `peft` library whose update is modulated, by its name there: `vera`, `ia3`, ….
        base_options: options of that type, by their names in the `peft` library; its defaults when absent.
        expert_layout: number of experts of a layer of `mola`: `num_experts` everywhere (`uniform`), or growing with
            depth around that mean (`inverted_triangle`).
        num_experts: number of expert modulators `E`, at most the width of every adapted layer; of experts of a mixture.
        router: `zero`, routing without parameters (Eq. 3), or `learned`, a `d_in x E` matrix per layer.
        gamma_routing: share `g` of the update in the routing signal; the frozen output has `1 - g`.
        temperature: softmax temperature `tau` of the routing.
        feature_slice: which `E` output features route: the `leading`, `trailing` or `central` ones, `random` ones drawn
            from `routing_seed`, or those of the largest `variance` on training rows; the last two are stored with the
            adapter.
        routing_seed: seed of `feature_slice: random`.
        routing_norm: divisor of the routing signal: largest absolute value of the picked features per token
            (`slice`), of the whole vector per token (`token`, as printed in the paper), or of the picked
            features of the whole batch (`tensor`, as in the authors' code: then a sample's output depends on
            its neighbours, padding and later tokens). Of the frozen signal also each feature's own scale on training
            rows: its root mean square (`scaled`), or its standard deviation, less its mean (`standard`).
        jitter_noise: half width `j` of the multiplicative noise `U(1 - j, 1 + j)` on the logits, in training.
        selection: `auto`, every expert with `w_i >= auto_topk_threshold * max w`; `topk`, the `top_k`
            largest; `dense`, all.
        auto_topk_threshold: `theta` of `selection: auto`, in [0, 1].
        top_k: number of experts of `selection: topk`.
        max_experts: largest number of experts that `selection: auto` keeps; no cap when absent.
        soft: replace the hard set of `auto` or `topk` by a sigmoid mask. Every expert then carries weight.
        soft_temperature: `T` of the sigmoid mask.
        shared_modulator: add the always-on modulator `p_s` with its scalar `gamma`.
        modulator_range: half width `h` of the modulators' initial values, `U(1 - h, 1 + h)`.
        rank_modulation: experts modulate the rank too, `B (q_i * A x) * p_i`, with `q_i` of the rank's width and 1 at
            the start.
        n_gram: number of consecutive real tokens that share one routing decision.
        window_anchor: token of a window at which the decision is taken: `first` (causal; cached decoding
            equals one full pass) or `last` (as published; earlier tokens of a window then depend on later
            ones).
        scope: towers to adapt: `language_model`, `vision_tower`, `both`, the `projector` between them, it and one
            (`language_model+projector`, `vision_tower+projector`), or `all`.
        target_modules: linear layers to adapt: names (a module matches by its whole name or its last parts),
            or one regular expression over whole names, or `all-linear`. Absent: the attention projections of
            each tower, and every linear layer of the projector.
        exclude_modules: names, or one regular expression, of modules to leave out.
    """

    enabled: bool = True
    peft: str = "lora"
    r: int = 2
    lora_alpha: float = 16.0
    rslora: bool = False
    dropout: float = 0.0
    orientation: str = "columns"
    num_virtual_tokens: int = 20
    prompt_init: str = "vocabulary"
    base: str = "lora"
    base_options: Any = None
    expert_layout: str = "uniform"
    num_experts: int = 4
    router: str = "zero"
    gamma_routing: float = 0.7
    temperature: float = 0.5
    feature_slice: str = "leading"
    routing_seed: int = 0
    routing_norm: str = "slice"
    jitter_noise: float = 0.1
    selection: str = "auto"
    auto_topk_threshold: float = 0.7
    top_k: int = 2
    max_experts: int | None = None
    soft: bool = False
    soft_temperature: float = 0.5
    shared_modulator: bool = True
    modulator_range: float = 0.1
    rank_modulation: bool = False
    n_gram: int = 1
    window_anchor: str = "first"
    scope: str = "language_model"
    # `Any`: a list of names or one regular expression (structured configuration schemas have no such union).
    target_modules: Any = None
    exclude_modules: Any = None

    @property
    def spec(self) -> PeftType:
        """What the table of types says of `peft`."""
        return TYPES[self.peft]

    @property
    def calibrates(self) -> bool:
        """Whether its routing reads the frozen outputs on training rows before it can run."""
        by_rows = self.routing_norm in CALIBRATED_NORMS or self.feature_slice == "variance"
        return by_rows and self.enabled and self.router == "zero" and self.peft not in MIXTURES

    def errors(self, key: Callable[[str], str] = lambda option: option) -> list[str]:
        """Everything wrong with these settings, each message naming the option, what was given and what is
        expected.

        Args:
            key: full configuration key of an option, e.g. `lambda option: f"lime.{option}"`.
        """
        found = [*_wrong_types(self, key)]
        if found:  # comparisons below would only repeat them
            return found

        def check(option: str, holds: bool, expected: str) -> None:
            if not holds:
                found.append(f"{key(option)}: expected {expected}, got {getattr(self, option)!r}")

        kind = TYPES.get(self.peft)
        check("peft", kind is not None, _one_of(tuple(TYPES)))
        check("r", self.r >= 1, "a rank of at least 1")
        check("lora_alpha", self.lora_alpha > 0, "a number above 0")
        check("dropout", 0 <= self.dropout < 1, "a probability in [0, 1)")
        check("orientation", self.orientation in ORIENTATIONS, _one_of(ORIENTATIONS))
        check("num_virtual_tokens", self.num_virtual_tokens >= 1, "at least 1 virtual token")
        check("prompt_init", self.prompt_init in PROMPT_INITS, _one_of(PROMPT_INITS))
        check("base", self.base != "", "a type of the peft library")
        check(
            "base_options",
            self.base_options is None or isinstance(self.base_options, dict),
            "options of the base type by name, or nothing",
        )
        check("expert_layout", self.expert_layout in EXPERT_LAYOUTS, _one_of(EXPERT_LAYOUTS))
        check("scope", self.scope in SCOPES, _one_of(tuple(SCOPES)))
        if self.peft in MIXTURES:
            check("enabled", self.enabled, f"true: {self.peft} is a mixture of experts; without them it is lora")
        for option in ("target_modules", "exclude_modules"):
            check(
                option,
                _is_target(getattr(self, option)),
                "a list of module names, one regular expression, or nothing",
            )
        for limit in kind.limits(self) if kind is not None else ():
            check(*limit)
        if not self.enabled:
            return [*found, *self.without_effect(key).values()]

        check("num_experts", self.num_experts >= 1, "at least 1 expert")
        check("router", self.router in ROUTERS, _one_of(ROUTERS))
        check("gamma_routing", 0 <= self.gamma_routing <= 1, "a share in [0, 1]")
        check("temperature", self.temperature > 0, "a temperature above 0")
        check("feature_slice", self.feature_slice in FEATURE_SLICES, _one_of(FEATURE_SLICES))
        check("routing_norm", self.routing_norm in ROUTING_NORMS, _one_of(ROUTING_NORMS))
        check("modulator_range", self.modulator_range >= 0, "a half width of at least 0")
        check("jitter_noise", 0 <= self.jitter_noise < 1, "a half width in [0, 1)")
        check("selection", self.selection in SELECTIONS, _one_of(SELECTIONS))
        check("auto_topk_threshold", 0 <= self.auto_topk_threshold <= 1, "a threshold in [0, 1]")
        check("soft_temperature", self.soft_temperature > 0, "a temperature above 0")
        check("n_gram", self.n_gram >= 1, "a window of at least 1 token")
        check("window_anchor", self.window_anchor in WINDOW_ANCHORS, _one_of(WINDOW_ANCHORS))
        if self.peft in MIXTURES:  # a layer with fewer experts takes all of its own
            check("top_k", self.top_k >= 1, "at least 1 expert")
        elif self.selection == "topk":
            check(
                "top_k",
                1 <= self.top_k <= self.num_experts,
                f"between 1 and num_experts ({self.num_experts})",
            )
        if self.max_experts is not None:
            check("max_experts", self.max_experts >= 1, "at least 1 expert, or nothing for no cap")
        return [*found, *self.without_effect(key).values()]

    def without_effect(self, key: Callable[[str], str] = lambda option: option) -> dict[str, str]:
        """Options set away from their default that another option switches off, each with its error; none while a
        value has the wrong type."""
        default = LimeSettings()
        found: dict[str, str] = {}
        if _wrong_types(self, key):
            return found

        def needs(option: str, active: bool, what: str) -> None:
            value = getattr(self, option)
            if not active and value != getattr(default, option):
                found[option] = f"{key(option)}: {value!r} has no effect without {what}; remove it or set that"

        for option in type_options():
            having = [name for name, kind in TYPES.items() if option in kind.options]
            needs(option, self.peft in having or self.peft not in TYPES, f"`peft: {' or '.join(having)}`")
        for option in ("target_modules", "exclude_modules"):
            needs(option, self.peft != "prompt_tuning", "a type that adapts linear layers")
        if not self.enabled:
            return found
        mixture = self.peft in MIXTURES
        for option in ("router", "shared_modulator", "modulator_range", "rank_modulation"):
            needs(option, not mixture, f"LiME; {self.peft} has neither modulators nor a router without parameters")
        zero = self.router == "zero" and not mixture
        for option in ("gamma_routing", "feature_slice", "routing_norm"):
            needs(option, zero, "LiME and its `router: zero`" if mixture else "`router: zero`")
        needs("rank_modulation", self.peft not in ("prompt_tuning", "any"), "a type with a rank, as lora")
        if self.peft == "prompt_tuning" and self.calibrates:
            option = "feature_slice" if self.feature_slice == "variance" else "routing_norm"
            needs(option, False, "a type that adapts linear layers, whose outputs on training rows it reads")
        needs("n_gram", self.peft not in TYPES or not self.spec.by_sequence, "a type that routes by token")
        needs("routing_seed", zero and self.feature_slice == "random", "`feature_slice: random`")
        needs("auto_topk_threshold", self.selection == "auto", "`selection: auto`")
        needs("top_k", self.selection == "topk", "`selection: topk`")
        needs("max_experts", self.selection == "auto" and not self.soft, "`selection: auto` with `soft: false`")
        needs("soft", self.selection != "dense", "`selection: auto` or `topk`")
        needs("soft_temperature", self.soft, "`soft: true`")
        needs("window_anchor", self.n_gram > 1, "`n_gram` above 1")
        return found

    def check(self, key: Callable[[str], str] = lambda option: option) -> None:
        """Raise one `ValueError` that lists every entry of `errors`."""
        if found := self.errors(key):
            raise ValueError("invalid LiME settings:\n" + "\n".join(f"  {line}" for line in found))


OPTIONS: tuple[str, ...] = tuple(f.name for f in fields(LimeSettings))
"""Names of all public options, in order."""


def _one_of(values: tuple[str, ...]) -> str:
    return "one of " + ", ".join(values)


def _is_target(value: Any) -> bool:
    if value is None:
        return True
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error:
            return False
        return value != ""
    return not isinstance(value, dict) and len(value) > 0 and all(isinstance(name, str) for name in value)


_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "true or false"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "a word"),
    "int | None": ((int, type(None)), "a whole number or nothing"),
}


def _wrong_types(settings: LimeSettings, key: Callable[[str], str]) -> list[str]:
    found = []
    for field in fields(LimeSettings):
        value, kind = getattr(settings, field.name), str(field.type)
        if kind == "Any":
            if value is not None and not hasattr(value, "__iter__"):
                found.append(f"{key(field.name)}: expected a list of names or one regular expression, got {value!r}")
            continue
        types, expected = _KINDS[kind]
        fits = isinstance(value, types) and (not isinstance(value, bool) or bool in types)
        if not fits or (isinstance(value, float) and not math.isfinite(value)):
            found.append(f"{key(field.name)}: expected {expected}, got {value!r}")
    return found
