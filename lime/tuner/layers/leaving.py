"""Taking adapters out of a model: one by name, before the name is used again, or all of them with LiME's hooks."""

from __future__ import annotations

import warnings
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from lime.tuner.config import LimeConfig
from lime.tuner.layers.base import LimeLayer
from lime.tuner.prompt.hooks import InsertPrompt, RemovePrompt
from lime.tuner.prompt.layer import CHILD, PromptLayer, prompt_layer
from lime.tuner.routing.generation import GenerateOnePrompt
from lime.tuner.routing.hooks import CloseCall, OpenCall


def remove_adapter(model: nn.Module, name: str, kind: type[BaseTunerLayer] = LimeLayer) -> bool:
    """Take the adapter `name` out of a model as if it had never been there: its tensors, the layers that held nothing
    else, what it trained in full (`modules_to_save`), and hooks that nothing needs any more. Base weights and other
    adapters stay.

    Args:
        kind: tuner layers to look at; what is inside them goes with them.

    Returns:
        Whether there was such an adapter.
    """
    holders = [
        (place, layer)
        for place, layer in model.named_modules()
        if isinstance(layer, kind) and name in layer._all_available_adapter_names()
    ]
    with warnings.catch_warnings():  # peft warns of the adapter that becomes active in its stead
        warnings.simplefilter("ignore")
        for place, layer in holders:
            if any(place.startswith(outer + ".") for outer, _ in holders):
                continue  # goes with the layer around it
            layer.delete_adapter(name)
            if not layer._all_available_adapter_names():
                _unwrap(model, place, layer)
        if holders:
            _remove_saved_modules(model, name)
    _remove_idle_hooks(model)
    return bool(holders)


def check_name_is_free(model: nn.Module, name: str) -> None:
    """Raise ValueError where the adapter `name` is one of the `peft` library's own: it would stay, and be saved with
    the new one. (A `PeftModel` whose adapter LiME is to modulate is handed over without that configuration.)"""
    earlier: Any = getattr(model, "peft_config", None)
    if not isinstance(earlier, dict) or name not in earlier or isinstance(earlier[name], LimeConfig):
        return
    for place, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer) and name in layer._all_available_adapter_names():
            raise ValueError(
                f"{place}: has an adapter {name!r} of the peft library already, a {type(layer).__name__}; call "
                "unload() first, take another name, or give lime.apply the PeftModel to modulate that adapter"
            )


def _unwrap(model: nn.Module, place: str, layer: BaseTunerLayer) -> None:
    if isinstance(layer, PromptLayer):
        delattr(model.get_submodule(place.rpartition(".")[0]), CHILD)
    else:
        model.set_submodule(place, layer.get_base_layer())


def _remove_saved_modules(model: nn.Module, name: str) -> None:
    """Modules that the adapter trained in full, and those of which it trained parts."""
    for place, wrapper in list(model.named_modules()):
        if not isinstance(wrapper, AuxiliaryTrainingWrapper) or name not in wrapper._adapters:
            continue
        remaining = [other for other in wrapper._adapters if other != name]
        wrapper.delete_adapter(name, new_active_adapters=remaining[:1] or None)
        if not remaining:
            model.set_submodule(place, wrapper.original_module)


def remove_hooks(model: nn.Module) -> None:
    """Take LiME's hooks and prompts off every module, and its `generate` off the model."""
    for module in list(model.modules()):
        _remove_hooks_of(module, (OpenCall, CloseCall, InsertPrompt, RemovePrompt))
        if prompt_layer(module) is not None:
            delattr(module, CHILD)
    if isinstance(vars(model).get("generate"), GenerateOnePrompt):
        del model.generate


def _remove_idle_hooks(model: nn.Module) -> None:
    layers = [module for module in model.modules() if isinstance(module, LimeLayer)]
    if not layers:
        remove_hooks(model)
        return
    scopes = {layer.scope for layer in layers if layer.routes and not isinstance(layer, PromptLayer)}
    for module in model.modules():
        opens = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, OpenCall)]
        if opens and not any(hook.scope in scopes for hook in opens):
            _remove_hooks_of(module, (OpenCall, CloseCall))
        if prompt_layer(module) is None:
            _remove_hooks_of(module, (InsertPrompt, RemovePrompt))
    settings = [each for layer in layers for each in layer.lime_settings.values()]
    by_sequence = any(each.spec.by_sequence or each.peft == "prompt_tuning" for each in settings)
    if not by_sequence and isinstance(vars(model).get("generate"), GenerateOnePrompt):
        del model.generate


def _remove_hooks_of(module: nn.Module, kinds: tuple[type, ...]) -> None:
    hooks: Any
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for handle in [handle for handle, hook in hooks.items() if isinstance(hook, kinds)]:
            del hooks[handle]
            for extra in (
                module._forward_pre_hooks_with_kwargs,
                module._forward_hooks_with_kwargs,
                module._forward_hooks_always_called,
            ):
                extra.pop(handle, None)
