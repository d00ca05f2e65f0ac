"""LiME among the adapters of the `peft` library: injection, saving, loading, switching, disabling."""

from __future__ import annotations

import copy
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModel, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

import lime
from tests.tuner import small_models as small

families = pytest.mark.parametrize("family", small.FAMILIES)


def inputs_of(family: str) -> dict[str, torch.Tensor]:
    return small.batch(family, [small.row(family, 7, 1), small.row(family, 12, 2)])


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(a, b, strict=True))


@families
@pytest.mark.parametrize("preset", lime.tuner.PRESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_changes_nothing(family: str, preset: str, dtype: torch.dtype) -> None:
    rows = [small.row(family, 7, 1, with_image=True), small.row(family, 12, 2)]
    inputs = small.batch(family, rows)
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    model, _ = lime.apply(small.build(family, dtype=dtype), preset=preset, scope="both")
    outputs = []
    for layer in small.lime_layers(model):
        layer.base_layer.register_forward_hook(lambda _, __, out: outputs.append(out))
        layer.register_forward_hook(lambda _, __, out: outputs.append(out))
    adapted = small.logits(model.train(), inputs)
    assert len(outputs) == 2 * len(small.lime_layers(model)) > 16
    assert same(outputs[::2], outputs[1::2]), "every adapted layer returns exactly its frozen output"
    assert adapted[0].dtype == dtype
    text = inputs_of(family)
    assert same(small.logits(model, text), small.logits(small.build(family, dtype=dtype), text))


@families
def test_only_adapter_parameters_train_and_all_receive_gradient(family: str) -> None:
    model = small.apply_random(small.build(family), scope="both", router="learned").train()
    inputs = small.batch(family, [small.row(family, 7, 1, with_image=True), small.row(family, 12, 2)])
    with lime.record(model) as recorder:
        loss = model(**inputs, labels=inputs["input_ids"]).loss
    (loss + recorder.balance().total(0.1, 0.01)).backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    groups = lime.parameter_groups(model)
    assert {name for group in groups.values() for name, _ in group} == trained
    assert {name.split(".")[-2] for name, _ in groups["peft"]} == {"default"}
    assert {name.split(".")[-1] for name, _ in groups["peft"]} == {"A", "B"}
    assert {part for name, _ in groups["modulators"] for part in name.split(".") if part.startswith("lime_")} == {
        "lime_experts", "lime_shared", "lime_gamma", "lime_router",
    }  # fmt: skip


@families
@pytest.mark.parametrize("options", [{}, {"feature_slice": "random", "n_gram": 3}, {"router": "learned"}], ids=str)
def test_save_and_load_are_exact(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = small.apply_random(small.build(family), scope="both", **options)
    inputs = inputs_of(family)
    before = small.logits(model, inputs)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "LIME"
    assert isinstance(PeftConfig.from_pretrained(str(tmp_path)), lime.LimeConfig)
    keys = load_file(tmp_path / "adapter_model.safetensors")
    assert all(".lime_" in key and "default" not in key for key in keys)
    assert any("lime_router.features" in key for key in keys) == ("feature_slice" in options)

    again = PeftModel.from_pretrained(small.build(family), tmp_path)
    assert same(small.logits(again.eval(), inputs), before)
    assert not any(p.requires_grad for p in again.parameters())
    trainable, report = lime.load(small.build(family), tmp_path, is_trainable=True)
    assert same(small.logits(trainable.eval(), inputs), before)
    assert report.trainable == sum(p.numel() for p in trainable.parameters() if p.requires_grad) > 0
    frozen, _ = lime.load(small.build(family), tmp_path)
    assert same(small.logits(frozen, inputs), before)
    assert not any(p.requires_grad for p in frozen.parameters())
    lean = PeftModel.from_pretrained(small.build(family), tmp_path, low_cpu_mem_usage=True)
    assert same(small.logits(lean.eval(), inputs), before)


@families
def test_transformers_and_auto_classes_load_it(family: str, tmp_path: Path) -> None:
    small.build(family).save_pretrained(tmp_path / "base")
    base = type(small.build(family)).from_pretrained(tmp_path / "base")
    model = small.apply_random(base)
    inputs = inputs_of(family)
    before = small.logits(model, inputs)
    model.save_pretrained(tmp_path / "adapter")
    plain = type(base).from_pretrained(tmp_path / "base")
    frozen = small.logits(plain.eval(), inputs)
    plain.load_adapter(str(tmp_path / "adapter"))
    assert same(small.logits(plain.eval(), inputs), before)
    plain.disable_adapters()
    assert same(small.logits(plain, inputs), frozen)
    auto = AutoPeftModel.from_pretrained(str(tmp_path / "adapter"))
    assert same(small.logits(auto.eval(), inputs), before)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    model, _ = lime.apply(small.build("llava_onevision"))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"does not fit LlavaOnevision.* the file lacks 20 tensors, first .*layers\.2"):
        lime.load(small.build("llava_onevision", layers=3), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json"):
        lime.load(small.build("llava_onevision"), tmp_path / "nowhere")


@families
def test_disable_switch_and_delete(family: str, tmp_path: Path) -> None:
    inputs = inputs_of(family)
    frozen = small.logits(small.build(family), inputs)
    model = small.apply_random(small.build(family))
    first = small.logits(model, inputs)
    assert not same(first, frozen)
    with model.disable_adapter():
        assert same(small.logits(model, inputs), frozen)
    assert same(small.logits(model, inputs), first)

    torch.manual_seed(5)
    model.add_adapter("second", lime.LimeConfig(r=3, num_experts=2, target_modules=["v_proj"], init_weights=False))
    assert same(small.logits(model, inputs), first), "adding an adapter does not switch to it"
    model.set_adapter("second")
    second = small.logits(model.eval(), inputs)
    assert not same(second, first)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(".second" in name for name in trained)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "second" / "adapter_config.json").is_file()
    model.set_adapter("default")
    model.delete_adapter("second")
    assert same(small.logits(model.eval(), inputs), first)
    again = PeftModel.from_pretrained(small.build(family), tmp_path / "second").eval()
    assert same(small.logits(again, inputs), second)


@families
def test_unload_gives_the_base_back_without_hooks(family: str) -> None:
    inputs = inputs_of(family)
    model = small.apply_random(small.build(family), scope="both")
    base = model.unload()
    assert same(small.logits(base, inputs), small.logits(small.build(family), inputs))
    assert not small.lime_layers(base)
    assert not any(module._forward_pre_hooks or module._forward_hooks_always_called for module in base.modules())


def test_merging_is_refused_with_the_reason() -> None:
    model = small.apply_random(small.build("llava_onevision"))
    for refused in (model.merge_and_unload, model.merge_adapter, small.lime_layers(model)[0].merge):
        with pytest.raises(NotImplementedError, match="depends on the input through the routing weights"):
            refused()


@families
def test_copies_and_pickles_are_independent(family: str) -> None:
    inputs = inputs_of(family)
    model = small.apply_random(small.build(family), n_gram=3)
    before = small.logits(model, inputs)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        assert same(small.logits(other, inputs), before)
        with lime.record(other) as theirs, lime.record(model) as ours:
            small.logits(other, inputs)
        assert len(theirs) == 8
        assert len(ours) == 0


@families
def test_modules_to_save(family: str, tmp_path: Path) -> None:
    name = "multi_modal_projector" if family == "llava_onevision" else "merger"
    model, report = lime.apply(small.build(family), modules_to_save=[name])
    assert report.saved_modules > 0
    assert report.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert len(lime.parameter_groups(model)["peft"]) > 2 * report.layers
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "modules_to_save" in key:
                parameter.add_(0.1)
    inputs = small.batch(family, [small.row(family, 7, 1, with_image=True)])
    before = small.logits(model.eval(), inputs)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(small.build(family), tmp_path).eval()
    torch.testing.assert_close(small.logits(again, inputs), before, atol=1e-4, rtol=1e-4)


@families
def test_bf16_base_keeps_float32_adapters(family: str) -> None:
    model = small.apply_random(small.build(family, dtype=torch.bfloat16))
    assert {p.dtype for group in lime.parameter_groups(model).values() for _, p in group} == {torch.float32}
    inputs = inputs_of(family)
    out = small.logits(model, inputs)
    reference = small.logits(small.apply_random(small.build(family, dtype=torch.bfloat16).float()), inputs)
    for got, expected in zip(out, reference, strict=True):
        assert got.dtype == torch.bfloat16
        assert torch.nn.functional.cosine_similarity(got.float(), expected, dim=-1).min() > 0.9
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16), lime.record(model) as recorder:
        loss = model(**inputs, labels=inputs["input_ids"]).loss
    terms = recorder.balance()
    assert terms.importance.dtype == torch.float32
    (loss + terms.total(0.1, 0.01)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_a_plain_config_of_peft_works_as_ever() -> None:
    """`get_peft_model` with a LimeConfig is the same as `lime.apply`."""
    inputs = inputs_of("llava_onevision")
    torch.manual_seed(1)
    settings = lime.tuner.preset_settings(r=4)
    model = get_peft_model(small.build("llava_onevision"), lime.LimeConfig.from_settings(settings, init_weights=False))
    assert len(small.lime_layers(model)) == 8
    assert not same(small.logits(model.eval(), inputs), small.logits(small.build("llava_onevision"), inputs))


@families
def test_several_adapters_of_different_types(family: str, tmp_path: Path) -> None:
    """Switching between LiME over different updates, at the same layers; each saved and loaded under its own name."""
    inputs = inputs_of(family)
    model = small.apply_random(small.build(family))
    for name, options in {"slice": {"peft": "slicefine"}, "magnitude": {"peft": "dora", "n_gram": 2}}.items():
        torch.manual_seed(len(name))
        settings = lime.tuner.preset_settings(**options)
        model.add_adapter(name, lime.LimeConfig.from_settings(settings, init_weights=False))
    outputs = {}
    for name in ("default", "slice", "magnitude"):
        model.set_adapter(name)
        outputs[name] = small.logits(model.eval(), inputs)
        assert model.active_adapter == name
    assert not same(outputs["slice"], outputs["magnitude"])
    model.save_pretrained(tmp_path)

    again = PeftModel.from_pretrained(small.build(family), tmp_path)
    for name in ("slice", "magnitude"):
        again.load_adapter(tmp_path / name, adapter_name=name, low_cpu_mem_usage=name == "slice")
    for name in ("magnitude", "default", "slice"):
        again.set_adapter(name)
        assert same(small.logits(again.eval(), inputs), outputs[name]), name
    again.delete_adapter("default")
    assert same(small.logits(again.eval(), inputs), outputs["slice"])


def test_transformers_switches_between_adapters(tmp_path: Path) -> None:
    inputs = inputs_of("llava_onevision")
    outputs = {}
    for name, seed in (("one", 1), ("two", 2)):
        model = small.apply_random(small.build("llava_onevision"), seed=seed)
        outputs[name] = small.logits(model, inputs)
        model.save_pretrained(tmp_path / name)
    plain = small.build("llava_onevision")
    for name in outputs:
        plain.load_adapter(str(tmp_path / name), adapter_name=name)
    for name in ("two", "one"):
        plain.set_adapter(name)
        assert same(small.logits(plain.eval(), inputs), outputs[name])
    plain.delete_adapter("two")
    assert same(small.logits(plain.eval(), inputs), outputs["one"])


def test_targets_and_exclusions_come_back_with_the_adapter(tmp_path: Path) -> None:
    model = small.apply_random(
        small.build("llava_onevision"), target_modules=r".*layers\.1\.self_attn\..*_proj", exclude_modules=["k_proj"]
    )
    keys = [layer.key.rpartition(".")[2] for layer in small.lime_layers(model)]
    assert keys == ["q_proj", "v_proj", "o_proj"]
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(small.build("llava_onevision"), tmp_path)
    assert [layer.key for layer in small.lime_layers(again)] == [layer.key for layer in small.lime_layers(model)]


@families
@pytest.mark.parametrize("n_gram", [1, 3])
def test_the_language_model_compiles_whole(family: str, n_gram: int) -> None:
    """No graph break on text: outputs, what is recorded, and gradients are those without compilation."""
    model = small.apply_random(small.build(family, layers=1), n_gram=n_gram, jitter_noise=0.0).train()
    language = model.get_base_model().model.language_model
    mask = inputs_of(family)["attention_mask"]
    embeddings = torch.randn(*mask.shape, 32, generator=torch.Generator().manual_seed(0))
    results = []
    for function in (language, torch.compile(language, backend="eager", fullgraph=True)):
        model.zero_grad()
        with lime.record(model) as recorder:
            out = function(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).last_hidden_state
        balance = recorder.balance().total(1.0, 1.0)
        (out.square().mean() + balance).backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
        results.append([out.detach(), balance.detach(), *gradients])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain)
