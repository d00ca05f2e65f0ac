"""Putting an adapter of the `peft` library into a model, and LiME over it (`lime.tuner.layers.wrapped`)."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from typing import Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from lime.tuner.config import LimeConfig, LimePeftType
from lime.tuner.layers.frozen_linear import LINEAR
from lime.tuner.layers.wrapped import LimeWrapped
from lime.tuner.prompt.layer import PromptLayer
from lime.tuner.settings import SCOPES, LimeSettings
from lime.tuner.towers import Target, find_parts, matches_any

DEFAULTS: dict[str, dict[str, Any]] = {
    "adalora": {"total_step": 1, "tinit": 0, "tfinal": 0},  # of its rank allocation, which does not run
    "ia3": {"feedforward_modules": []},
}
"""Options that a base type demands, where it has no default of its own."""

CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
"""Values of `init_lora_weights` that change the frozen weights."""

_OF_THE_TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
_OF_THE_FILE = (
    "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "task_type", "inference_mode",
    "runtime_config",
)  # fmt: skip


NOT_AN_UPDATE = {
    "poly": "chooses its parts by a task number, which no call here gives",
    "trainable_tokens": "trains rows of the embeddings and is no update of linear layers",
}
"""Types whose layers LiME cannot wrap, and why."""


def base_config(settings: LimeSettings, targets: list[Target], **peft_fields: Any) -> PeftConfig:
    """The `peft` library's configuration of a base type over these targets.

    Args:
        settings: of which `base` and `base_options` are read.
        peft_fields: further fields that every configuration of that library has.

    Raises:
        ValueError: an unknown base type, one that LiME cannot wrap, or options that it does not accept.
    """
    kind: Any = _kind(settings.base)
    given = dict(settings.base_options or {})
    known = {field.name for field in fields(kind)} - {*_OF_THE_TARGETS, *_OF_THE_FILE}
    for option in given:
        if option in _OF_THE_TARGETS:
            raise ValueError(f"base_options.{option}: set {option} beside base, not in base_options")
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            raise ValueError(f"base_options.{option}: not an option of {kind.__name__}; {hint}")
    if given.get("bias", "none") != "none":
        raise ValueError(f"base_options.bias: expected none, got {given['bias']!r}; the base's biases stay frozen")
    if str(given.get("init_lora_weights", "")).lower().startswith(CHANGES_BASE):
        raise ValueError(
            f"base_options.init_lora_weights: {given['init_lora_weights']!r} changes the frozen weights; take another"
        )
    options = {**DEFAULTS.get(settings.base.lower(), {}), **given}
    if options.get("feedforward_modules"):  # IA3 wants the same names as in its targets
        wanted = options["feedforward_modules"]
        options["feedforward_modules"] = [target.name for target in targets if matches_any(target.name, wanted)]
        if not options["feedforward_modules"]:
            raise ValueError(f"base_options.feedforward_modules: {wanted!r} matches none of the targeted layers")
    try:
        config: PeftConfig = kind(target_modules=[target.name for target in targets], **options, **peft_fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"base_options: {kind.__name__} refuses them: {error}") from error
    return config


def _kind(base: str) -> type[PeftConfig]:
    names = {str(getattr(kind, "value", kind)).lower(): kind for kind in PEFT_TYPE_TO_TUNER_MAPPING}
    kind = names.get(base.lower())
    if base.lower() in NOT_AN_UPDATE:
        raise ValueError(f"base: {base!r} {NOT_AN_UPDATE[base.lower()]}; take another type")
    names.pop(LimePeftType.LIME.value.lower(), None)
    if kind is None or kind == LimePeftType.LIME:
        near = difflib.get_close_matches(base.lower(), names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(names))}"
        raise ValueError(f"base: {base!r} is not a type of the peft library{hint}")
    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING[kind]
    if not issubclass(tuner, BaseTuner) or not hasattr(tuner, "tuner_layer_cls"):
        raise ValueError(f"base: {base!r} adapts no layers of its own, so that there is no update to modulate")
    usual: Any = BaseTuner._remove_adapter_name_from_key
    renamed = tuner._remove_adapter_name_from_key.__func__ is not usual.__func__
    if renamed or (_shares_state(tuner) and base.lower() != "vera"):
        raise ValueError(f"base: {base!r} keeps state outside its layers, which LiME does not save; take another type")
    return PEFT_TYPE_TO_CONFIG_MAPPING[kind]


def _shares_state(tuner: Any) -> bool:
    return bool(getattr(tuner, "uses_shared_state", False))


# -- injection -----------------------------------------------------------------------------------------------


def inject_base(
    model: nn.Module, config: LimeConfig, targets: list[Target], adapter_name: str, low_cpu_mem_usage: bool
) -> None:
    """Put the base adapter `adapter_name` on the targets, unless they have it already; LiME layers stay around those
    that had them.

    Raises:
        ValueError: options that do not fit the layers, or adapters that cannot share a model.
    """
    inner = base_config(config, targets, inference_mode=config.inference_mode)
    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING[inner.peft_type]  # type: ignore[index]
    with _unwrapped(model):
        wrapped = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, BaseTunerLayer) and not isinstance(module, PromptLayer)
        }
        alien = [name for name, module in wrapped.items() if not isinstance(module, tuner.tuner_layer_cls)]
        if alien:
            first = alien[0]
            raise ValueError(
                f"{first}: has an adapter of another type ({type(wrapped[first]).__name__}); all adapters of a "
                f"model that LiME wraps are of one type, here {config.base}"
            )
        if wrapped and all(
            adapter_name in getattr(wrapped.get(target.name), "_all_available_adapter_names", list)()
            for target in targets
        ):
            return
        if wrapped and _shares_state(tuner):
            raise ValueError(f"base: a model takes one adapter over {config.base!r}, whose layers share their state")
        # peft keeps the configurations of a model on the model; this one lives in the LimeConfig.
        configurations = model.__dict__.pop("peft_config", None)
        injected = False
        try:
            tuner(model, {adapter_name: inner}, adapter_name, low_cpu_mem_usage=low_cpu_mem_usage)
            injected = True
        finally:
            model.__dict__.pop("peft_config", None)
            if configurations is not None:
                model.__dict__["peft_config"] = configurations
            if not injected:  # options that do not fit a layer show when peft comes to it
                _take_out(model, adapter_name, stay=wrapped)


def _take_out(model: nn.Module, adapter_name: str, stay: Collection[str]) -> None:
    """Remove an adapter that peft has put on part of its targets; tuner layers not in `stay` go altogether."""
    for name, module in list(model.named_modules()):
        if not isinstance(module, BaseTunerLayer) or isinstance(module, PromptLayer):
            continue
        if name not in stay:
            model.set_submodule(name, module.get_base_layer())
        elif adapter_name in module._all_available_adapter_names():
            module.delete_adapter(adapter_name)


@contextmanager
def _unwrapped(model: nn.Module) -> Iterator[None]:
    """The model without its LiME layers, and them back in their places after."""
    around = {name: module for name, module in model.named_modules() if isinstance(module, LimeWrapped)}
    for name, layer in around.items():
        model.set_submodule(name, layer.adapter_layer)
    try:
        yield
    finally:
        for name, layer in around.items():
            model.set_submodule(name, layer)


# -- an adapted model of the peft library --------------------------------------------------------------------


def settings_of(model: PeftModel, settings: LimeSettings) -> tuple[nn.Module, LimeSettings, str]:
    """The base model with its adapter layers in place, the settings with that adapter's type, options and targets, and
    the adapter's name.

    Raises:
        ValueError: a model or adapter that LiME cannot wrap.
    """
    tuner, names = model.base_model, list(model.peft_config)
    if not isinstance(tuner, BaseTuner):
        raise ValueError(f"{type(model).__name__}: its adapter is no layer of the model, so that LiME cannot wrap it")
    if len(names) != 1:
        raise ValueError(f"the model has {len(names)} adapters ({', '.join(names)}); keep the one that LiME shall wrap")
    (name,) = names
    inner = model.peft_config[name]
    if isinstance(inner, LimeConfig):
        raise ValueError("the model is adapted with LiME already")
    if getattr(inner, "modules_to_save", None):
        raise ValueError(
            "modules_to_save: train them with LiME by lime.apply(model, peft='any', …, modules_to_save=…) on the base"
        )
    layers = {key: module for key, module in tuner.model.named_modules() if isinstance(module, BaseTunerLayer)}
    if merged := [key for key, module in layers.items() if module.merged]:
        raise ValueError(f"{merged[0]}: its adapter is merged into the base weights; call unmerge_adapter() first")
    if getattr(inner, "target_parameters", None):
        raise ValueError("target_parameters: LiME wraps adapters of linear layers alone")
    towers = find_parts(tuner.model)
    kinds = set()
    for key, module in layers.items():
        tower = next((tower for tower in towers if tower.holds(key)), None)
        if tower is None or not isinstance(module.get_base_layer(), LINEAR):
            raise ValueError(
                f"{key}: LiME wraps adapters of linear layers in a language model, vision tower or projector, this is "
                f"a {type(module.get_base_layer()).__name__}{'' if tower else ' outside of them'}; leave it out"
            )
        kinds.add(tower.kind)
    values = {
        **{field.name: getattr(settings, field.name) for field in fields(LimeSettings)},
        "peft": "any",
        "base": str(getattr(inner.peft_type, "value", inner.peft_type)).lower(),
        "base_options": _changed_options(inner),
        "target_modules": sorted(layers),
        "scope": next(scope for scope, each in SCOPES.items() if set(each) == kinds),
    }
    wrapping = LimeSettings(**values)
    wrapping.check()
    return tuner.model, wrapping, name


def _changed_options(config: PeftConfig) -> dict[str, Any]:
    """Options of a configuration that are not at their defaults, as plain values."""
    changed = {}
    for field in fields(config):
        if field.name in (*_OF_THE_TARGETS, *_OF_THE_FILE) or not field.init:
            continue
        value = getattr(config, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if value != default:
            changed[field.name] = _plain(field.name, value)
    return changed


def _plain(option: str, value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    if isinstance(value, dict):
        return {key: _plain(option, each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(option, each) for each in value]
    if value is None or isinstance(value, str | int | float):
        return getattr(value, "value", value)
    raise ValueError(f"{option}: LiME cannot save a {type(value).__name__} with the adapter")
