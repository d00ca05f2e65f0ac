"""The towers of a vision-language model, and which of their layers an adapter targets."""

from __future__ import annotations

import inspect
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from lime.tuner.layers.frozen_linear import LINEAR
from lime.tuner.settings import SCOPES, LimeSettings

log = logging.getLogger(__name__)

PROJECTIONS = frozenset(
    # query, key and value, apart or fused, and the output
    "q_proj k_proj v_proj o_proj out_proj output_proj proj projection projection_layer output dense "
    "query key value query_proj key_proj value_proj q k v o q_lin k_lin v_lin out_lin linear_q linear_k linear_v "
    "linear_out Wq Wk Wv Wo wq wk wv wo to_q to_k to_v to_kv to_query to_key to_value to_out "
    "project_q project_k project_v projection_query projection_key projection_value q_head k_head v_head post_proj "
    "qkv qkv_proj qkv_layer Wqkv W_pack c_attn q_attn c_proj query_key_value query_key in_proj in_proj_qkv att_proj "
    "attention_out kv_proj key_value "
    # in two steps, by a narrow middle
    "q_a_proj q_b_proj kv_a_proj kv_a_proj_with_mqa o_a_proj o_b_proj q_down_proj q_up_proj".split()
)
"""Names of the projections of tokens in the attention modules of transformers. Others there (gates, position biases,
routing between blocks) see other inputs or shape the attention's weights; they are left out."""

_NAME = re.compile("attn|attention", re.IGNORECASE)
_CLASS = re.compile("(attention|attn)$", re.IGNORECASE)


NOT_OF_TOKENS = frozenset({"pooler", "dt_proj"})
"""Parts of names of linear layers that `all-linear` leaves out: poolers see one vector for a whole sequence, and the
weight of Mamba's `dt_proj` is read without the layer being called."""


_MERGER = re.compile(r"(deepstack_)?merger(_list)?")
"""Names of the projectors that lie within a vision tower (Qwen2-VL and its successors, GLM-4V)."""


@dataclass(frozen=True)
class Tower:
    """An innermost `PreTrainedModel`, or a projector between two of them.

    Attributes:
        name: its name in the model; empty for the model itself.
        kind: `language_model`, `vision_tower` or `projector`.
        flat: it lays the tokens of all its sequences end to end in one dimension (Qwen2-VL's vision tower).
        mergers: names of the projectors within it. They share the tower's tokens, and its scope too.
    """

    name: str
    kind: str
    flat: bool
    mergers: tuple[str, ...] = ()

    def holds(self, module: str) -> bool:
        return not self.name or module == self.name or module.startswith(self.name + ".")

    def kind_of(self, module: str) -> str:
        """`projector` for what lies in one of its mergers, else its own kind."""
        return "projector" if any(module.startswith(merger + ".") for merger in self.mergers) else self.kind


def find_towers(model: nn.Module) -> list[Tower]:
    """The innermost `PreTrainedModel`s of a model; a module without any is one language model."""
    models: list[tuple[str, nn.Module]] = [
        (name, module) for name, module in model.named_modules() if isinstance(module, PreTrainedModel)
    ]
    innermost = [
        (name, module)
        for name, module in models
        if not any(other != name and (not name or other.startswith(name + ".")) for other, _ in models)
    ]
    towers = []
    for name, module in innermost or [("", model)]:
        modalities = getattr(module, "input_modalities", "text")
        takes = inspect.signature(module.forward).parameters.keys()
        flat = "grid_thw" in takes
        sees = bool(takes & {"grid_thw", "pixel_values"}) and not takes & {"input_ids", "inputs_embeds"}
        # Qwen2.5-VL's vision tower inherits the modalities of the whole model: what it is called with decides.
        reads_text = not sees and "text" in ([modalities] if isinstance(modalities, str) else modalities)
        prefix = f"{name}." if name else ""
        mergers = tuple(prefix + child for child, _ in module.named_children() if _MERGER.fullmatch(child))
        kind = "language_model" if reads_text else "vision_tower"
        towers.append(Tower(name, kind, flat, () if reads_text else mergers))
    return towers


def find_parts(model: nn.Module) -> list[Tower]:
    """The towers of a model, and the projectors beside them: what lies, with a linear layer, next to a vision tower
    and a language model, and is no tower, no embedding and no head."""
    towers = find_towers(model)
    ends: list[Any] = []
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        with suppress(AttributeError, NotImplementedError):
            ends.append(getattr(model, getter)())

    def projectors(name: str, module: nn.Module) -> Iterator[Tower]:
        for child_name, child in module.named_children():
            place = f"{name}.{child_name}" if name else child_name
            inside = {tower.kind for tower in towers if tower.name == place or tower.name.startswith(place + ".")}
            if len(inside) > 1 or (inside and not isinstance(child, PreTrainedModel)):
                yield from projectors(place, child)
                continue
            is_end = child_name.endswith("head") or any(child is end for end in ends)
            if not inside and not is_end and any(isinstance(part, LINEAR) for part in child.modules()):
                yield Tower(place, "projector", False)

    between = projectors("", model) if len({tower.kind for tower in towers}) > 1 else iter(())
    return [*towers, *between]


def kind_of(towers: Iterable[Tower], module: str) -> str:
    """Kind of the tower that a module, by its full name, lies in; `other` outside of them."""
    return next((tower.kind_of(module) for tower in towers if tower.holds(module)), "other")


@dataclass(frozen=True)
class Target:
    """A linear layer to adapt (`lime.tuner.layers.frozen_linear.LINEAR`), by its full name."""

    name: str
    tower: Tower
    module: Any

    @property
    def kind(self) -> str:
        return self.tower.kind_of(self.name)

    def in_scope(self, kinds: Collection[str]) -> bool:
        return self.tower.kind in kinds or self.kind in kinds


def resolve_targets(
    model: nn.Module, settings: LimeSettings, modules_to_save: Iterable[str] | None = None
) -> list[Target]:
    """The linear layers that `scope`, `target_modules` and `exclude_modules` name, in the model's order.

    Raises:
        ValueError: a scope without a tower, or a target that matches no linear layer in it; names what there
            is.
    """
    towers = find_parts(model)
    kinds = {tower.kind for tower in towers} | {"projector" for tower in towers if tower.mergers}
    if absent := sorted(set(SCOPES[settings.scope]) - kinds):
        present = next(tower.kind for tower in towers if tower.kind not in absent)
        raise ValueError(
            f"scope: {settings.scope!r} needs a {absent[0]}, which {type(model).__name__} does not have; it has a "
            f"{present}, give scope={present!r}"
        )
    candidates = [target for target in _candidates(model, towers) if target.in_scope(SCOPES[settings.scope])]
    adaptable = [target for target in candidates if not matches_any(target.name, modules_to_save)]
    wanted = settings.target_modules
    if wanted is None:
        targets = _attention_projections(model, adaptable, settings, type(model).__name__)
    elif wanted == "all-linear":
        targets = [target for target in adaptable if sees_tokens(target.name)]
        if left_out := [target.name for target in adaptable if not sees_tokens(target.name)]:
            log.info("all-linear leaves out layers that are not called on the tokens: %s", ", ".join(left_out))
    else:
        targets = [target for target in adaptable if matches_any(target.name, wanted)]
        _check_each(wanted, targets, candidates, settings, model)
    excluded = {target.name for target in targets if matches_any(target.name, settings.exclude_modules)}
    if settings.exclude_modules is not None and not excluded:
        raise ValueError(
            f"exclude_modules: {settings.exclude_modules!r} excludes none of the targeted layers; remove it"
        )
    targets = [target for target in targets if target.name not in excluded]
    if not targets:
        raise ValueError(f"target_modules: nothing is left to adapt. {_available(candidates, settings)}")
    return targets


def _candidates(model: nn.Module, towers: list[Tower]) -> Iterator[Target]:
    inside = None  # an adapter's layer, what an adapter trains in full, or attention that reads its weights itself
    for name, module in model.named_modules():
        if inside is not None and name.startswith(inside):
            continue
        if isinstance(module, BaseTunerLayer | nn.MultiheadAttention | AuxiliaryTrainingWrapper):
            inside = name + "."
        if isinstance(module, AuxiliaryTrainingWrapper):  # under the names that the base model has without it
            members = module.original_module.named_modules(prefix=name)
        else:
            members = iter([(name, module)])
        for place, member in members:
            base = member.get_base_layer() if isinstance(member, BaseTunerLayer) else member
            tower = next((tower for tower in towers if tower.holds(place)), None)
            if tower is not None and isinstance(base, LINEAR):
                yield Target(place, tower, base)


def _attention_projections(
    model: nn.Module, candidates: list[Target], settings: LimeSettings, kind: str
) -> list[Target]:
    inside = [target for target in candidates if in_attention(model, target.name)]
    chosen = {target.name for target in inside if is_projection(target.name)}
    if "projector" in SCOPES[settings.scope]:  # has no attention as a rule: all its layers
        chosen |= {each.name for each in candidates if each.kind == "projector" and sees_tokens(each.name)}
    targets = [target for target in candidates if target.name in chosen]
    if not candidates:
        raise ValueError(f"scope: {settings.scope!r} of {kind} has no linear layers, and LiME adapts no others")
    if not targets:
        raise ValueError(
            f"target_modules: {kind} has no attention projections among its linear layers; name the layers to adapt, "
            f"or give target_modules='all-linear'. {_available(candidates, settings)}"
        )
    left_out = [target.name for target in inside if target.name not in chosen]
    left_out += [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention) and any(target.tower.holds(name) for target in targets)
    ]
    if left_out:
        leaves = Counter(name.rpartition(".")[2] for name in left_out)
        log.info(
            "the default targets are the attention projections; left out of the attention modules: %s",
            ", ".join(f"{leaf} ({count})" for leaf, count in sorted(leaves.items())),
        )
    return targets


def _matches(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith("." + wanted)


def matches_any(name: str, wanted: Any) -> bool:
    """peft's convention: a string is a regular expression over whole names, a list holds names or their last
    parts."""
    if wanted is None:
        return False
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(_matches(name, one) for one in wanted)


def _check_each(
    wanted: Any, targets: list[Target], candidates: list[Target], settings: LimeSettings, model: nn.Module
) -> None:
    each = [wanted] if isinstance(wanted, str) else sorted(wanted)
    for one in each:
        as_given = one if isinstance(wanted, str) else [one]
        if any(matches_any(target.name, as_given) for target in targets):
            continue
        elsewhere = [name for name, _ in model.named_modules() if name and matches_any(name, as_given)]
        hint = f" It matches {elsewhere[0]} outside the linear layers of that scope." if elsewhere else ""
        raise ValueError(
            f"target_modules: {one!r} matches no linear layer in scope {settings.scope!r}.{hint} "
            f"{_available(candidates, settings)}"
        )


def _available(candidates: list[Target], settings: LimeSettings) -> str:
    counts = Counter(target.name.rpartition(".")[2] for target in candidates)
    listed = ", ".join(f"{leaf} ({count})" for leaf, count in sorted(counts.items()))
    example = f"; full names look like {candidates[0].name}" if candidates else ""
    return f"Linear layers in scope {settings.scope!r}: {listed or 'none'}{example}"


# -- which linear layers are the attention projections, the default targets ----------------------------------------


def sees_tokens(layer: str) -> bool:
    """Whether a layer, by its full name, is called on the tokens of a sequence."""
    return NOT_OF_TOKENS.isdisjoint(layer.split("."))


def in_attention(model: nn.Module, layer: str) -> bool:
    """Whether a layer, by its full name, lies inside an attention module: one that says so by its own name or the name
    of its class."""
    module = model
    for part in layer.split(".")[:-1]:
        module = getattr(module, part)
        if _NAME.search(part) or _CLASS.search(type(module).__name__):
            return True
    return False


def is_projection(layer: str) -> bool:
    """Whether a layer of an attention module is one of its projections. In lists (`to_out.0`) the list is asked."""
    parts = [part for part in layer.split(".") if not part.isdigit()]
    return parts[-1] in PROJECTIONS
