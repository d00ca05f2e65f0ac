"""Adapters trained with the authors' code, read into this package's format.

Their state dict holds, for each adapted layer,

    <module>.A, <module>.B                update `zhat = (alpha / r) B A x`, (r, d_in) and (d_out, r), or transposed
    <module>.m                            magnitude, d_out values (DoRA)
    <module>.LiMEs                        modulators, (E, d_out)
    <module>.LiME_shared, <module>.gamma  shared modulator, (d_out,), and its scalar (absent without)

and may hold the frozen `<module>.weight` and `<module>.bias` besides, and any other weights of the model. What the file
does not say (alpha, temperature, window, selection, …) is given as options over the `authors` preset; with the options
of the training the outputs are theirs, of DoRA over layers with a bias too (their magnitude scales it: `scale_bias` in
the adapter's configuration). What stays apart is in `docs/method.md`: padding, which their layers route and modulate
unless a mask is handed to each, and windows, which they count from column 0.

A LoRA-FA adapter holds the same tensors as a LoRA's. It is known by its A, which lies within its initial bound
`1 / sqrt(d_in)` in every layer, as that of a trained LoRA does not; or say so, peft="lora_fa" (A initialised in another
way). Refused as what they are: SliceFine adapters, prompts, embeddings, and layers outside the language model and the
vision tower (`lm_head`).

    model, report = load_authors_adapter(base, "adapter.pt", alpha=16, n_gram=1, auto_topk_threshold=0.5)
    model.save_pretrained("adapter")
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lime.tuner.api import apply
from lime.tuner.config import LimeConfig
from lime.tuner.layers.linear import LimeLinear
from lime.tuner.presets import preset_settings
from lime.tuner.reporting import ApplyReport, report
from lime.tuner.towers import find_towers

log = logging.getLogger(__name__)

OTHER_TYPES = {
    "part_T": "a SliceFine adapter, whose trained slice and bias replace the frozen ones and route by themselves",
    "prompt_delta": "a prompt, whose length and conditioning the training decides",
}
"""A tensor that only another type of theirs has, and what that is."""
PARTS = ("A", "B", "m", "LiMEs", "LiME_shared", "gamma")
FROZEN = ("weight", "bias")
RENAMES: tuple[tuple[str, str], ...] = (
    (r"^(module|base_model\.model)\.", ""),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^model\.(?=layers\.)", "model.language_model."),
    (r"^(?=(vision_tower|visual|language_model)\.)", "model."),
    (r"(?<=vision_tower\.)vision_model\.", ""),
)
"""Module names of wrappers and of earlier versions of transformers -> those of this one; any number may apply."""

_READ_FROM_FILE = set("r rank num_experts shared_modulator use_shared_LiME target_modules targets scope".split())


def load_authors_adapter(
    model: PreTrainedModel,
    source: str | Path | Mapping[str, Tensor],
    *,
    preset: str = "authors",
    adapter_name: str = "default",
    is_trainable: bool = False,
    rename: Mapping[str, str] | None = None,
    transposed: bool | None = None,
    **options: Any,
) -> tuple[PeftModel, ApplyReport]:
    """Adapt a model with an adapter that the authors' code trained.

    Args:
        model: the base model; its layers are replaced in place.
        source: a state dict, or a `.safetensors`, `.pt`, `.pth` or `.bin` file with one.
        preset: settings that `options` are over.
        is_trainable: continue training; else every parameter is frozen.
        rename: regular expression -> replacement, applied to the file's module names before they are looked up.
        transposed: whether A is (d_in, r) and B (r, d_out). Needed only where the shapes leave it open.
        options: options of the training, by this package's names or those of the LiME page.

    Returns:
        As `lime.apply`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no LiME layer in the file, a module that the model does not have, tensors that do not fit, or
            layers of differing rank or number of experts.
    """
    layers = _layers(_read(source))
    if given := sorted(_READ_FROM_FILE & options.keys()):
        raise ValueError(f"{', '.join(given)}: read from the adapter itself; leave it out")
    names = _find_modules(model, layers, rename or {})
    tensors = {
        names[stored]: _checked(stored, parts, model.get_submodule(names[stored]), transposed)
        for stored, parts in layers.items()
    }
    of_file = {
        "r": _same("the rank", tensors, lambda parts: parts["A"].shape[0]),
        "num_experts": _same("the number of experts", tensors, lambda parts: parts["LiMEs"].shape[0]),
        "shared_modulator": _same("LiME_shared", tensors, lambda parts: "LiME_shared" in parts),
        "target_modules": sorted(tensors),
        "scope": _scope(model, tensors),
    }
    settings = preset_settings(preset, **{"peft": _type_of(tensors), **options, **of_file})
    config = LimeConfig.from_settings(settings, scale_bias=settings.peft == "dora")
    adapted, _ = apply(model, config, adapter_name=adapter_name)
    _fill(adapted, tensors, adapter_name)
    if not is_trainable:
        adapted.requires_grad_(False)
        adapted.eval()
    return adapted, report(adapted)


def _read(source: str | Path | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if isinstance(source, Mapping):
        return source
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; expected a file with the state dict of an adapter")
    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping):
        raise ValueError(f"{path}: expected a state dict, got {type(state).__name__}")
    return state


def _layers(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors of each adapted layer, by its name in the file."""
    for key in state:
        what = OTHER_TYPES.get(key.rpartition(".")[2])
        if what is not None:
            raise ValueError(f"{key}: of {what}; LoRA, LoRA-FA and DoRA adapters can be read")
    modules = {key.rpartition(".")[0] for key in state if key.rpartition(".")[2] == "LiMEs"}
    layers: dict[str, dict[str, Tensor]] = {name: {} for name in sorted(modules)}
    others = 0
    for key, value in state.items():
        module, _, part = key.rpartition(".")
        if module not in layers:
            others += 1
        elif part in PARTS:
            layers[module][part] = value
        elif part not in FROZEN:
            raise ValueError(f"{key}: not known of a LiME layer; expected {', '.join((*PARTS, *FROZEN))}")
    if not layers:
        raise ValueError(
            "no LiME layer in the state dict: expected keys such as <module>.LiMEs, <module>.A, <module>.B"
        )
    for name, parts in layers.items():
        if missing := [part for part in ("A", "B") if part not in parts]:
            frozen = "; of LoRA-FA save the frozen A as well" if missing == ["A"] else ""
            raise ValueError(
                f"{name}: lacks {' and '.join(missing)}{frozen}; LoRA, LoRA-FA and DoRA adapters can be read"
            )
        if ("LiME_shared" in parts) != ("gamma" in parts):
            raise ValueError(f"{name}: has one of LiME_shared and gamma; expected both or neither")
    if others:
        log.info("%d tensors of the state dict belong to no LiME layer and are left out", others)
    return layers


def _find_modules(model: nn.Module, layers: Iterable[str], rename: Mapping[str, str]) -> dict[str, str]:
    """Name in the model of each layer of the file."""
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    embeddings = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    towers = find_towers(model)
    names: dict[str, str] = {}
    for stored in layers:
        wanted = stored
        for pattern, replacement in rename.items():
            wanted = re.sub(pattern, replacement, wanted)
        match = next((name for name in _names(wanted) if name in linears), None)
        if match is not None and not any(tower.holds(match) for tower in towers):
            raise ValueError(
                f"{stored}: lies outside the language model and the vision tower, where LiME knows no tokens' mask and "
                "so adapts nothing; train without it (in the authors' code: name the targets)"
            )
        if match is None and any(name in embeddings for name in _names(wanted)):
            raise ValueError(f"{stored}: is an embedding; LiME adapts linear layers, train without it")
        if match is None:
            leaf = stored.rpartition(".")[2]
            alike = next((name for name in sorted(linears) if name.endswith("." + leaf)), None)
            example = f"; names in the model look like {alike}" if alike else ""
            raise ValueError(
                f"{stored}: {type(model).__name__} has no such linear layer{example}. Load the adapter on the model it "
                "was trained on, or give rename={pattern: replacement}"
            )
        if match in names.values():
            raise ValueError(f"{stored}: another layer of the file is {match} as well")
        names[stored] = match
    return names


def _names(name: str) -> Iterable[str]:
    """The name itself, and all that `RENAMES` make of it."""
    seen, waiting = {name}, deque([name])
    while waiting:
        current = waiting.popleft()
        yield current
        for pattern, replacement in RENAMES:
            other = re.sub(pattern, replacement, current, count=1)
            if other not in seen:
                seen.add(other)
                waiting.append(other)


def _checked(name: str, parts: dict[str, Tensor], base: Any, transposed: bool | None) -> dict[str, Tensor]:
    """A layer's tensors in this package's shapes."""
    width = base.out_features
    A, B = _orient(name, parts["A"], parts["B"], base, transposed)
    experts = parts["LiMEs"]
    if experts.dim() != 2 or experts.shape[1] != width:
        raise ValueError(f"{name}.LiMEs: expected shape (experts, {width}), got {tuple(experts.shape)}")
    checked = {"A": A, "B": B, "LiMEs": experts}
    for part, size in (("m", width), ("LiME_shared", width), ("gamma", 1)):
        if part in parts:
            if parts[part].numel() != size:
                raise ValueError(f"{name}.{part}: expected {size} values, got shape {tuple(parts[part].shape)}")
            checked[part] = parts[part].reshape(size)
    return checked


def _orient(name: str, A: Tensor, B: Tensor, base: Any, transposed: bool | None) -> tuple[Tensor, Tensor]:
    """A (r, d_in) and B (d_out, r), whichever way they were stored."""
    d_in, d_out = base.in_features, base.out_features
    fits = []
    for turn_a, turn_b in product((False, True), repeat=2) if transposed is None else [(transposed, transposed)]:
        a, b = A.t() if turn_a else A, B.t() if turn_b else B
        if a.dim() == b.dim() == 2 and a.shape[1] == d_in and b.shape[0] == d_out and a.shape[0] == b.shape[1]:
            fits.append((a, b))
    if len(fits) == 1:
        return fits[0]
    shapes = f"A {tuple(A.shape)} and B {tuple(B.shape)}"
    if fits:
        raise ValueError(f"{name}: {shapes} fit either way round; give transposed=True or transposed=False")
    raise ValueError(f"{name}: {shapes} do not fit a layer of {d_in} inputs and {d_out} outputs")


def _type_of(layers: Mapping[str, dict[str, Tensor]]) -> str:
    """`dora`, `lora`, or `lora_fa`: A as it was drawn, although B has been trained."""
    if _same("DoRA's magnitude m", layers, lambda parts: "m" in parts):
        return "dora"
    for parts in layers.values():
        A = parts["A"]
        bound = A.shape[1] ** -0.5 * (1 + torch.finfo(A.dtype).eps)
        if float(A.abs().max()) > bound or not parts["B"].any():
            return "lora"
    log.info("every A lies within its initial bound: read as LoRA-FA, whose A is frozen; else give peft='lora'")
    return "lora_fa"


def _same(what: str, layers: Mapping[str, dict[str, Tensor]], of: Any) -> Any:
    """A value that every layer must agree on."""
    values: dict[Any, str] = {}
    for name, parts in layers.items():
        values.setdefault(of(parts), name)
    if len(values) > 1:
        (first, one), (second, other), *_ = values.items()
        raise ValueError(f"{what} differs between layers: {first} in {one}, {second} in {other}; expected one for all")
    return next(iter(values))


def _scope(model: nn.Module, names: Iterable[str]) -> str:
    towers = find_towers(model)
    kinds = {tower.kind for name in names for tower in towers if tower.holds(name)}
    return kinds.pop() if len(kinds) == 1 else "both"


@torch.no_grad()
def _fill(model: nn.Module, layers: Mapping[str, dict[str, Tensor]], adapter: str) -> None:
    adapted = {module.key: module for module in model.modules() if isinstance(module, LimeLinear)}
    for name, parts in layers.items():
        layer = adapted[name]
        delta: Any = layer.lime_delta[adapter]
        targets: dict[str, Tensor] = {"A": delta.A, "B": delta.B, "LiMEs": layer.lime_experts[adapter]}
        if "m" in parts:
            targets["m"] = delta.magnitude
        if "LiME_shared" in parts:
            targets |= {"LiME_shared": layer.lime_shared[adapter], "gamma": layer.lime_gamma[adapter]}
        for part, target in targets.items():
            target.copy_(parts[part])
