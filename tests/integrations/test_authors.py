"""Adapters of the authors' code: their numbers, their file layout, and what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lime
from lime.integrations.authors import load_authors_adapter
from tests.tuner import small_models as small

GOLDEN = Path(__file__).parent.parent / "golden"
CASES: dict[str, dict[str, Any]] = json.loads((GOLDEN / "cases.json").read_text())


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return load_file(GOLDEN / "cases.safetensors")


class Base(nn.Module):
    """A model of one linear layer."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
        with torch.no_grad():
            self.layer.weight.copy_(weight)
            if bias is not None:
                self.layer.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def options_of(case: dict[str, Any]) -> dict[str, Any]:
    """The training's options by the names of the authors' own call; `soft` is their `sparse: false`."""
    options = {key: case[key] for key in ("alpha", "temperature", "gamma_routing", "n_gram", "auto_topk")}
    if case["auto_topk"]:
        return {**options, "auto_topk_threshold": case["threshold"]}
    return {**options, "top_k": case["top_k"], "soft": case["soft_topk"] and not case["sparse"]}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_outputs_are_the_authors(name: str, transposed: bool, tensors: dict[str, Tensor]) -> None:
    case = CASES[name]
    given = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
    turn = (lambda t: t.t()) if transposed else (lambda t: t)
    state = {
        "layer.A": turn(given["lora_A"]),
        "layer.B": turn(given["lora_B"]),
        "layer.LiMEs": given["experts"],
        "layer.LiME_shared": given["shared"],
        "layer.gamma": given["shared_scale"],
        "layer.weight": given["weight"],
    }
    if case["peft"] == "dora":
        state["layer.m"] = given["magnitude"].unsqueeze(1)
    base = Base(given["weight"], given["bias"] if case["bias"] else None)
    model, report = load_authors_adapter(base, state, **options_of(case))  # type: ignore[arg-type]
    torch.testing.assert_close(model(given["x"]), given["out_eval"], atol=1e-9, rtol=1e-9)
    assert not any(p.requires_grad for p in model.parameters())
    assert report.layers == 1


def literal(case: dict[str, Any], given: dict[str, Tensor], bias: Tensor | None) -> Tensor:
    """Their DoRA layer with a soft automatic set, as written: the magnitude scales all of the frozen output."""
    scale = case["alpha"] / given["lora_A"].shape[0]
    change = scale * given["lora_B"] @ given["lora_A"]
    mag = given["magnitude"] / (given["weight"] + change).norm(dim=1)
    z = mag * nn.functional.linear(given["x"], given["weight"], bias)
    zhat = mag * (given["x"] @ change.t())
    E, g = given["experts"].shape[0], case["gamma_routing"]
    picked = [(signal[..., :E] / signal[..., :E].abs().max().clamp_min(1e-6)) for signal in (z + zhat, zhat)]
    w = (((1 - g) * picked[0] + g * picked[1]) / case["temperature"]).softmax(-1)
    weights = w * torch.sigmoid((w - case["threshold"] * w.amax(-1, keepdim=True)) / 0.5)
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-9)
    return z + zhat * (weights @ given["experts"] + given["shared_scale"] * given["shared"])


@pytest.mark.parametrize("name", ["dora/auto", "dora/auto_t07", "dora/E2g0", "dora/g1"])
def test_their_dora_scales_the_bias(name: str, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    case = CASES[name]
    given = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
    torch.testing.assert_close(literal(case, given, None), given["out_eval"], atol=1e-9, rtol=1e-9)
    bias = torch.randn(len(given["weight"]), dtype=given["weight"].dtype, generator=torch.Generator().manual_seed(0))
    state = {
        "layer.A": given["lora_A"], "layer.B": given["lora_B"], "layer.m": given["magnitude"],
        "layer.LiMEs": given["experts"], "layer.LiME_shared": given["shared"], "layer.gamma": given["shared_scale"],
    }  # fmt: skip
    expected = literal(case, given, bias)
    for trainable in (False, True):
        base = Base(given["weight"], bias)
        model, _ = load_authors_adapter(base, state, is_trainable=trainable, **options_of(case))  # type: ignore[arg-type]
        model.eval()
        torch.testing.assert_close(model(given["x"]), expected, atol=1e-9, rtol=1e-9)
        with model.disable_adapter():
            assert torch.equal(model(given["x"]), Base(given["weight"], bias)(given["x"])), "the base stays as it is"
    model.save_pretrained(tmp_path)
    again, _ = lime.load(Base(given["weight"], bias), tmp_path)  # type: ignore[arg-type]
    torch.testing.assert_close(again(given["x"]), expected, atol=1e-9, rtol=1e-9)


def test_scaling_a_bias_is_for_dora_alone() -> None:
    for options in ({}, {"peft": "dora", "enabled": False}):
        with pytest.raises(ValueError, match="scale_bias: has no effect"):
            lime.LimeConfig(scale_bias=True, **options)  # type: ignore[arg-type]


# -- files, names, refusals ----------------------------------------------------------------------------------

PREFIX = {
    "llava_onevision": ("model.language_model.", "language_model.model.", "model.vision_tower.",
                        "vision_tower.vision_model."),
    "qwen2_vl": ("model.language_model.", "model.", "model.visual.", "visual."),
}  # fmt: skip


def exported(family: str, **options: Any) -> tuple[Any, dict[str, Tensor]]:
    """An adapted model, and its adapter as the authors' code would have saved it."""
    model = small.apply_random(small.build(family), scope="both", **options)
    state: dict[str, Tensor] = {"model.embed_tokens.weight": torch.zeros(2, 2)}
    for layer in small.lime_layers(model):
        delta: Any = layer.lime_delta["default"]
        state |= {
            f"{layer.key}.{part}": value.detach().clone()
            for part, value in {
                "A": delta.A, "B": delta.B, "LiMEs": layer.lime_experts["default"],
                "LiME_shared": layer.lime_shared["default"], "gamma": layer.lime_gamma["default"],
                "weight": layer.base_layer.weight,
            }.items()
        }  # fmt: skip
    return model, state


def logits(family: str, model: Any) -> list[Tensor]:
    rows = [small.row(family, 7, 1, with_image=True), small.row(family, 12, 2)]
    return small.logits(model, small.batch(family, rows))


@pytest.mark.parametrize("family", small.FAMILIES)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_files_and_module_names_of_other_versions(family: str, suffix: str, tmp_path: Path) -> None:
    theirs, state = exported(family, routing_norm="tensor", soft=True, auto_topk_threshold=0.5)
    new_language, old_language, new_vision, old_vision = PREFIX[family]
    renamed = {
        "module." + key.replace(new_vision, old_vision).replace(new_language, old_language): value
        for key, value in state.items()
    }
    path = tmp_path / f"adapter{suffix}"
    if suffix == ".pt":
        torch.save(renamed, path)
    else:
        save_file({key: value.contiguous() for key, value in renamed.items()}, path)
    model, report = load_authors_adapter(small.build(family), path)
    expected = logits(family, theirs)
    for got, wanted in zip(logits(family, model), expected, strict=True):
        torch.testing.assert_close(got, wanted)
    assert {total.tower for total in report.towers} == {"language_model", "vision_tower"}
    model.save_pretrained(tmp_path)
    again, _ = lime.load(small.build(family), tmp_path)
    for got, wanted in zip(logits(family, again), logits(family, model), strict=True):
        assert torch.equal(got, wanted)


def test_training_may_go_on() -> None:
    _, state = exported("llava_onevision")
    state = {key.replace("language_model", "text"): value for key, value in state.items()}
    model, report = load_authors_adapter(
        small.build("llava_onevision"), state, rename={r"\.text\.": ".language_model."}, is_trainable=True, n_gram=1
    )
    assert report.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad) > 0
    assert model.peft_config["default"].routing_norm == "tensor"


LAYER = "model.language_model.layers.0.self_attn.q_proj"  # 32 -> 32


def changed(state: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    """The first layer alone, with some of its tensors changed or taken away."""
    found = {key: value for key, value in state.items() if key.startswith(LAYER)}
    for part, value in changes.items():
        found.pop(f"{LAYER}.{part}", None)
        if value is not None:
            found[f"{LAYER}.{part}"] = value
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"B": None}, r"q_proj: lacks B"),
        ({"gamma": None}, r"q_proj: has one of LiME_shared and gamma"),
        ({"router": torch.zeros(1)}, r"q_proj\.router: not known of a LiME layer"),
        ({"LiMEs": torch.ones(4, 31)}, r"q_proj\.LiMEs: expected shape \(experts, 32\), got \(4, 31\)"),
        ({"m": torch.ones(5)}, r"q_proj\.m: expected 32 values"),
        ({"A": torch.ones(4, 30)}, r"A \(4, 30\) and B \(32, 4\) do not fit a layer of 32 inputs and 32 outputs"),
        ({"A": torch.ones(32, 32), "B": torch.ones(32, 32)}, r"fit either way round; give transposed="),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    _, state = exported("llava_onevision")
    with pytest.raises(ValueError, match=message):
        load_authors_adapter(small.build("llava_onevision"), changed(state, **changes))


def test_lora_fa_is_known_by_its_frozen_a() -> None:
    _, state = exported("llava_onevision")  # whose A is as it was drawn, and B not zero
    model, report = load_authors_adapter(small.build("llava_onevision"), state, is_trainable=True)
    assert model.peft_config["default"].peft == "lora_fa"
    assert not any(name.endswith("default.A") and p.requires_grad for name, p in model.named_parameters())
    model, _ = load_authors_adapter(small.build("llava_onevision"), state, peft="lora")
    assert model.peft_config["default"].peft == "lora"
    trained = {key: value * 1.5 if key.endswith("q_proj.A") else value for key, value in state.items()}
    model, _ = load_authors_adapter(small.build("llava_onevision"), trained)
    assert model.peft_config["default"].peft == "lora"
    untrained = {key: value * 0 if key.endswith(".B") else value for key, value in state.items()}
    model, _ = load_authors_adapter(small.build("llava_onevision"), untrained)
    assert model.peft_config["default"].peft == "lora"
    assert report.layers == 16


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"x.q_proj.part_T": (2, 8), "x.q_proj.part_F": (6, 8), "x.q_proj.LiMEs": (4, 8)},
         r"x\.q_proj\.part_T: of a SliceFine adapter"),
        ({"prompt_base": (5, 8), "prompt_delta": (5, 8), "LiMEs": (4, 8)}, "prompt_delta: of a prompt"),
        ({"lm_head.A": (2, 32), "lm_head.B": (96, 2), "lm_head.LiMEs": (4, 96)},
         "lm_head: lies outside the language model and the vision tower"),
        ({"model.multi_modal_projector.linear_1.A": (2, 32), "model.multi_modal_projector.linear_1.B": (32, 2),
          "model.multi_modal_projector.linear_1.LiMEs": (4, 32)}, r"linear_1: lies outside the language model"),
        ({"model.language_model.embed_tokens.A": (2, 32), "model.language_model.embed_tokens.B": (32, 2),
          "model.language_model.embed_tokens.LiMEs": (4, 32)}, "embed_tokens: is an embedding"),
        ({f"{LAYER}.B": (32, 2), f"{LAYER}.LiMEs": (4, 32)}, "lacks A; of LoRA-FA save the frozen A as well"),
    ],
)  # fmt: skip
def test_other_adapters_of_theirs_are_refused_as_what_they_are(state: dict[str, tuple[int, ...]], message: str) -> None:
    base = small.build("llava_onevision")
    with pytest.raises(ValueError, match=message):
        load_authors_adapter(base, {key: torch.ones(shape) for key, shape in state.items()})
    assert not small.lime_layers(base)


def test_what_is_refused_of_the_whole(tmp_path: Path) -> None:
    _, state = exported("llava_onevision")
    base = small.build("llava_onevision")
    with pytest.raises(ValueError, match="rank: read from the adapter itself"):
        load_authors_adapter(base, state, rank=4)
    with pytest.raises(ValueError, match="no LiME layer in the state dict"):
        load_authors_adapter(base, {"a.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"x\.q_proj: Llava.* has no such linear layer; names in the model look like"):
        load_authors_adapter(base, {key.replace(LAYER, "x.q_proj"): value for key, value in state.items()})
    wider = changed(state, A=torch.ones(5, 32), B=torch.ones(32, 5))
    with pytest.raises(ValueError, match="the rank differs between layers"):
        load_authors_adapter(base, {**state, **wider})
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
        load_authors_adapter(base, tmp_path / "nothing.pt")
    assert not small.lime_layers(base)
