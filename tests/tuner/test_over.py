"""LiME over other adapters of the `peft` library."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    HRAConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    OFTConfig,
    PeftConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

import lime
from lime.tuner.layers.wrapped import LimeWrapped
from tests.tuner import small_models as small

TARGETS = ["q_proj", "down_proj"]
CONFIGS: dict[str, Any] = {
    "lora": lambda: LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False),
    "rslora": lambda: LoraConfig(r=4, use_rslora=True, target_modules=TARGETS, init_lora_weights=False),
    "dora": lambda: LoraConfig(r=4, use_dora=True, target_modules=TARGETS, init_lora_weights=False),
    "vera": lambda: VeraConfig(r=8, target_modules=TARGETS, init_weights=False),
    "ia3": lambda: IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"], init_ia3_weights=False),
    "oft": lambda: OFTConfig(r=0, oft_block_size=8, target_modules=TARGETS, init_weights=False),
    "boft": lambda: BOFTConfig(boft_block_size=8, target_modules=TARGETS, init_weights=False),
    "loha": lambda: LoHaConfig(r=4, target_modules=TARGETS, init_weights=False),
    "lokr": lambda: LoKrConfig(r=4, target_modules=TARGETS, init_weights=False),
    "hra": lambda: HRAConfig(r=4, target_modules=TARGETS, init_weights=False),
    "miss": lambda: MissConfig(r=4, target_modules=TARGETS, init_weights=False),
    "bat": lambda: MissConfig(r=4, target_modules=TARGETS, init_weights="bat"),
    "adalora": lambda: AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=TARGETS,
                                     init_lora_weights=False),
}  # fmt: skip
families = pytest.mark.parametrize("family", small.FAMILIES)
every = pytest.mark.parametrize("name", CONFIGS)
PRODUCTS = {"oft", "boft", "hra", "bat"}  # types that rewrite the input or the weight
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def adapted(name: str, family: str = "llava_onevision", dtype: torch.dtype = torch.float32) -> Any:
    """A model of the `peft` library whose update is not zero."""
    base = small.build(family, dtype=dtype)
    torch.manual_seed(2)
    model = get_peft_model(base, CONFIGS[name]())
    if name == "bat":
        with torch.no_grad():
            for key, p in model.named_parameters():
                if "miss_block" in key:
                    p.normal_(std=0.1)
    return model.eval()


def over(name: str, family: str = "llava_onevision", even: bool = False, **options: Any) -> Any:
    """The same under LiME, `even` with p = 1 and gamma = 0."""
    torch.manual_seed(3)
    model, _ = lime.apply(adapted(name, family), **options)
    with torch.no_grad():
        for layer in layers(model):
            for experts in layer.lime_experts.values():
                experts.fill_(1.0) if even else experts.uniform_(0.2, 1.8)
            for gamma in layer.lime_gamma.values():
                gamma.fill_(0.0 if even else 0.5)
    return model.eval()


def layers(model: nn.Module) -> list[LimeWrapped]:
    return [module for module in model.modules() if isinstance(module, LimeWrapped)]


def inputs_of(family: str = "llava_onevision", side: str = "right") -> dict[str, Tensor]:
    return small.batch(family, [small.row(family, 7, 1, with_image=True), small.row(family, 12, 2)], side)


def close(a: list[Tensor], b: list[Tensor], tolerance: float = 1e-5) -> bool:
    return all(torch.allclose(one, other, atol=tolerance, rtol=tolerance) for one, other in zip(a, b, strict=True))


# -- the equation --------------------------------------------------------------------------------------------


@every
@families
def test_even_modulators_give_the_adapter_itself(name: str, family: str) -> None:
    inputs = inputs_of(family)
    frozen, alone = (small.logits(model, inputs) for model in (small.build(family), adapted(name, family)))
    model = over(name, family, even=True)
    assert close(small.logits(model, inputs), alone)
    assert not close(frozen, alone, 1e-2), "the adapter has an effect"
    assert not close(small.logits(over(name, family), inputs), alone, 1e-2), "so have uneven modulators"
    with model.disable_adapter():
        assert close(small.logits(model, inputs), frozen, 2e-6)


@every
def test_the_layer_is_that_of_the_equation(name: str) -> None:
    """out = z + zhat * (P + gamma p_s) with zhat = adapter_layer(x) - base_layer(x), in one product where that will
    do."""
    model = over(name, num_experts=3, selection="dense")
    for layer in (layers(model)[0], layers(model)[1]):
        x = torch.randn(2, 5, layer.in_features)
        with torch.no_grad():
            out = layer(x)
            z = layer.get_base_layer()(x)
            zhat = layer.adapter_layer(x) - z
            w = layer._route("default", x, z, zhat, None)
            modulator = w @ layer.lime_experts["default"] + 0.5 * layer.lime_shared["default"]
        torch.testing.assert_close(out, z + zhat * modulator, atol=1e-5, rtol=1e-4)
        feed_forward_ia3 = name == "ia3" and layer.key.endswith("down_proj")
        assert layer.additive == (name not in PRODUCTS and not feed_forward_ia3)


@families
@pytest.mark.parametrize("options", [{}, {"n_gram": 3}, {"router": "learned"}, {"routing_norm": "token"}], ids=str)
def test_over_lora_is_the_native_type(family: str, options: dict[str, Any]) -> None:
    """Padding, windows and decoding included."""
    model = over("lora", family, **options)
    scope = model.peft_config["default"].scope  # LLaVA-OneVision's vision tower has a q_proj too
    native, _ = lime.apply(small.build(family), r=4, lora_alpha=8.0, target_modules=TARGETS, scope=scope, **options)
    by_key = {layer.key: layer for layer in small.lime_layers(native)}
    assert by_key.keys() == {layer.key for layer in layers(model)}
    with torch.no_grad():
        for ours in layers(model):
            theirs = by_key[ours.key]
            lora: Any = ours.adapter_layer
            theirs.lime_delta["default"].A.copy_(lora.lora_A["default"].weight)
            theirs.lime_delta["default"].B.copy_(lora.lora_B["default"].weight)
            theirs.lime_experts["default"].copy_(ours.lime_experts["default"])
            theirs.lime_shared["default"].copy_(ours.lime_shared["default"])
            theirs.lime_gamma["default"].copy_(ours.lime_gamma["default"])
            theirs.lime_router["default"].load_state_dict(ours.lime_router["default"].state_dict())
    native.eval()
    inputs = inputs_of(family, "left")
    assert close(small.logits(model, inputs), small.logits(native, inputs), 1e-4)
    if options.get("n_gram"):
        settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": small.PAD}
        assert torch.equal(model.generate(**inputs, **settings), native.generate(**inputs, **settings))


# -- training ------------------------------------------------------------------------------------------------


@every
def test_training_changes_adapter_and_modulators_alone(name: str) -> None:
    trained_alone = {key for key, p in adapted(name).named_parameters() if p.requires_grad}
    model = over(name, jitter_noise=0.0).train()
    groups = lime.parameter_groups(model)
    assert {key.replace("base_layer.", "") for key, _ in groups["peft"]} == trained_alone
    assert len(groups["modulators"]) == 3 * len(layers(model))
    before = {key: p.clone() for key, p in model.named_parameters()}
    buffers = {key: b.clone() for key, b in model.named_buffers()}
    inputs = inputs_of()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    optimizer = torch.optim.Adam([p for group in groups.values() for _, p in group], lr=1e-3)
    losses = []
    for _ in range(3):
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    trained = {key for group in groups.values() for key, _ in group}
    changed = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    assert changed == trained
    assert all(torch.equal(b, buffers[key]) for key, b in model.named_buffers())


@pytest.mark.parametrize("name", ["lora", "vera", "oft", "hra"])
def test_checkpointing_gives_the_same_gradients(name: str) -> None:
    inputs, gradients = inputs_of(), []
    for checkpointed in (False, True):
        model = over(name, jitter_noise=0.0).train()
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        with lime.record(model) as recorder:
            loss = model(**inputs, labels=inputs["input_ids"]).loss
        (loss + recorder.balance().total(0.1, 0.01)).backward()
        assert len(recorder) == len(layers(model))
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.requires_grad})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][key], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["lora", "vera", "ia3", "loha", "oft", "boft", "hra", "bat"])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_update_survives_a_bf16_base(name: str, autocast: bool) -> None:
    """An update of a thousandth of the frozen output, which bf16 subtraction would lose."""
    model = adapted(name, dtype=torch.bfloat16)
    model, _ = lime.apply(model)
    for layer in (layers(model)[0], layers(model)[1]):
        with torch.no_grad():
            for key, p in layer.adapter_layer.named_parameters():
                if any(part in key for part in ("lora_B", "lambda_b", "hada_w1_b", "oft_R", "boft_R", "miss_block")):
                    p.mul_(1e-3)
                elif "ia3_l" in key or "boft_s" in key:  # factors
                    p.sub_(1.0).mul_(1e-3).add_(1.0)
                elif "hra_u" in key:  # two almost equal reflections undo each other
                    p[:, 1::2] = p[:, 0::2] + 1e-3 * p[:, 1::2]
        x = torch.randn(64, layer.in_features).bfloat16()
        wide = copy.deepcopy(layer).float()
        exact = wide.adapter_layer(x.float()) - wide.get_base_layer()(x.float())
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            z, zhat = layer._frozen_and_update("default", x)
            assert torch.equal(z, layer.get_base_layer()(x))
        assert zhat.dtype == torch.float32
        assert exact.norm() < 0.05 * z.float().norm()
        assert (zhat - exact).norm() < 0.02 * exact.norm()


# -- made by name --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["lora", "vera", "ia3", "oft", "boft", "loha", "lokr", "hra", "miss", "adalora"])
def test_every_base_by_its_name_starts_at_the_frozen_model(base: str) -> None:
    options = {"oft": {"oft_block_size": 8, "r": 0}, "hra": {"r": 4}, "miss": {"r": 4}}.get(base)
    model, report = lime.apply(small.build("llava_onevision"), peft="any", base=base, base_options=options)
    assert report.layers == len(layers(model)) == 8
    assert report.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert report.total_parameters - report.adapter_parameters == sum(
        p.numel() for p in small.build("llava_onevision").parameters()
    )
    inputs = inputs_of()
    assert close(small.logits(model.eval(), inputs), small.logits(small.build("llava_onevision"), inputs), 2e-5)
    alone, plain = lime.apply(
        small.build("llava_onevision"), peft="any", base=base, base_options=options, enabled=False
    )
    assert not lime.tuner.has_routing(alone)
    modulators = sum(5 * row.d_out + 1 for row in report.rows)
    assert plain.trainable == report.trainable - modulators
    assert all(isinstance(alone.get_base_model().get_submodule(row.module), BaseTunerLayer) for row in plain.rows)


@pytest.mark.parametrize("cast", [False, True], ids=["bf16 base", "cast"])
@pytest.mark.parametrize(
    "base", ["lora", "vera", "ia3", "oft", "boft", "loha", "lokr", "hra", "miss", "adalora", "delora"]
)
def test_every_base_in_bf16(base: str, cast: bool) -> None:
    """Over a bf16 model, and as a whole model that is cast to it, where some types do not cast their input."""
    options = {"oft": {"oft_block_size": 8, "r": 0}, "hra": {"r": 4}, "miss": {"r": 4}}.get(base)
    frozen = small.build("llava_onevision", dtype=torch.float32 if cast else torch.bfloat16)
    model, _ = lime.apply(frozen, peft="any", base=base, base_options=options)
    if cast:
        model = model.to(torch.bfloat16)
    inputs = small.batch("llava_onevision", [small.row("llava_onevision", 7, 1), small.row("llava_onevision", 12, 2)])
    logits = model(**inputs).logits
    assert logits.dtype == torch.bfloat16
    real = inputs["attention_mask"].bool()
    with model.disable_adapter():
        torch.testing.assert_close(logits[real], model(**inputs).logits[real], atol=0.05, rtol=0.05)
    logits.float()[real].square().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(one is None or one.isfinite().all() for one in gradients)
    assert any(one is not None and one.any() for one in gradients)


def test_scope_and_options_reach_the_base() -> None:
    model, report = lime.apply(
        small.build("qwen2_vl"), peft="any", base="lora", base_options={"r": 6, "use_rslora": True}, scope="both",
        target_modules=["qkv", "v_proj"],
    )  # fmt: skip
    assert {row.tower for row in report.rows} == {"language_model", "vision_tower"}
    lora: Any = layers(model)[0].adapter_layer
    assert lora.r["default"] == 6
    assert lora.scaling["default"] == pytest.approx(8 / 6**0.5)


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "loar"}, "base: 'loar' is not a type of the peft library; did you mean 'lora'"),
        ({"base": "lime"}, "base: 'lime' is not a type"),
        ({"base": "prompt_tuning"}, "adapts no layers of its own"),
        ({"base": "vblora"}, "keeps state outside its layers"),
        ({"base_options": {"rr": 3}}, r"base_options\.rr: not an option of LoraConfig; did you mean 'r'"),
        ({"base_options": {"target_modules": ["q_proj"]}}, r"base_options\.target_modules: set target_modules beside"),
        ({"base_options": {"bias": "all"}}, r"base_options\.bias: expected none"),
        ({"base_options": {"init_lora_weights": "pissa_niter_4"}}, "changes the frozen weights"),
        ({"base": "oft", "base_options": {"r": 3, "oft_block_size": 3}}, "OFTConfig refuses them"),
        ({"base": "miss", "base_options": {"init_weights": "bat", "r": 5}}, "fully divisible"),
        ({"base_options": ["r"]}, "base_options: expected options of the base type by name"),
        ({"r": 4}, "r: 4 has no effect without"),
        ({"num_experts": 17}, "k_proj has only 16 outputs"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    base = small.build("llava_onevision")
    with pytest.raises(ValueError, match=message):
        lime.apply(base, peft="any", **options)
    assert not any(isinstance(module, BaseTunerLayer) for module in base.modules())


def test_feed_forward_modules_of_ia3() -> None:
    options: dict[str, Any] = {"peft": "any", "base": "ia3", "target_modules": TARGETS}
    model, _ = lime.apply(
        small.build("llava_onevision"), **options, base_options={"feedforward_modules": ["down_proj"]}
    )
    for layer in layers(model):
        assert layer.adapter_layer.is_feedforward == layer.key.endswith("down_proj")
    with pytest.raises(ValueError, match=r"feedforward_modules: \['up_proj'\] matches none of the targeted layers"):
        lime.apply(small.build("llava_onevision"), **options, base_options={"feedforward_modules": ["up_proj"]})


def test_base_options_need_their_type() -> None:
    with pytest.raises(ValueError, match=r"base_options: .* has no effect without `peft: any`"):
        lime.apply(small.build("llava_onevision"), base_options={"r": 4})


def wrapped(config: PeftConfig, family: str = "llava_onevision") -> Any:
    return get_peft_model(small.build(family), config)


def test_models_that_cannot_be_wrapped() -> None:
    with pytest.raises(ValueError, match="adapted with LiME already"):
        lime.apply(lime.apply(small.build("llava_onevision"))[0])
    two = wrapped(LoraConfig(target_modules=["q_proj"]))
    two.add_adapter("second", LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"2 adapters \(default, second\)"):
        lime.apply(two)
    merged = wrapped(LoraConfig(target_modules=["q_proj"]))
    merged.merge_adapter()
    with pytest.raises(ValueError, match="merged into the base weights; call unmerge_adapter"):
        lime.apply(merged)
    with pytest.raises(ValueError, match=r"embed_tokens: LiME wraps adapters of linear layers .* this is a Embedding"):
        lime.apply(wrapped(LoraConfig(target_modules=["embed_tokens"])))
    with pytest.raises(ValueError, match=r"lm_head: .* outside of them"):
        lime.apply(wrapped(LoraConfig(target_modules=["lm_head"])))
    with pytest.raises(ValueError, match=r"base_options\.bias"):
        lime.apply(wrapped(LoraConfig(target_modules=["q_proj"], bias="lora_only")))
    with pytest.raises(ValueError, match="modules_to_save: train them with LiME by"):
        lime.apply(wrapped(LoraConfig(target_modules=["q_proj"], modules_to_save=["linear_1"])))
    with pytest.raises(ValueError, match="r: the model has an adapter already"):
        lime.apply(wrapped(LoraConfig(target_modules=["q_proj"])), r=4)
    with pytest.raises(ValueError, match="enabled: the model has an adapter without LiME already"):
        lime.apply(wrapped(LoraConfig(target_modules=["q_proj"])), enabled=False)
    prompt = get_peft_model(
        small.build("llava_onevision").model.language_model,
        PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=4),
    )
    with pytest.raises(ValueError, match="its adapter is no layer of the model"):
        lime.apply(prompt)


def test_native_and_wrapped_adapters_do_not_mix() -> None:
    model = over("vera")
    with pytest.raises(TypeError, match=r"LiME adapts plain linear layers, got LimeWrapped; .* peft='any'"):
        model.add_adapter("second", lime.LimeConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="has an adapter of another type"):
        over("lora").add_adapter("second", lime.LimeConfig(peft="any", base="loha", target_modules=["q_proj"]))
    native, _ = lime.apply(small.build("llava_onevision"))
    with pytest.raises(ValueError, match=r"has an adapter of another type \(LimeLinear\)"):
        native.add_adapter("second", lime.LimeConfig(peft="any", target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="one adapter over 'vera'"):
        over("vera").add_adapter("second", lime.LimeConfig(peft="any", base="vera", target_modules=["q_proj"]))
