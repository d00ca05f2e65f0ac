"""One line to adapt a model: `model, report = lime.apply(model, …)`."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lime.method.deltas.table import type_options
from lime.tuner.config import LimeConfig
from lime.tuner.layers.base import LimeLayer
from lime.tuner.layers.leaving import remove_adapter
from lime.tuner.model import embedding_keys, lime_layers, routing_state
from lime.tuner.presets import preset_settings
from lime.tuner.reporting import ApplyReport, report
from lime.tuner.routing.recorder import Recorder
from lime.tuner.saved import WEIGHTS_FILE, check_types, read_tensors, upgrade_keys
from lime.tuner.settings import LimeSettings
from lime.tuner.towers import resolve_targets
from lime.tuner.wrapping import base_config, settings_of

log = logging.getLogger(__name__)


def apply(
    model: PreTrainedModel | PeftModel,
    config: LimeSettings | None = None,
    *,
    preset: str = "default",
    adapter_name: str = "default",
    **options: Any,
) -> tuple[PeftModel, ApplyReport]:
    """Adapt a model with LiME and freeze the rest.

    Args:
        model: a model of transformers; its layers are replaced in place. Or a model of the `peft` library with one
            adapter: LiME then modulates that adapter, as trained so far, over its own targets;
            `peft`, `base`, `scope` and targets are read off it, and the given object is not to be used further.
        config: a `LimeConfig`, or plain `LimeSettings`. With `enabled=False` the PEFT type alone, in the same scope:
            LoRA and DoRA by the `peft` library's own implementation, other types by this tuner, which then has
            neither modulators nor routing. Absent: the `preset` with `options` over
            it.
        preset: a key of `lime.tuner.PRESETS`: `default`, `paper`, `authors` or `quickstart`.
        adapter_name: name of the adapter.
        options: fields of `LimeSettings`, e.g. `num_experts=8, scope="both"`; also `modules_to_save`.

    Returns:
        The adapted model, a `peft.PeftModel`, and a report of the layers that were adapted.

    Raises:
        ValueError: invalid options, targets that match nothing, or more experts than a layer has outputs.
    """
    modules_to_save = options.pop("modules_to_save", None)
    if config is None:
        config = preset_settings(preset, **options)
    elif options or preset != "default":
        raise ValueError(
            f"give either a configuration or options, not both: {', '.join(options) or f'preset={preset!r}'}"
        )
    if modules_to_save is not None and isinstance(config, LimeConfig):
        raise ValueError("modules_to_save: set it on the LimeConfig")
    config.check()
    if isinstance(model, PeftModel):
        model, config, adapter_name = _adopt(model, config, adapter_name)
    adapted = _inject(model, _peft_config(model, config, modules_to_save), adapter_name)
    applied = report(adapted)
    log.info(
        "adapted %s with %s:\n%s",
        type(model).__name__,
        "LiME" if config.enabled and not config.spec.is_mixture else config.peft,
        applied.table(),
    )
    log.debug("adapted layers:\n%s", applied.table(every_layer=True))
    return adapted, applied


def _inject(model: PreTrainedModel, config: PeftConfig, adapter_name: str) -> PeftModel:
    if not isinstance(config, LimeConfig):
        _make_room(model, adapter_name)
    with warnings.catch_warnings():  # peft asks for an attribute that transformers has renamed
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        if isinstance(config, LimeConfig) and config.peft == "any":
            warnings.filterwarnings("ignore", message="You are trying to modify a model with PEFT for a second time")
        if adapter_name in getattr(model, "peft_config", {}):  # the earlier adapter of this name is replaced
            warnings.filterwarnings("ignore", message="You are trying to modify a model with PEFT for a second time")
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute in the model")
        adapted: PeftModel = get_peft_model(model, config, adapter_name=adapter_name)
        adapted.training = adapted.base_model.training = model.training
        for layer in adapted.modules():
            if isinstance(layer, BaseTunerLayer):  # peft's own begin in training mode
                layer.train(layer.get_base_layer().training)
            elif isinstance(layer, AuxiliaryTrainingWrapper):
                layer.train(layer.original_module.training)
        return adapted


def _make_room(model: nn.Module, adapter_name: str) -> None:
    """For a type of the `peft` library alone: nothing of an earlier adapter of that name, and no LiME layers."""
    replaced = remove_adapter(model, adapter_name)
    if adapter_name in getattr(model, "peft_config", {}):
        replaced |= remove_adapter(model, adapter_name, BaseTunerLayer)
    if replaced:
        log.warning("the model has an adapter %r already, which this one replaces", adapter_name)
    if layers := lime_layers(model):
        names = sorted({name for layer in layers for name in layer._all_available_adapter_names()})
        raise ValueError(
            f"the model has LiME adapters ({', '.join(names)}), beside which the peft library's own types cannot be; "
            "call unload() first, or adapt another copy of the base model"
        )


def _adopt(model: PeftModel, config: LimeSettings, adapter_name: str) -> tuple[PreTrainedModel, LimeSettings, str]:
    """The base of a model that the `peft` library adapted, its layers in place, and the settings that wrap them."""
    default = LimeSettings()
    for option in (*type_options(), "peft", "target_modules", "exclude_modules", "scope"):
        if getattr(config, option) != getattr(default, option):
            raise ValueError(f"{option}: the model has an adapter already, of which that is read; leave it out")
    if not config.enabled:
        raise ValueError("enabled: the model has an adapter without LiME already; there is nothing to do")
    base, settings, name = settings_of(model, config)
    if adapter_name not in ("default", name):
        raise ValueError(f"adapter_name: the model's adapter is called {name!r}, got {adapter_name!r}; leave it out")
    del base.peft_config
    return base, settings, name  # type: ignore[return-value]


def _peft_config(model: nn.Module, settings: LimeSettings, modules_to_save: list[str] | None) -> PeftConfig:
    if isinstance(settings, LimeConfig):
        return settings
    if settings.enabled or settings.peft not in ("lora", "dora", "any"):  # those without LiME: peft's own
        return LimeConfig.from_settings(settings, modules_to_save=modules_to_save)
    targets = resolve_targets(model, settings, modules_to_save)
    if settings.peft == "any":
        return base_config(settings, targets, modules_to_save=modules_to_save)
    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]  # a float works as well
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        use_dora=settings.peft == "dora",
        target_modules=[target.name for target in targets],
        fan_in_fan_out=all(isinstance(target.module, Conv1D) for target in targets),
        modules_to_save=modules_to_save,
    )


def load(
    model: PreTrainedModel, path: str | Path, *, adapter_name: str = "default", is_trainable: bool = False
) -> tuple[PeftModel, ApplyReport]:
    """Put a saved adapter, LiME or a plain type of the `peft` library, back on its base model.

    Args:
        model: the base model; its layers are replaced in place.
        path: folder with `adapter_config.json` and `adapter_model.safetensors`.
        is_trainable: continue training; else every parameter is frozen.

    Raises:
        FileNotFoundError: the folder holds no adapter.
        ValueError: the adapter is of another model: a layer is missing, or has another shape; or a file that is
            damaged, was changed since it was saved, or holds what no training saves (`lime.tuner.saved`).
    """
    folder = Path(path)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name}: not found; expected the folder of an adapter saved in peft's format"
            )
    tensors = upgrade_keys(read_tensors(folder).items())
    saved = {key: tuple(value.shape) for key, value in tensors.items()}
    config = _saved_config(folder)
    config.inference_mode = not is_trainable
    config.base_model_name_or_path = None  # peft warns where the same backbone lies at another path
    adapted = _inject(model, config, adapter_name)
    fitting = get_peft_model_state_dict(adapted, adapter_name=adapter_name)
    expected = {key: tuple(value.shape) for key, value in fitting.items()}
    # peft saves embeddings too, where asked or where the vocabulary was resized; what loads them looks at their size
    expected |= {key: saved[key] for key in embedding_keys(adapted) & saved.keys()}
    if wrong := _difference(saved, expected):
        raise ValueError(
            f"{folder}: the adapter does not fit {type(model).__name__}; {wrong}. "
            "Load it on the model it was trained on"
        )
    check_types(folder / WEIGHTS_FILE, tensors, fitting)
    adapted.load_adapter(str(folder), adapter_name=adapter_name, is_trainable=is_trainable)
    if not is_trainable:
        adapted.requires_grad_(False)
        adapted.eval()
    return adapted, report(adapted)


def _saved_config(folder: Path) -> PeftConfig:
    path = folder / "adapter_config.json"
    try:
        kind = json.loads(path.read_text(encoding="utf-8"))["peft_type"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the configuration of a peft adapter ({error!r})") from error
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise ValueError(f"{path}: peft_type {kind!r} is not known to this version of the peft library")
    return PeftConfig.from_pretrained(str(folder))


def _difference(saved: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> str:
    if missing := sorted(expected.keys() - saved.keys()):
        return f"the file lacks {len(missing)} tensors, first {missing[0]}"
    if extra := sorted(saved.keys() - expected.keys()):
        return f"the file has {len(extra)} tensors more, first {extra[0]}"
    reshaped = [key for key in sorted(saved) if saved[key] != expected[key]]
    return f"{reshaped[0]} has shape {saved[reshaped[0]]}, expected {expected[reshaped[0]]}" if reshaped else ""


def has_routing(model: nn.Module) -> bool:
    """Whether a model has LiME layers, so that `record` can record something."""
    return any(module.routes for module in model.modules() if isinstance(module, LimeLayer))


@contextlib.contextmanager
def record(model: nn.Module) -> Iterator[Recorder]:
    """Record the routing of the forward passes inside.

        with lime.tuner.record(model) as recorder:
            loss = model(**batch).loss
        terms = recorder.balance()          # BalanceTerms(importance, kl), with gradient
        statistics = recorder.statistics()  # sums by layer, detached

    Raises:
        ValueError: the model has no LiME layers.
    """
    state = routing_state(model)
    if state is None or not has_routing(model):
        raise ValueError("the model has no LiME layers to record; adapt it with lime.apply, with LiME switched on")
    with state.recording() as recorder:
        yield recorder
