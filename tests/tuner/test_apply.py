"""What gets adapted, what the report says, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

import lime
from lime.models.architectures import ARCHITECTURES, build_shapes
from lime.tuner.settings import LimeSettings
from tests.tuner import small_models as small

families = pytest.mark.parametrize("family", small.FAMILIES)


@families
@pytest.mark.parametrize("enabled", [True, False])
def test_report_counts_what_trains(family: str, enabled: bool) -> None:
    for scope, kinds in {"language_model": {"language_model"}, "vision_tower": {"vision_tower"}}.items():
        base = small.build(family)
        parameters = sum(p.numel() for p in base.parameters())
        model, report = lime.apply(base, LimeSettings(enabled=enabled, scope=scope, r=3))
        assert {row.tower for row in report.rows} == kinds
        assert report.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert report.total_parameters - report.adapter_parameters == parameters
        for row in report.rows:
            lora = 3 * (row.d_in + row.d_out)
            assert row.trainable == lora + (4 * row.d_out + row.d_out + 1 if enabled else 0)
        assert f"{report.trainable:,}" in str(report)
        assert report.rows[0].module in report.table(every_layer=True)


@families
def test_default_targets_are_the_attention_projections(family: str) -> None:
    _, report = lime.apply(small.build(family), scope="both")
    leaves = {tower: {row.module.rpartition(".")[2] for row in report.rows if row.tower == tower} for tower in
              ("language_model", "vision_tower")}  # fmt: skip
    assert leaves["language_model"] == {"q_proj", "k_proj", "v_proj", "o_proj"}
    vision = {"qwen2_vl": {"qkv", "proj"}, "llava_onevision": {"q_proj", "k_proj", "v_proj", "out_proj"}}
    assert leaves["vision_tower"] == vision[family]
    assert [total.layers for total in report.towers] == ([4, 8] if family == "qwen2_vl" else [8, 8])


def modules(**options: Any) -> list[str]:
    _, report = lime.apply(small.build("llava_onevision"), **options)
    return [row.module for row in report.rows]


def test_targets_by_name_regular_expression_and_all() -> None:
    assert len(modules(target_modules=["v_proj", "layers.0.mlp.down_proj"])) == 3
    assert modules(target_modules=r".*layers\.1\.self_attn\.q_proj") == [
        "model.language_model.layers.1.self_attn.q_proj"
    ]
    assert len(modules(target_modules="all-linear")) == 2 * 7
    assert len(modules(exclude_modules=["layers.0.self_attn.q_proj"])) == 7
    everything = modules(target_modules="all-linear", scope="both")
    assert len(everything) == 2 * 7 + 2 * 6
    assert not any("projector" in name or "lm_head" in name for name in everything)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["q_prj"]}, r"'q_prj' matches no linear layer.*q_proj \(2\)"),
        ({"target_modules": ["q_proj", "out_proj"]}, r"'out_proj' matches no linear layer.*It matches .*vision_tower"),
        ({"target_modules": r".*visual.*"}, "matches no linear layer"),
        ({"target_modules": ["embed_tokens"]}, "outside the linear layers"),
        ({"exclude_modules": ["x_proj"]}, "excludes none"),
        ({"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}, "nothing is left"),
    ],
)
def test_targets_that_match_nothing(options: dict[str, Any], message: str, enabled: bool) -> None:
    with pytest.raises(ValueError, match=message):
        lime.apply(small.build("llava_onevision"), enabled=enabled, **options)


def test_scope_without_a_tower() -> None:
    with pytest.raises(ValueError, match="scope: 'vision_tower' needs a vision_tower, which Qwen2Model does not have"):
        lime.apply(small.build("llava_onevision").model.language_model, scope="vision_tower")


def test_more_experts_than_a_layer_is_wide_leaves_the_model_alone() -> None:
    base = small.build("llava_onevision")
    with pytest.raises(ValueError, match=r"17 experts .*layers\.0\.self_attn\.k_proj has only 16 outputs"):
        lime.apply(base, num_experts=17)
    assert not small.lime_layers(base)
    with pytest.raises(ValueError, match="num_experts: expected at least 1 expert, got 0"):
        lime.apply(base, num_experts=0)
    _, report = lime.apply(base, num_experts=16)
    assert report.layers == 8


def test_attention_that_reads_its_weight_itself_is_not_a_target() -> None:
    """SigLIP's pooling head is an `nn.MultiheadAttention`, whose output projection is never called."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    model = SiglipVisionModel(config)
    assert isinstance(model.head.attention, nn.MultiheadAttention)
    _, report = lime.apply(model, scope="vision_tower")
    assert not any("head" in row.module for row in report.rows)
    assert report.layers == 4


def test_options_and_configuration_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="not both: num_experts"):
        lime.apply(small.build("llava_onevision"), LimeSettings(), num_experts=3)


@families
def test_without_lime_it_is_the_library_s_lora(family: str) -> None:
    model, report = lime.apply(small.build(family), enabled=False, r=3, lora_alpha=6.0, dropout=0.1, scope="both")
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    assert len(layers) == report.layers > 8
    assert all(layer.scaling["default"] == 2.0 and layer.lora_dropout["default"].p == 0.1 for layer in layers)
    groups = lime.parameter_groups(model)
    assert not groups["modulators"]
    assert sum(p.numel() for _, p in groups["peft"]) == report.trainable
    assert not lime.tuner.has_routing(model)
    with pytest.raises(ValueError, match="no LiME layers"), lime.record(model):
        pass


def test_with_even_modulators_lime_is_lora() -> None:
    """P = 1 and gamma = 0 give the library's LoRA, outputs and gradients."""
    inputs = small.batch("llava_onevision", [small.row("llava_onevision", 9, 1), small.row("llava_onevision", 12, 2)])
    ours = small.apply_random(small.build("llava_onevision"))
    theirs, _ = lime.apply(small.build("llava_onevision"), enabled=False, r=4)
    loras = [module for module in theirs.modules() if isinstance(module, LoraLayer)]
    with torch.no_grad():
        for layer, lora in zip(small.lime_layers(ours), loras, strict=True):
            layer.lime_experts["default"].fill_(1.0)
            layer.lime_gamma["default"].fill_(0.0)
            lora.lora_A["default"].weight.copy_(layer.lime_delta["default"].A)
            lora.lora_B["default"].weight.copy_(layer.lime_delta["default"].B)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    for model in (ours, theirs):
        model(**inputs, labels=labels).loss.backward()
    for a, b in zip(small.logits(ours, inputs), small.logits(theirs.eval(), inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    for layer, lora in zip(small.lime_layers(ours), loras, strict=True):
        for p, weight in ((layer.lime_delta["default"].A, lora.lora_A), (layer.lime_delta["default"].B, lora.lora_B)):
            torch.testing.assert_close(p.grad, weight["default"].weight.grad, atol=1e-4, rtol=1e-3)


# -- the published backbones, from shapes alone --------------------------------------------------------------

PUBLISHED = {
    "llava_onevision": (8_029_890_080, {"language_model": (112, 2_408_560), "both": (216, 3_486_936)}),
    "llava_onevision_0_5b": (893_675_552, {"language_model": (96, 516_192)}),
    "qwen2vl": (8_291_375_616, {"language_model": (112, 2_408_560)}),
    "qwen2vl_2b": (2_208_985_600, {}),
    "qwen2_5vl_7b": (8_292_166_656, {"both": (176, 3_719_344)}),  # q, k, v, o; qkv and proj in the vision tower
    "qwen2_5vl_3b": (3_754_622_976, {"language_model": (144, 1_751_184)}),
    "smolvlm_256m": (256_484_928, {"language_model": (120, 460_920), "both": (168, 792_744)}),
    "smolvlm_500m": (507_482_304, {"language_model": (128, 819_328)}),
    "gemma3_4b": (4_300_079_472, {"both": (244, 3_365_620)}),
    "internvl3_1b": (938_193_024, {"language_model": (96, 516_192), "both": (192, 1_401_024)}),
    "internvl3_2b": (2_088_957_440, {"language_model": (112, 1_046_640)}),
    "internvl3_8b": (7_944_373_760, {"language_model": (112, 2_408_560)}),
}


QUICK = ("llava_onevision", "llava_onevision_0_5b", "qwen2vl", "qwen2vl_2b", "smolvlm_256m")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_published_parameter_counts(name: str) -> None:
    total, scopes = PUBLISHED[name]
    assert sum(p.numel() for p in build_shapes(name).parameters()) == total
    for scope, expected in scopes.items():
        _, report = lime.apply(build_shapes(name), scope=scope)
        assert (report.layers, report.trainable) == expected


def test_published_lora_counts() -> None:
    _, report = lime.apply(build_shapes("llava_onevision"), enabled=False, scope="both")
    assert (report.layers, report.trainable) == (216, 1_740_800)
    _, report = lime.apply(build_shapes("llava_onevision_0_5b"), enabled=False)
    assert (report.layers, report.trainable) == (96, 270_336)


def test_unknown_backbone() -> None:
    with pytest.raises(ValueError, match="no shapes for 'llava'"):
        build_shapes("llava")
