"""The MoE-PEFT baselines in whole models: one decision for a sequence, layouts of experts, training, switching."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache

import lime
from lime.method.deltas import table
from lime.method.deltas.table import MIXTURES
from tests.integrations.test_trainer import trained, trainer
from tests.properties.test_decoding import decode, rows_of
from tests.tuner import small_models as small

by_sequence = pytest.mark.parametrize("peft", [name for name, kind in table.TYPES.items() if kind.by_sequence])


def adapted(family: str, peft: str, layers: int = 2, **options: Any) -> Any:
    """With an update far from zero, and routers far from even."""
    model = small.apply_random(small.build(family, layers=layers), peft=peft, **options)
    with torch.no_grad():
        for layer in small.lime_layers(model):
            layer.lime_router["default"].weight.mul_(3.0)
    return model


def language_of(model: Any) -> Any:
    return model.get_base_model().model.language_model


# -- one decision for a sequence -----------------------------------------------------------------------------


@by_sequence
def test_generate_decides_on_the_prompt(peft: str) -> None:
    """Step by step with a cache of one's own, where the prompt's pass decides, is what `generate` does; a plain pass
    over prompt and answer decides on both, and so differs."""
    family = "llava_onevision"
    model = adapted(family, peft)
    one = small.row(family, 9, 4)
    inputs = small.batch(family, [one])
    out = decode(model, inputs)
    generated = out.sequences[0, inputs["input_ids"].shape[1] :]
    with torch.no_grad():
        step = model(**inputs, use_cache=True)
        steps, width = [step.logits[0, -1]], inputs["input_ids"].shape[1]
        for count, token in enumerate(generated[:-1], 1):
            mask = torch.ones(1, width + count, dtype=torch.long)
            step = model(
                input_ids=token.view(1, 1), attention_mask=mask, past_key_values=step.past_key_values, use_cache=True
            )
            steps.append(step.logits[0, -1])
    torch.testing.assert_close(torch.cat(out.logits), torch.stack(steps), atol=1e-5, rtol=1e-5)
    (whole,) = small.logits(model, small.batch(family, [{**one, "ids": torch.cat([one["ids"], generated])}]))
    assert not torch.allclose(whole[width - 1 : -1], torch.stack(steps), atol=1e-2)
    assert model.get_base_model().generate.state.generation is None, "a later plain pass is no part of a run"


@by_sequence
def test_beam_search_with_a_cache_equals_without(peft: str) -> None:
    model = adapted("llava_onevision", peft)
    inputs = small.batch("llava_onevision", rows_of("llava_onevision")[1:], "left")
    cached = decode(model, inputs, num_beams=3)
    uncached = decode(model, inputs, num_beams=3, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    torch.testing.assert_close(cached.sequences_scores, uncached.sequences_scores, atol=1e-5, rtol=1e-5)


@by_sequence
def test_the_pass_that_begins_a_cache_decides(peft: str) -> None:
    """In chunks and after cropping alike."""
    model = adapted("qwen2_vl", peft)
    language = language_of(model)
    embeddings = language.embed_tokens(small.row("qwen2_vl", 20, 5)["ids"].unsqueeze(0))
    results = []
    for sizes in ((6, 14), (6, 1, 9, 4)):
        cache, out, start = DynamicCache(config=language.config), [], 0
        with torch.no_grad():
            for size in sizes:
                if start == 7:  # two tokens that are then taken back
                    language(inputs_embeds=embeddings[:, 11:13], past_key_values=cache, use_cache=True)
                    cache.crop(-2)
                chunk = embeddings[:, start : start + size]
                out.append(language(inputs_embeds=chunk, past_key_values=cache, use_cache=True)[0])
                start += size
        results.append(torch.cat(out, 1))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)


@by_sequence
def test_what_cannot_know_the_decision_is_refused(peft: str) -> None:
    family = "llava_onevision"
    model = adapted(family, peft)
    inputs = small.batch(family, [small.row(family, 8, 1)])
    with torch.no_grad():
        with model.disable_adapter():
            cache = model(**inputs, use_cache=True).past_key_values
        mask = torch.ones(1, 9, dtype=torch.long)
        with pytest.raises(RuntimeError, match="without this adapter"):
            model(input_ids=torch.tensor([[3]]), attention_mask=mask, past_key_values=cache)
        with pytest.raises(ValueError, match="averages real tokens, but a static key-value cache"):
            decode(model, inputs, cache_implementation="static", disable_compile=True)


@by_sequence
def test_sequences_laid_end_to_end_are_decided_one_by_one(peft: str) -> None:
    """Qwen2-VL's vision tower has all images in one dimension."""
    model = adapted("qwen2_vl", peft, scope="vision_tower")
    tower = model.get_base_model().model.visual
    generator = torch.Generator().manual_seed(0)
    grids = [torch.tensor([[1, 4, 4]]), torch.tensor([[1, 2, 6]])]
    images = [torch.randn(int(grid.prod()), 3 * 2 * 4 * 4, generator=generator) for grid in grids]

    def seen(pixels: Tensor, grid: Tensor) -> Tensor:
        with torch.no_grad():
            return tower(pixels, grid_thw=grid).pooler_output  # type: ignore[no-any-return]

    alone = torch.cat([seen(image, grid) for image, grid in zip(images, grids, strict=True)])
    torch.testing.assert_close(seen(torch.cat(images), torch.cat(grids)), alone, atol=1e-5, rtol=1e-5)


# -- experts by depth ----------------------------------------------------------------------------------------


def test_mola_grows_with_depth(tmp_path: Path) -> None:
    family = "llava_onevision"
    model = adapted(family, "mola", layers=8, expert_layout="inverted_triangle")
    counts = {}
    for layer in small.lime_layers(model):
        counts.setdefault(int(layer.key.split(".layers.")[1].split(".")[0]), set()).add(
            layer.lime_router["default"].weight.shape[0]
        )
    assert counts == {0: {2}, 1: {2}, 2: {3}, 3: {3}, 4: {5}, 5: {5}, 6: {6}, 7: {6}}
    inputs = small.batch(family, rows_of(family))
    with lime.record(model) as recorder:
        before = small.logits(model, inputs)
    statistics = recorder.statistics()
    assert {len(layer.usage) for layer in statistics.values()} == {2, 3, 5, 6}
    assert float(statistics.mean(lambda layer: layer.experts_per_token)) == 2.0
    assert recorder.balance().importance.isfinite()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(small.build(family, layers=8), tmp_path).eval()
    assert all(torch.equal(a, b) for a, b in zip(small.logits(again, inputs), before, strict=True))
    other = adapted(family, "mola", layers=8, expert_layout="inverted_triangle", num_experts=1)
    assert {layer.lime_router["default"].weight.shape[0] for layer in small.lime_layers(other)} == {1, 2}


# -- life ----------------------------------------------------------------------------------------------------


def test_lime_and_mixtures_take_turns_in_one_model(tmp_path: Path) -> None:
    """Each named adapter does what it does alone, before and after saving; meta tensors at loading included."""
    family = "qwen2_vl"
    inputs = small.batch(family, rows_of(family)[1:])
    model = small.apply_random(small.build(family))
    outputs = {"default": small.logits(model, inputs)}
    for seed, name in enumerate(("moe_dora", "more", "mix_lora")):
        torch.manual_seed(seed)
        settings = lime.tuner.preset_settings(peft=name, r=4)
        model.add_adapter(name, lime.LimeConfig.from_settings(settings, init_weights=False))
        model.set_adapter(name)
        outputs[name] = small.logits(model.eval(), inputs)
        generated = decode(model, inputs)
        assert torch.equal(generated.sequences, decode(model, inputs, use_cache=False).sequences)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(small.build(family), tmp_path)
    for name in ("moe_dora", "more", "mix_lora"):
        again.load_adapter(tmp_path / name, adapter_name=name, low_cpu_mem_usage=name != "mix_lora")
    for each in (again, copy.deepcopy(model)):
        for name, expected in outputs.items():
            each.set_adapter(name)
            for got, want in zip(small.logits(each.eval(), inputs), expected, strict=True):
                torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5, msg=name)
    base = model.unload()
    assert "generate" not in vars(base)
    frozen = small.logits(small.build(family), inputs)
    assert all(torch.equal(a, b) for a, b in zip(small.logits(base, inputs), frozen, strict=True))


@pytest.mark.parametrize("peft", ["moe_dora", "mocle"])
def test_the_trainer_trains_them(peft: str, tmp_path: Path) -> None:
    family = "llava_onevision"
    model, _ = lime.apply(small.build(family), peft=peft, r=4)
    before = trained(model)
    run = trainer(family, tmp_path, model=model, moe_lr=1e-2, peft_lr=1e-2, importance_coef=1.0)
    run.train()
    after = trained(model)
    assert {name for name in before if not torch.equal(before[name], after[name])} == before.keys()
    groups = [{id(p) for p in group["params"]} for group in run.optimizer.param_groups]
    routers = {id(p) for name, p in model.named_parameters() if "lime_router" in name}
    assert routers in groups


@pytest.mark.parametrize("peft", ["moe_dora", "mix_lora", "mocle", "more"])
def test_the_language_model_compiles_whole(peft: str) -> None:
    """No graph break: outputs, what is recorded, and gradients are those without compilation."""
    model = adapted("llava_onevision", peft, layers=1).train()
    language = language_of(model)
    inputs = small.batch("llava_onevision", rows_of("llava_onevision")[1:])
    embeddings = torch.randn(*inputs["input_ids"].shape, 32, generator=torch.Generator().manual_seed(0))
    results = []
    for function in (language, torch.compile(language, backend="eager", fullgraph=True)):
        model.zero_grad()
        with lime.record(model) as recorder:
            out = function(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"], use_cache=False)[0]
        balance = recorder.balance().total(1.0, 1.0)
        (out.square().mean() + balance).backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
        results.append([out.detach(), balance.detach(), *gradients])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=1e-4)


def test_every_mixture_names_itself_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="lime"):
        for peft in MIXTURES:
            lime.apply(small.build("llava_onevision", layers=1), peft=peft)
    told = [record.getMessage().splitlines()[0] for record in caplog.records]
    assert told == [f"adapted LlavaOnevisionForConditionalGeneration with {peft}:" for peft in MIXTURES]
