"""Options and presets, without torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from lime.tuner import PRESETS, LimeSettings, preset_settings
from lime.tuner.settings import OPTIONS

BAD = {
    "r": 0, "lora_alpha": 0.0, "dropout": 1.0, "peft": "lorra", "num_experts": 0, "router": "dense",
    "gamma_routing": 1.5,
    "temperature": 0.0, "feature_slice": "middle", "routing_norm": "batch", "selection": "soft",
    "auto_topk_threshold": 2.0,
    "jitter_noise": -0.1, "n_gram": 0, "window_anchor": "middle", "scope": "everything", "target_modules": [],
    "orientation": "diagonal", "expert_layout": "triangle", "max_experts": 0, "soft_temperature": 0.0,
    "exclude_modules": "", "modulator_range": -0.1,
}  # fmt: skip


@pytest.mark.parametrize("option", BAD)
def test_each_bad_value_is_named_with_its_key(option: str) -> None:
    messages = replace(LimeSettings(), **{option: BAD[option]}).errors(lambda name: f"lime.{name}")
    assert any(line.startswith(f"lime.{option}: ") and repr(BAD[option]) in line for line in messages)


def test_all_errors_at_once() -> None:
    messages = replace(LimeSettings(), r=0, temperature=-1.0, scope="x").errors()
    assert [line.split(":")[0] for line in messages] == ["r", "scope", "temperature"]
    with pytest.raises(ValueError, match=r"(?s)r: .*scope: .*temperature: "):
        replace(LimeSettings(), r=0, temperature=-1.0, scope="x").check()


@pytest.mark.parametrize(
    ("option", "value"), [("r", "2"), ("soft", 1), ("r", True), ("target_modules", 3), ("n_gram", 1.5)]
)
def test_wrong_types(option: str, value: object) -> None:
    (message,) = replace(LimeSettings(), **{option: value}).errors()
    assert message.startswith(f"{option}: expected ")


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 3},
        {"selection": "topk", "auto_topk_threshold": 0.5},
        {"soft_temperature": 0.1},
        {"soft": True, "max_experts": 2},
        {"selection": "dense", "soft": True},
        {"routing_seed": 3},
        {"router": "learned", "routing_norm": "token"},
        {"window_anchor": "last"},
        {"orientation": "rows"},
        {"peft": "slicefine", "lora_alpha": 8.0},
        {"peft": "lora_fa", "enabled": False, "orientation": "both"},
        {"peft": "any", "rank_modulation": True},
        {"peft": "hydra_lora", "modulator_range": 0.5},
        {"peft": "prompt_tuning", "feature_slice": "variance"},
        {"peft": "prompt_tuning", "routing_norm": "standard"},
    ],
)
def test_an_option_without_effect_is_an_error(options: dict[str, object]) -> None:
    assert any("has no effect" in line for line in replace(LimeSettings(), **options).errors())


def test_top_k_above_the_experts() -> None:
    assert replace(LimeSettings(), selection="topk", top_k=5).errors() == [
        "top_k: expected between 1 and num_experts (4), got 5"
    ]


def test_presets_are_valid_and_differ() -> None:
    made = {name: preset_settings(name) for name in PRESETS}
    assert made["default"] == LimeSettings()
    assert len({str(settings) for settings in made.values()}) == len(PRESETS)
    assert preset_settings("paper", num_experts=8).num_experts == 8


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'num_experts'"):
        preset_settings(num_expert=3)
    with pytest.raises(ValueError, match="default, paper, authors, quickstart"):
        preset_settings("papers")


def test_public_options_are_these() -> None:
    """So that none appears or dies by accident."""
    assert OPTIONS == (
        "enabled", "peft", "r", "lora_alpha", "rslora", "dropout", "orientation", "num_virtual_tokens", "prompt_init",
        "base", "base_options", "expert_layout", "num_experts", "router", "gamma_routing", "temperature",
        "feature_slice", "routing_seed", "routing_norm", "jitter_noise", "selection", "auto_topk_threshold", "top_k",
        "max_experts", "soft", "soft_temperature", "shared_modulator", "modulator_range", "rank_modulation", "n_gram",
        "window_anchor", "scope", "target_modules", "exclude_modules",
    )  # fmt: skip


def test_settings_import_no_torch() -> None:
    code = "import sys, lime, lime.tuner.settings, lime.tuner.presets; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
