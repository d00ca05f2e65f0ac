"""The projector between vision tower and language model as a scope: found in every family, and adapted like a tower."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

import lime
from lime.config.training import OptimConfig, TowerRates
from lime.training.optimizer import optimizer_groups
from lime.tuner.towers import find_parts, kind_of
from tests.properties.steps import training_batch
from tests.tuner import small_models as small

PLACES = {"llava_onevision": "model.multi_modal_projector.linear_", "qwen2_vl": "model.visual.merger.mlp."}
TYPES: list[dict[str, Any]] = [
    {}, {"peft": "dora", "n_gram": 2}, {"peft": "mocle"}, {"enabled": False}, {"peft": "any", "base": "ia3"},
]  # fmt: skip
every_family = pytest.mark.parametrize("family", small.FAMILIES)


@functools.cache
def _built(family: str) -> Any:
    return small.build(family)


def base_of(family: str) -> Any:
    """A copy of one model."""
    return copy.deepcopy(_built(family))


def assert_same(family: str, found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Bit for bit; of two copies of LLaVA-OneVision with an image, up to the rounding of the CPU's own operations."""
    if family == "qwen2_vl":
        assert all(map(torch.equal, found, expected))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def rows(family: str) -> dict[str, torch.Tensor]:
    return small.batch(family, [small.row(family, 9, 1, with_image=True), small.row(family, 6, 2)])


def adapted_names(family: str, **options: Any) -> set[str]:
    return {row.module for row in lime.apply(base_of(family), **options)[1].rows}


@every_family
@pytest.mark.parametrize("options", TYPES, ids=str)
def test_a_fresh_adapter_changes_nothing_and_every_parameter_learns(family: str, options: dict[str, Any]) -> None:
    inputs = rows(family)
    expected = small.logits(base_of(family), inputs)
    model, report = lime.apply(base_of(family), scope="projector", **options)
    assert [(total.tower, total.layers) for total in report.towers] == [("projector", 2)]
    assert all(row.module.startswith(PLACES[family]) for row in report.rows)
    assert report.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    model.eval()
    assert_same(family, small.logits(model, inputs), expected)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))
    assert not torch.allclose(small.logits(model, inputs)[0], expected[0], atol=1e-4)
    model.train()
    batch = training_batch(family, [small.row(family, 9, 1, with_image=True)], [3])
    model(**batch).loss.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not without


@every_family
def test_saved_and_loaded(family: str, tmp_path: Path) -> None:
    model = small.apply_random(base_of(family), scope="all")
    expected = small.logits(model, rows(family))
    model.save_pretrained(tmp_path)
    loaded, report = lime.load(base_of(family), tmp_path)
    assert {total.tower for total in report.towers} == {"language_model", "vision_tower", "projector"}
    assert_same(family, small.logits(loaded, rows(family)), expected)
    frozen = small.logits(base_of(family), rows(family))
    with loaded.disable_adapter():
        assert_same(family, small.logits(loaded, rows(family)), frozen)


@every_family
def test_scopes_add_up_and_the_earlier_ones_are_what_they_were(family: str) -> None:
    language, vision, projector = (adapted_names(family, scope=scope)
                                   for scope in ("language_model", "vision_tower", "projector"))  # fmt: skip
    assert len(projector) == 2
    assert not projector & (language | vision)
    assert adapted_names(family, scope="both") == language | vision
    assert adapted_names(family, scope="language_model+projector") == language | projector
    assert adapted_names(family, scope="vision_tower+projector") == vision | projector
    assert adapted_names(family, scope="all") == language | vision | projector
    linear = adapted_names(family, scope="vision_tower", target_modules="all-linear")
    assert (projector <= linear) == (family == "qwen2_vl"), "a merger lies within its tower, and stays in its scope"


def test_targets_by_name() -> None:
    assert adapted_names("llava_onevision", scope="projector", target_modules=["linear_2"]) == {
        "model.multi_modal_projector.linear_2"
    }
    with pytest.raises(ValueError, match=r"'q_proj' matches no linear layer in scope 'projector'.* linear_1 \(1\)"):
        adapted_names("llava_onevision", scope="projector", target_modules=["q_proj"])
    with pytest.raises(ValueError, match=r"'linear_1' matches no linear layer in scope 'both'"):
        adapted_names("llava_onevision", scope="both", target_modules=["linear_1"])


def test_a_model_without_one_says_so() -> None:
    with pytest.raises(ValueError, match="scope: 'projector' needs a projector, which Qwen2Model does not have"):
        lime.apply(base_of("llava_onevision").model.language_model, scope="projector")


@every_family
def test_its_learning_rate(family: str) -> None:
    model, _ = lime.apply(base_of(family), scope="all")
    groups = optimizer_groups(model, OptimConfig(projector=TowerRates(peft_lr=0.5)))
    names = {p: name for name, p in model.named_parameters()}
    (own,) = [group for group in groups if group["lr"] == 0.5]
    assert own["name"] == "projector.peft"
    assert {names[p].split(".lime_delta")[0].removeprefix("base_model.model.") for p in own["params"]} == {
        row.module for row in lime.tuner.report(model).rows if row.tower == "projector"
    }


FOUND = {
    "llava": "model.multi_modal_projector", "llava_next": "model.multi_modal_projector",
    "paligemma": "model.multi_modal_projector", "internvl": "model.multi_modal_projector",
    "smolvlm": "model.connector", "idefics3": "model.connector", "mistral3": "model.multi_modal_projector",
    "mllama": "model.multi_modal_projector",
    "blip-2": "language_projection", "qwen2_5_vl": "model.visual.merger", "qwen3_vl": "model.visual.merger",
    "glm4v": "model.visual.merger",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", FOUND)
def test_it_is_found_in_every_family(kind: str) -> None:
    config = AutoConfig.for_model(kind)
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        for option in ("num_hidden_layers", "depth", "num_global_layers"):
            if hasattr(part, option):
                setattr(part, option, 4)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    parts = find_parts(model)
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    projector = [name for name in linears if kind_of(parts, name) == "projector"]
    assert projector
    assert all(name.startswith((FOUND[kind], "model.visual.deepstack_merger_list")) for name in projector)
    assert any(name.startswith(FOUND[kind]) for name in projector)
    assert {kind_of(parts, name) for name in linears} - {"other"} == {"language_model", "vision_tower", "projector"}
