"""LiME as a tuner of the `peft` library."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _ExcludedModule, _is_key_under_prefixes
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from lime.method.deltas.mola import experts_of_block
from lime.tuner.config import LimeConfig, LimePeftType
from lime.tuner.layers.base import LimeLayer
from lime.tuner.layers.frozen_linear import LINEAR, check_fit, shape_of
from lime.tuner.layers.leaving import check_name_is_free, remove_adapter, remove_hooks
from lime.tuner.layers.linear import LimeLinear
from lime.tuner.layers.wrapped import LimeWrapped
from lime.tuner.prompt.hooks import InsertPrompt, RemovePrompt
from lime.tuner.prompt.layer import CHILD, PromptLayer, prompt_layer, prompt_place
from lime.tuner.routing.generation import GenerateOnePrompt
from lime.tuner.routing.hooks import CloseCall, OpenCall, check_arguments
from lime.tuner.routing.state import RoutingState
from lime.tuner.saved import upgrade_keys
from lime.tuner.settings import LimeSettings
from lime.tuner.towers import Target, Tower, find_parts, matches_any, resolve_targets
from lime.tuner.wrapping import inject_base

log = logging.getLogger(__name__)


class LimeModel(BaseTuner):
    """Puts LiME layers into a model: `LimeLinear` in place of linear layers, `LimeWrapped` around layers of another
    type of the `peft` library, or one `PromptLayer` into the language model. Every way into peft comes through
    `inject_adapter`.

    Raises:
        ValueError: targets that match nothing, or more experts than a layer has outputs; the model is then
            unchanged.
        TypeError: a target that is not a plain `nn.Linear`.
    """

    prefix = "lime_"
    tuner_layer_cls = LimeLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - declared so by the base class

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, **kwargs: Any) -> None:
        if isinstance(peft_config, LimeConfig) and peft_config.peft == "any":  # transformers gives no dictionary
            raise ValueError(
                "transformers cannot load or add an adapter over another type of the peft library, because its loader "
                "knows the tensors of one type alone; load it with lime.load or PeftModel.from_pretrained"
            )
        check_name_is_free(model, adapter_name)
        super().__init__(model, peft_config, adapter_name, **kwargs)
        self.training = model.training

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Called by peft around every forward pass and run of `generate`, with its arguments.

        Raises:
            NotImplementedError: an argument that peft would drop.
        """
        check_arguments(kwargs)
        yield

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        config = self.peft_config[adapter_name]
        if not isinstance(config, LimeConfig):
            raise TypeError(f"{adapter_name}: expected a LimeConfig, got {type(config).__name__}")
        model = getattr(model, "_orig_mod", model)  # of torch.compile
        self.lime_towers = {tower.name: tower for tower in find_parts(model)}
        targets: list[Target] = []
        if config.peft == "prompt_tuning":
            self.lime_prompt_tower, embedding = prompt_place(model, config)
            self.lime_targets = {embedding}
        else:
            targets = resolve_targets(model, config, config.modules_to_save)
            for target in targets:
                check_fit(target.name, config, shape_of(target.module))
            self.lime_targets = {target.name for target in targets}
        if remove_adapter(model, adapter_name):
            log.warning("the model has an adapter %r already, which this one replaces", adapter_name)
        self.lime_state = routing_state(model) or RoutingState()
        _check_not_saved(model, targets)
        if config.peft == "any":
            low_memory = kwargs.get("low_cpu_mem_usage", args[1] if len(args) > 1 else False)
            inject_base(model, config, targets, adapter_name, low_memory)
        else:
            _check_plain(model, targets)
        with _targets_as_asked(config):
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        if config.spec.by_sequence:
            self._mark_generation()
        layers = [layer for layer in lime_layers(model) if not isinstance(layer, PromptLayer)]
        hooked = {hook.scope for module in model.modules() for hook in module._forward_pre_hooks.values()
                  if isinstance(hook, OpenCall)}  # fmt: skip
        for name in sorted({layer.scope for layer in layers if layer.routes} - hooked):
            tower = model.get_submodule(name)
            opening = OpenCall(self.lime_state, name, self.lime_towers[name].flat)
            tower.register_forward_pre_hook(opening, with_kwargs=True)
            tower.register_forward_hook(CloseCall(self.lime_state, name), with_kwargs=True, always_call=True)

    def _check_target_module_exists(self, peft_config: LimeConfig, key: str) -> Any:  # type: ignore[override]
        if matches_any(key, peft_config.exclude_modules):
            return _ExcludedModule()
        return key in self.lime_targets

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: Any) -> PeftConfig:
        return peft_config  # absent targets mean the attention projections of each tower

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: LimeConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        options: dict[str, Any] = {"inference_mode": peft_config.inference_mode}
        if peft_config.peft != "any":
            options["init_weights"] = peft_config.init_weights
        if peft_config.scale_bias:
            options["scale_bias"] = True
        if peft_config.peft == "prompt_tuning":
            self._add_prompt(peft_config, adapter_name, target, options)
            return
        kind = LimeWrapped if peft_config.peft == "any" else LimeLinear
        if isinstance(target, kind):
            target.update_layer(adapter_name, self._settings_of(current_key, peft_config), **options)
            return
        if isinstance(target, LimeLayer) or not isinstance(target, BaseTunerLayer if kind is LimeWrapped else LINEAR):
            raise TypeError(f"{current_key}: LiME adapts plain linear layers, got {type(target).__name__}")
        layer = kind(target, current_key, self._tower_of(current_key).name, self.lime_state)
        layer.update_layer(adapter_name, self._settings_of(current_key, peft_config), **options)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _add_prompt(self, config: LimeConfig, adapter_name: str, embedding: nn.Module, options: dict[str, Any]) -> None:
        if isinstance(embedding, BaseTunerLayer):
            embedding = embedding.get_base_layer()
        weight: torch.Tensor = embedding.weight  # type: ignore[assignment]
        tower = self.lime_prompt_tower.name
        language = self.model.get_submodule(tower)
        layer = prompt_layer(language)
        if layer is None:
            layer = PromptLayer(f"{tower}.{CHILD}" if tower else CHILD, tower, self.lime_state, weight.shape[1])
            layer.train(language.training)
            language.add_module(CHILD, layer)
            # Before LiME's own hook, so that adapted layers find the virtual tokens among the real ones.
            language.register_forward_pre_hook(InsertPrompt(), with_kwargs=True, prepend=True)
            language.register_forward_hook(RemovePrompt(), with_kwargs=True, always_call=True)
        layer.update_layer(adapter_name, config.settings(), weight, **options)
        if adapter_name not in self.active_adapters:
            layer.lime_delta[adapter_name].requires_grad_(False)
        if config.enabled:
            self._mark_generation()

    def _mark_generation(self) -> None:
        model = getattr(self.model, "_orig_mod", self.model)
        if hasattr(type(model), "generate") and "generate" not in vars(model):
            model.generate = GenerateOnePrompt(model, self.lime_state)

    def _settings_of(self, key: str, config: LimeConfig) -> LimeSettings:
        """Settings of one layer: the number of experts may vary with its depth."""
        settings = config.settings()
        if config.expert_layout == "uniform":
            return settings
        names = key.split(".")
        for parts in range(1, len(names)):  # the outermost list of blocks around the layer
            blocks = self.model.get_submodule(".".join(names[:parts]))
            if isinstance(blocks, nn.ModuleList):
                experts = experts_of_block(settings.num_experts, int(names[parts]), len(blocks))
                return replace(settings, num_experts=experts)
        return settings  # outside the blocks

    def _tower_of(self, key: str) -> Tower:
        tower = next((tower for tower in self.lime_towers.values() if tower.holds(key)), None)
        if tower is None:
            raise ValueError(f"{key}: lies outside the towers that LiME adapts; leave it out")
        return tower

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool | None = None
    ) -> Iterator[tuple[str, nn.Module]]:
        """As of every module. Called without arguments, as peft's status of a model does, it leaves out what lies
        inside wrapped layers (`LimeWrapped`), so that those count once."""
        outer: str | None = None
        for name, module in super().named_modules(memo, prefix, remove_duplicate is not False):
            if memo is None and remove_duplicate is None:
                if outer is not None and name.startswith(outer):
                    continue
                if isinstance(module, LimeWrapped):
                    outer = name + "."
            yield name, module

    # -- saving and loading ----------------------------------------------------------------------------------

    @classmethod
    def _get_adapter_state_dict(cls, model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Called by peft to save: what layers share (the projections of VeRA) is saved once."""
        loaded: dict[str, torch.Tensor] = super()._get_adapter_state_dict(model, *args, **kwargs)
        repeated = _repeated(model)
        return {key: value for key, value in loaded.items() if key not in repeated}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Called by peft with the content of an adapter file: bring older keys up to date, and fail on any that is
        missing or left over."""
        loaded: dict[str, torch.Tensor] = super()._remap_adapter_state_dict_for_load(
            model=model, config=config, adapter_name=adapter_name, state_dict=upgrade_keys(state_dict.items())
        )
        state = model.state_dict()
        places = [name for name, module in model.named_modules() if isinstance(module, LimeLayer)]
        expected = {
            key
            for key in state.keys() - _repeated(model)
            if cls._remove_adapter_name_from_key(key, adapter_name) != key and _is_key_under_prefixes(key, set(places))
        }
        missing = sorted(cls._remove_adapter_name_from_key(key, adapter_name) for key in expected - loaded.keys())
        extra = sorted(loaded.keys() - state.keys())
        for what, keys in (("lacks", missing), ("has, beyond those of this model,", extra)):
            if keys:
                raise ValueError(
                    f"adapter {adapter_name!r}: the file {what} {len(keys)} tensors, first {keys[0]}; load it on the "
                    "model it was trained on"
                )
        for key in sorted(embedding_keys(model) & loaded.keys()):
            if loaded[key].shape != state[key].shape:
                raise ValueError(
                    f"adapter {adapter_name!r}: it was saved with {key} of shape {tuple(loaded[key].shape)}, the model "
                    f"has {tuple(state[key].shape)}; call resize_token_embeddings({len(loaded[key])}) on the base first"
                )
        return loaded

    # -- leaving ---------------------------------------------------------------------------------------------

    def unload(self) -> nn.Module:
        """The base model without adapters and without hooks."""
        remove_hooks(self.model)
        return super().unload()

    def _check_mergeable(self, adapter_names: list[str] | None) -> None:
        for layer in lime_layers(self.model):  # before the first weight changes
            layer.check_merge(adapter_names)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        self._check_mergeable(adapter_names)
        super().merge_adapter(adapter_names, safe_merge)

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """The base model with the updates of adapters without LiME in its weights, and without hooks."""
        self._check_mergeable(adapter_names)
        merged: nn.Module = super().merge_and_unload(progressbar, safe_merge, adapter_names)
        remove_hooks(merged)
        return merged


def _check_plain(model: nn.Module, targets: list[Target]) -> None:
    for target in targets:
        module = model.get_submodule(target.name)
        if isinstance(module, BaseTunerLayer) and not isinstance(module, LimeLinear):
            raise TypeError(
                f"{target.name}: LiME adapts plain linear layers, got {type(module).__name__}; to modulate an "
                "adapter of the peft library use peft='any'"
            )


def _check_not_saved(model: nn.Module, targets: list[Target]) -> None:
    wrappers = [name for name, module in model.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)]
    for target in targets:
        if any(target.name == name or target.name.startswith(name + ".") for name in wrappers):
            raise ValueError(
                f"{target.name}: another adapter trains it in full (modules_to_save); leave it out with "
                "exclude_modules, or name it in modules_to_save"
            )


@contextmanager
def _targets_as_asked(config: LimeConfig) -> Iterator[None]:
    """Keeps peft, which writes over `all-linear` and long lists, from changing what is saved. The layers are known by
    then, with LiME's own reading of the option."""
    asked = config.target_modules
    if asked == "all-linear":
        config.target_modules = None
    try:
        yield
    finally:
        config.target_modules = asked


def _repeated(model: nn.Module) -> set[str]:
    """Names of tensors that the model holds under an earlier name as well."""

    def names(remove_duplicate: bool) -> set[str]:
        parameters = model.named_parameters(remove_duplicate=remove_duplicate)
        buffers = model.named_buffers(remove_duplicate=remove_duplicate)
        return {name for name, _ in (*parameters, *buffers)}

    return names(remove_duplicate=False) - names(remove_duplicate=True)


def embedding_keys(model: nn.Module) -> set[str]:
    """Names of the tensors of a model's input and output embeddings."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = []
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        with suppress(AttributeError, NotImplementedError):  # of models without such a layer
            layers.append(getattr(base, getter)())
    named = [(name, module) for name, module in model.named_modules() if any(module is layer for layer in layers)]
    return {f"{name}.{key}" for name, module in named for key in module.state_dict()}


def lime_layers(model: nn.Module) -> list[LimeLayer]:
    """The layers of a model that have a LiME adapter."""
    return [module for module in model.modules() if isinstance(module, LimeLayer)]


def routing_state(model: nn.Module) -> RoutingState | None:
    """The open calls and recorder of a model with LiME; nothing without."""
    return next((module.routing_state for module in model.modules() if isinstance(module, LimeLayer)), None)


def register() -> None:
    """Make `peft` know LiME, so that `PeftModel.from_pretrained` reads its adapters. Registering again
    changes nothing."""
    PEFT_TYPE_TO_CONFIG_MAPPING[LimePeftType.LIME] = LimeConfig  # type: ignore[index]
    PEFT_TYPE_TO_TUNER_MAPPING[LimePeftType.LIME] = LimeModel  # type: ignore[index]
    PEFT_TYPE_TO_PREFIX_MAPPING[LimePeftType.LIME] = LimeModel.prefix  # type: ignore[index]


register()
