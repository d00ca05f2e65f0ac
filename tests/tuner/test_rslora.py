"""rsLoRA: the scale alpha / sqrt(r), as the peft library's own layers have it, and refused where there is no scale."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import nn

import lime
from lime.method.deltas.table import TYPES
from lime.tuner.settings import LimeSettings
from tests.tuner import small_models as small

SCALED = [name for name, kind in TYPES.items() if "rslora" in kind.options]
R, ALPHA = 6, 5.0


def delta_of(name: str, rslora: bool) -> Any:
    """The update of a 12 -> 10 layer, not zero, from one seed."""
    kind = TYPES[name]
    settings = LimeSettings(peft=name, r=R, lora_alpha=ALPHA, rslora=rslora, num_experts=2)
    torch.manual_seed(0)
    base = nn.Linear(12, 10)
    return base, kind.delta_class()(base, zero_init=False, **kind.delta_options(settings))


def test_which_types_have_the_scale() -> None:
    assert [name for name in TYPES if name not in ("slicefine", "prompt_tuning", "any")] == SCALED


@pytest.mark.parametrize("name", SCALED)
def test_the_scale_is_alpha_over_the_root_of_the_rank(name: str) -> None:
    (_, usual), (_, scaled) = delta_of(name, rslora=False), delta_of(name, rslora=True)
    assert usual.scale == ALPHA / R
    assert math.isclose(scaled.scale, ALPHA / math.sqrt(R))
    torch.testing.assert_close(scaled.basis(), math.sqrt(R) * usual.basis())


@pytest.mark.parametrize("name", ["lora", "lora_fa", "dora"])
def test_it_equals_the_librarys_own_layer(name: str) -> None:
    base, delta = delta_of(name, rslora=True)
    config = LoraConfig(r=R, lora_alpha=ALPHA, use_rslora=True, use_dora=name == "dora")  # type: ignore[arg-type]
    own: Any = Linear(base, "default", config, R, lora_alpha=ALPHA)  # type: ignore[arg-type]
    with torch.no_grad():
        own.lora_A["default"].weight.copy_(delta.A)
        own.lora_B["default"].weight.copy_(delta.B)
        x = torch.randn(3, 12)
        expected = own(x)
        found = base(x) + delta(x)
        if name == "dora":
            gain = delta.gain(base.weight)
            found = gain * (base(x) - base.bias + delta(x)) + base.bias
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(expected, base(x), atol=1e-2)


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_types_without_lime_hand_it_to_the_library(name: str) -> None:
    model, _ = lime.apply(small.build("llava_onevision"), peft=name, enabled=False, r=4, lora_alpha=8.0, rslora=True)
    assert model.peft_config["default"].use_rslora  # type: ignore[attr-defined]
    (scale,) = {module.scaling["default"] for module in model.modules() if isinstance(module, Linear)}
    assert scale == 4.0


def test_it_is_saved_and_loaded(tmp_path: Any) -> None:
    model = small.apply_random(small.build("llava_onevision"), rslora=True)
    inputs = small.batch("llava_onevision", [small.row("llava_onevision", 7, 1)])
    expected = small.logits(model, inputs)
    model.save_pretrained(tmp_path)
    loaded, _ = lime.load(small.build("llava_onevision"), tmp_path)
    assert all(map(torch.equal, small.logits(loaded, inputs), expected))
    usual = small.apply_random(small.build("llava_onevision"))
    assert not torch.equal(small.logits(usual, inputs)[0], expected[0])


@pytest.mark.parametrize("name", ["slicefine", "prompt_tuning", "any"])
def test_it_is_refused_by_name_where_there_is_no_scale(name: str) -> None:
    with pytest.raises(ValueError, match=r"rslora: True has no effect without `peft: lora or lora_fa or dora"):
        lime.tuner.preset_settings(peft=name, rslora=True)
