"""The towers of a vision-language model, and which of their layers an adapter targets."""

from __future__ import annotations

import inspect
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from lime.tuner.layers.frozen_linear import LINEAR
from lime.tuner.settings import LimeSettings

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


@dataclass(frozen=True)
class Tower:
    """An innermost `PreTrainedModel`.

    Attributes:
        name: its name in the model; empty for the model itself.
        kind: `language_model` or `vision_tower`.
        flat: it lays the tokens of all its sequences end to end in one dimension (Qwen2-VL's vision tower).
    """

    name: str
    kind: str
    flat: bool

    def holds(self, module: str) -> bool:
        return not self.name or module.startswith(self.name + ".")


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
        towers.append(Tower(name, "language_model" if reads_text else "vision_tower", flat))
    return towers


@dataclass(frozen=True)
class Target:
    """A linear layer to adapt (`lime.tuner.layers.frozen_linear.LINEAR`), by its full name."""

    name: str
    tower: Tower
    module: Any


def resolve_targets(
    model: nn.Module, settings: LimeSettings, modules_to_save: Iterable[str] | None = None
) -> list[Target]:
    """The linear layers that `scope`, `target_modules` and `exclude_modules` name, in the model's order.

    Raises:
        ValueError: a scope without a tower, or a target that matches no linear layer in it; names what there
            is.
    """
    towers = [tower for tower in find_towers(model) if settings.scope in (tower.kind, "both")]
    kinds = {tower.kind for tower in towers}
    wanted_kinds = {"language_model", "vision_tower"} if settings.scope == "both" else {settings.scope}
    if absent := sorted(wanted_kinds - kinds):
        present = next(tower.kind for tower in find_towers(model) if tower.kind not in absent)
        raise ValueError(
            f"scope: {settings.scope!r} needs a {absent[0]}, which {type(model).__name__} does not have; it has a "
            f"{present}, give scope={present!r}"
        )
    candidates = list(_candidates(model, towers))
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
    targets = [target for target in inside if is_projection(target.name)]
    if not candidates:
        raise ValueError(f"scope: {settings.scope!r} of {kind} has no linear layers, and LiME adapts no others")
    if not targets:
        raise ValueError(
            f"target_modules: {kind} has no attention projections among its linear layers; name the layers to adapt, "
            f"or give target_modules='all-linear'. {_available(candidates, settings)}"
        )
    chosen = {target.name for target in targets}
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
