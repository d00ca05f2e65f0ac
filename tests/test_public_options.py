"""The public surface, frozen: no option or name appears, disappears or changes its default by accident.

A deliberate change is made here as well, and told in the documentation; an option that was once public keeps working
under its name (`lime.tuner.presets`).
"""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest

import lime
from lime.method.deltas import table
from lime.method.deltas.table import TYPES
from lime.tuner import settings
from lime.tuner.presets import ALIASES, NOT_NEEDED

OPTIONS = {
    "enabled": True, "peft": "lora", "r": 2, "lora_alpha": 16.0, "rslora": False, "dropout": 0.0,
    "orientation": "columns",
    "num_virtual_tokens": 20, "prompt_init": "vocabulary", "base": "lora", "base_options": None,
    "expert_layout": "uniform",
    "num_experts": 4, "router": "zero", "gamma_routing": 0.7, "temperature": 0.5, "feature_slice": "leading",
    "routing_seed": 0, "routing_norm": "slice", "jitter_noise": 0.1, "selection": "auto", "auto_topk_threshold": 0.7,
    "top_k": 2, "max_experts": None, "soft": False, "soft_temperature": 0.5, "shared_modulator": True,
    "modulator_range": 0.1, "rank_modulation": False, "n_gram": 1,
    "window_anchor": "first", "scope": "language_model", "target_modules": None, "exclude_modules": None,
}  # fmt: skip
MIXTURES = {  # the routing that each brings with it, beside a temperature of 1 and no noise
    "moe_lora": {"selection": "topk", "top_k": 2},
    "moe_lora_fa": {"selection": "topk", "top_k": 2},
    "moe_dora": {"selection": "topk", "top_k": 2},
    "hydra_lora": {"selection": "dense"},
    "mix_lora": {"selection": "dense"},
    "mola": {"selection": "topk", "top_k": 2},
    "mocle": {"selection": "dense"},
    "more": {"selection": "topk", "top_k": 1},
}
CHOICES = {
    "ROUTERS": ("zero", "learned"),
    "FEATURE_SLICES": ("leading", "trailing", "central", "random", "variance"),
    "ROUTING_NORMS": ("slice", "token", "tensor", "scaled", "standard"),
    "SELECTIONS": ("auto", "topk", "dense"),
    "WINDOW_ANCHORS": ("first", "last"),
    "SCOPES": (
        "language_model",
        "vision_tower",
        "both",
        "projector",
        "language_model+projector",
        "vision_tower+projector",
        "all",
    ),
    "ORIENTATIONS": ("columns", "rows", "both"),
    "PROMPT_INITS": ("vocabulary", "normal"),
    "EXPERT_LAYOUTS": ("uniform", "inverted_triangle"),
}
PRESETS = {
    "default": {},
    "paper": {"routing_norm": "token", "n_gram": 3, "window_anchor": "last"},
    "authors": {
        "routing_norm": "tensor",
        "soft": True,
        "auto_topk_threshold": 0.5,
        "n_gram": 1,
        "window_anchor": "last",
    },
    "quickstart": {"selection": "topk", "top_k": 2, "n_gram": 1},
}
NAMES = [
    "ApplyReport", "LimeConfig", "LimeSettings", "apply", "compose", "load", "open_run", "parameter_groups", "record",
]  # fmt: skip
TUNER_NAMES = [
    "PRESETS", "ApplyReport", "BalanceTerms", "LayerStatistics", "LimeConfig", "LimeModel", "LimeSettings", "Recorder",
    "ReportRow", "RoutingStatistics", "apply", "calibrate", "has_routing", "load", "parameter_groups",
    "preset_settings", "record", "register", "report",
]  # fmt: skip
TRAINING_ARGUMENTS = {
    "moe_lr": 1e-3, "peft_lr": 4e-4, "moe_weight_decay": 0.0, "loraplus_ratio": None, "importance_coef": 0.1,
    "kl_coef": 0.01, "balance_every_n_steps": 1, "weight_decay": 0.01, "warmup_steps": 0.03,
}  # fmt: skip
DOCUMENT = (Path(__file__).parent.parent / "docs" / "method.md").read_text(encoding="utf-8")


def test_options_and_defaults() -> None:
    assert {f.name: getattr(lime.LimeSettings(), f.name) for f in dataclasses.fields(lime.LimeSettings)} == OPTIONS


def test_choices() -> None:
    assert {name: tuple(getattr(settings, name)) for name in CHOICES} == CHOICES


def test_types() -> None:
    assert tuple(TYPES) == ("lora", "lora_fa", "dora", "slicefine", "prompt_tuning", "any", *MIXTURES)
    assert [name for name, kind in TYPES.items() if kind.by_sequence] == ["mocle", "more"]


def test_presets() -> None:
    assert lime.tuner.PRESETS == PRESETS


def test_mixtures() -> None:
    unlike_lime = {"temperature": 1.0, "jitter_noise": 0.0}
    assert {name: {**routing, **unlike_lime} for name, routing in MIXTURES.items()} == table.MIXTURES


def test_config_fields_of_an_adapter() -> None:
    peft_s = {f.name for f in dataclasses.fields(lime.LimeConfig.__mro__[2])}
    own = {f.name for f in dataclasses.fields(lime.LimeConfig)} - peft_s - OPTIONS.keys()
    assert own == {"modules_to_save", "init_weights", "scale_bias", "format_version"}


def test_names() -> None:
    assert sorted(lime.__all__) == NAMES
    assert sorted(lime.tuner.__all__) == sorted(TUNER_NAMES)
    for name in {*NAMES} - {"compose", "open_run"}:
        assert getattr(lime, name) is getattr(lime.tuner, name)


def test_signatures() -> None:
    assert list(inspect.signature(lime.apply).parameters) == ["model", "config", "preset", "adapter_name", "options"]
    assert list(inspect.signature(lime.load).parameters) == ["model", "path", "adapter_name", "is_trainable"]


def test_training_arguments() -> None:
    from lime.integrations.trainer import LimeTrainingArguments

    own = set(vars(LimeTrainingArguments)["__annotations__"])
    fields = {f.name: f.default for f in dataclasses.fields(LimeTrainingArguments)}
    assert {name: fields[name] for name in own} == TRAINING_ARGUMENTS


def test_aliases() -> None:
    assert ALIASES == {
        "rank": "r", "alpha": "lora_alpha", "targets": "target_modules", "use_shared_LiME": "shared_modulator"
    }  # fmt: skip
    assert NOT_NEEDED.keys() == {"rep_mode", "tokenizer", "peft_dtype", "moe_dtype"}


DOCUMENTED = [*OPTIONS, *PRESETS, *MIXTURES, *ALIASES, *NOT_NEEDED, *TRAINING_ARGUMENTS, "auto_topk"]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_public_option_is_documented(name: str) -> None:
    assert f"`{name}`" in DOCUMENT
