"""Prompt tuning, with LiME and without: the equation, and that nothing outside the language model notices it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lime
from lime.method import routing
from lime.method.deltas.prompt import PromptDelta, mean_embedding
from lime.method.selection import select
from lime.models.architectures import build_shapes
from lime.tuner.prompt.layer import PromptLayer
from tests.tuner import small_models as small

families = pytest.mark.parametrize("family", small.FAMILIES)
modulated = pytest.mark.parametrize("enabled", [True, False], ids=["lime", "plain"])
V = 5


def prompted(family: str, enabled: bool = True, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A model with a prompt whose offset is not zero."""
    base = small.build(family, dtype=dtype)
    torch.manual_seed(1)
    settings = lime.tuner.preset_settings(peft="prompt_tuning", num_virtual_tokens=V, enabled=enabled, **options)
    config = lime.LimeConfig.from_settings(settings, init_weights=False)
    model, _ = lime.apply(base, config)
    layer = prompt_of(model)
    with torch.no_grad():
        layer.lime_delta["default"].offset.mul_(3.0)
        for gamma in layer.lime_gamma.values():
            gamma.fill_(0.5)
        for experts in layer.lime_experts.values():
            experts.uniform_(0.2, 1.8)
    return model.eval()


def prompt_of(model: nn.Module) -> PromptLayer:
    (layer,) = [module for module in model.modules() if isinstance(module, PromptLayer)]
    return layer


def video_row(family: str, words: int, seed: int) -> dict[str, Any]:
    """A row with one video: 4 frames of LLaVA-OneVision, or 2 temporal patches of Qwen2-VL."""
    g = torch.Generator().manual_seed(seed)
    text = torch.randint(1, small.WORDS, (words,), generator=g)
    if family == "qwen2_vl":
        visual = torch.tensor([small.VISION_START, *[small.VIDEO] * 8, small.VISION_END])
        media = {
            "pixel_values_videos": torch.randn(32, 3 * 2 * 4 * 4, generator=g),
            "video_grid_thw": torch.tensor([[2, 4, 4]]),
        }
    else:
        visual = torch.full((4 + 1,), small.VIDEO)
        media = {"pixel_values_videos": torch.randn(1, 4, 3, 16, 16, generator=g)}
    return {"ids": torch.cat([text[:2], visual, text[2:]]), "image": None, "video": media}


def batch(family: str, rows: list[dict[str, Any]], side: str = "right", width: int | None = None) -> dict[str, Tensor]:
    """As `small.batch`, with videos."""
    inputs = small.batch(family, rows, side, width)
    videos = [row["video"] for row in rows if row.get("video")]
    if videos:
        inputs |= {key: torch.cat([one[key] for one in videos]) for key in videos[0]}
        if family == "qwen2_vl":
            ids = inputs["input_ids"]
            inputs["mm_token_type_ids"] = (ids == small.IMAGE).long() + 2 * (ids == small.VIDEO).long()
    return inputs


def rows_of(family: str) -> list[dict[str, Any]]:
    return [small.row(family, 6, 1, with_image=True), video_row(family, 5, 4), small.row(family, 4, 3)]


# -- the equation --------------------------------------------------------------------------------------------


def test_the_prompt_is_that_of_the_equation() -> None:
    """prompt = e0 + d * (P + gamma p_s), routed on e0 plus the mean input embedding, and on d."""
    layer = prompt_of(prompted("llava_onevision", num_experts=3, auto_topk_threshold=0.9))
    g = torch.Generator().manual_seed(2)
    x = torch.randn(2, 7, 32, generator=g)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1]]).bool()
    delta: Any = layer.lime_delta["default"]
    mean = torch.stack([x[0, :4].mean(0), x[1, 2:].mean(0)])
    z = delta.initial + mean.unsqueeze(1)
    logits = 0.3 * routing.normalise(z[..., :3], "slice") + 0.7 * routing.normalise(delta.offset[:, :3], "slice")
    w = select((logits / 0.5).softmax(-1), "auto", threshold=0.9)
    modulator = w @ layer.lime_experts["default"] + 0.5 * layer.lime_shared["default"]
    expected = delta.initial + delta.offset * modulator
    with torch.no_grad():
        torch.testing.assert_close(layer(x, mask), expected, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(expected[0], expected[1]), "the prompt depends on the sequence"


def test_without_lime_the_prompt_is_constant() -> None:
    layer = prompt_of(prompted("llava_onevision", enabled=False))
    delta: Any = layer.lime_delta["default"]
    with torch.no_grad():
        prompt = layer(torch.randn(2, 3, 32), None)
    torch.testing.assert_close(prompt, (delta.initial + delta.offset).expand(2, -1, -1))


def test_frozen_part() -> None:
    embedding = torch.randn(11, 4)
    drawn = PromptDelta(embedding, num_virtual_tokens=9)
    found = (drawn.initial.unsqueeze(1) == embedding).all(-1)
    assert found.any(1).all()
    assert found.sum(0).max() == 1, "each word once"
    assert PromptDelta(embedding, num_virtual_tokens=25).initial.shape == (25, 4)
    torch.manual_seed(0)
    normal = PromptDelta(torch.zeros(3, 500), num_virtual_tokens=40, init="normal").initial
    assert abs(normal.std() - 0.02) < 0.001
    assert not drawn.offset.any()
    with pytest.raises(ValueError, match="prompt_init: expected one of vocabulary, normal, got 'text'"):
        PromptDelta(embedding, num_virtual_tokens=2, init="text")


def test_mean_of_a_sequence_without_tokens_is_zero() -> None:
    mean = mean_embedding(torch.ones(2, 3, 4), torch.tensor([[1, 1, 0], [0, 0, 0]]).bool())
    assert torch.equal(mean, torch.tensor([[1.0] * 4, [0.0] * 4]))


@families
@modulated
@pytest.mark.parametrize("side", ["left", "right"])
def test_forward_is_the_frozen_model_on_the_longer_sequence(family: str, enabled: bool, side: str) -> None:
    """Images and videos; positions continue after the prompt; padding stays padding."""
    frozen, model = small.build(family), prompted(family, enabled)
    inputs = batch(family, rows_of(family), side)
    given: dict[str, Any] = {}
    language = frozen.model.language_model
    handle = language.register_forward_pre_hook(lambda _, __, kwargs: given.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        frozen(**inputs)
        handle.remove()
        x, mask = given["inputs_embeds"], inputs["attention_mask"]
        positions = given["position_ids"]
        if positions is None:
            positions = (mask.cumsum(-1) - 1).clamp_min(0)
        prompt = prompt_of(model)(x, mask.bool())
        first = torch.arange(V).expand(*positions.shape[:-1], V)
        hidden = language(
            inputs_embeds=torch.cat([prompt, x], 1),
            attention_mask=torch.cat([torch.ones_like(mask[:, :V]), mask], 1),
            position_ids=torch.cat([first, positions + V], -1),
        ).last_hidden_state[:, V:]
        expected = frozen.lm_head(hidden)
        out = model(**inputs, labels=inputs["input_ids"].masked_fill(mask == 0, -100), output_hidden_states=True)
    real = mask.bool()
    assert out.logits.shape == (*inputs["input_ids"].shape, small.VOCABULARY)
    torch.testing.assert_close(out.logits[real], expected[real], atol=1e-5, rtol=1e-5)
    labels = inputs["input_ids"].masked_fill(mask == 0, -100)[:, 1:]
    loss = nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), labels.flatten())
    torch.testing.assert_close(out.loss, loss, atol=1e-5, rtol=1e-5)
    assert {hidden.shape[1] for hidden in out.hidden_states} == {inputs["input_ids"].shape[1]}
    torch.testing.assert_close(out.hidden_states[0][real], x[real])
    assert out.past_key_values.get_seq_length() == inputs["input_ids"].shape[1]


def test_attentions_are_those_between_the_user_s_tokens() -> None:
    model = prompted("llava_onevision", enabled=False)
    model.get_base_model().set_attn_implementation("eager")
    inputs = batch("llava_onevision", [small.row("llava_onevision", 6, 1)])
    with torch.no_grad():
        first = model(**inputs, output_attentions=True)
        mask = torch.ones(1, 7, dtype=torch.long)
        step = model(input_ids=torch.tensor([[3]]), attention_mask=mask, past_key_values=first.past_key_values,
                     output_attentions=True)  # fmt: skip
    assert {a.shape for a in first.attentions} == {(1, 4, 6, 6)}
    assert {a.shape for a in step.attentions} == {(1, 4, 1, 7)}
    assert (first.attentions[0].sum(-1) < 1 - 1e-4).all(), "the rest goes to the virtual tokens"


# -- properties ----------------------------------------------------------------------------------------------


@families
@modulated
def test_neighbours_and_padding_do_not_matter(family: str, enabled: bool) -> None:
    model = prompted(family, enabled)
    rows = rows_of(family)
    alone = [small.logits(model, batch(family, [row]))[0] for row in rows]
    for inputs in (batch(family, rows, "left", 30), batch(family, rows, "right", 27)):
        for got, expected in zip(small.logits(model, inputs), alone, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@families
def test_causal_without_lime_and_not_with_it(family: str) -> None:
    """The routing of a prompt reads the mean over all tokens of the pass, as documented."""
    one = small.row(family, 9, 1)
    other = {**one, "ids": torch.cat([one["ids"][:6], one["ids"][6:] + 1])}
    for enabled, same in ((False, True), (True, False)):
        model = prompted(family, enabled, auto_topk_threshold=0.0)
        a, b = (small.logits(model, batch(family, [row]))[0][:6] for row in (one, other))
        assert torch.allclose(a, b, atol=1e-5) == same


def test_windows_of_virtual_tokens_share_a_decision() -> None:
    model = prompted("llava_onevision", n_gram=3)
    with torch.no_grad(), lime.record(model) as recorder:
        model(**batch("llava_onevision", [small.row("llava_onevision", 6, 1)]))
    ((entry,),) = recorder._entries.values()
    w = entry.weights[0]
    assert torch.equal(w[0], w[1])
    assert torch.equal(w[0], w[2])
    assert torch.equal(w[3], w[4])
    assert not torch.equal(w[0], w[3])


@families
def test_statistics_count_every_virtual_token_once(family: str) -> None:
    model = prompted(family).train()
    inputs = batch(family, rows_of(family))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with lime.record(model) as recorder:
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        terms = recorder.balance()
        (loss + terms.total(0.1, 0.01)).backward()
        assert len(recorder) == 1
    ((name, layer),) = recorder.statistics().items()
    assert name.endswith("language_model.virtual_tokens:default")
    assert layer.token_count == 3 * V
    assert terms.importance > 0


# -- training ------------------------------------------------------------------------------------------------


@families
@modulated
def test_what_trains_and_what_does_not(family: str, enabled: bool) -> None:
    model, report = lime.apply(small.build(family), peft="prompt_tuning", num_virtual_tokens=V, enabled=enabled)
    modulators = 4 * 32 + 32 + 1 if enabled else 0
    assert report.trainable == V * 32 + modulators
    assert [(row.module, row.d_in, row.d_out) for row in report.rows] == [
        ("model.language_model.virtual_tokens", V, 32)
    ]
    assert report.total_parameters - report.adapter_parameters == sum(
        p.numel() for p in small.build(family).parameters()
    )
    groups = lime.parameter_groups(model)
    assert [name.rpartition(".")[2] for name, _ in groups["peft"]] == ["offset"]
    assert len(groups["modulators"]) == (3 if enabled else 0)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    frozen["initial"] = prompt_of(model).lime_delta["default"].initial.clone()
    inputs = batch(family, rows_of(family))
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    optimizer = torch.optim.Adam([p for group in groups.values() for _, p in group], lr=0.05)
    losses = []
    for _ in range(4):
        loss = model.train()(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for group in groups.values() for _, p in group)
    assert torch.equal(frozen.pop("initial"), prompt_of(model).lime_delta["default"].initial)
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], p) for name, p in frozen.items())


@families
def test_checkpointing_gives_the_same_gradients(family: str) -> None:
    inputs = batch(family, rows_of(family))
    gradients = []
    for checkpointed in (False, True):
        model = prompted(family, jitter_noise=0.0).train()
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        with lime.record(model) as recorder:
            loss = model(**inputs, labels=inputs["input_ids"]).loss
        (loss + recorder.balance().total(0.1, 0.01)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-5)


@families
def test_bf16_base_keeps_float32_prompts(family: str) -> None:
    model = prompted(family, dtype=torch.bfloat16)
    assert {p.dtype for group in lime.parameter_groups(model).values() for _, p in group} == {torch.float32}
    inputs = small.batch(family, [small.row(family, 6, 1)])
    (out,) = small.logits(model, inputs)
    (expected,) = small.logits(prompted(family), inputs)
    assert out.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(out.float(), expected, dim=-1).min() > 0.9


# -- the published sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "enabled", "expected"),
    [("llava_onevision", False, 71_680), ("llava_onevision", True, 89_601), ("llava_onevision_0_5b", True, 22_401)],
)
def test_published_parameter_counts(name: str, enabled: bool, expected: int) -> None:
    _, report = lime.apply(build_shapes(name), peft="prompt_tuning", enabled=enabled)
    assert report.trainable == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "both"}, "scope: expected language_model, whose input"),
        ({"target_modules": ["q_proj"]}, "target_modules: .* has no effect without a type that adapts linear layers"),
        ({"r": 4}, "r: 4 has no effect without"),
        ({"num_virtual_tokens": 0}, "num_virtual_tokens: expected at least 1"),
        ({"prompt_init": "text"}, "prompt_init: expected one of vocabulary, normal"),
        ({"num_experts": 33}, "33 experts .* have only 32"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lime.apply(small.build("llava_onevision"), peft="prompt_tuning", **options)
    with pytest.raises(ValueError, match="prompt_tuning needs one language model, SiglipVisionModel has 0"):
        lime.apply(small.build("llava_onevision").model.vision_tower, peft="prompt_tuning")
