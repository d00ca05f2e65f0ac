"""Each PEFT type in an adapted layer: its own formula, written out; and the peft library's own where it has one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from lime.method import fused, routing
from lime.tuner.layers.linear import LimeLinear
from lime.tuner.routing.call import TowerCall
from lime.tuner.routing.state import RoutingState
from lime.tuner.settings import LimeSettings
from tests.tuner.test_layer import CHOICES, layer

TYPES: dict[str, dict[str, Any]] = {
    "lora": {"peft": "lora"},
    "lora_fa": {"peft": "lora_fa"},
    "dora": {"peft": "dora"},
    "slicefine columns": {"peft": "slicefine"},
    "slicefine rows": {"peft": "slicefine", "orientation": "rows"},
    "slicefine both": {"peft": "slicefine", "orientation": "both"},
}
types = pytest.mark.parametrize("options", TYPES.values(), ids=TYPES.keys())


def literal(made: LimeLinear, x: Tensor) -> tuple[Tensor, Tensor]:
    """`z'` and `zhat` from whole matrices, as the method states them."""
    c, delta, base = made.lime_settings["default"], made.lime_delta["default"], made.base_layer
    weight, bias, scale = base.weight, base.bias, c.lora_alpha / c.r
    if c.peft == "slicefine":
        change = torch.zeros_like(weight)
        if c.orientation != "rows":
            change[:, delta.columns] += delta.column_change
        if c.orientation != "columns":
            change[delta.rows] += delta.row_change
    else:
        change = scale * delta.B @ delta.A
    if c.peft == "dora":
        mag = delta.magnitude / (weight + change).detach().norm(dim=1)
        return mag * (x @ weight.t()) + bias, mag * (x @ change.t())
    return x @ weight.t() + bias, x @ change.t()


@types
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_layer_is_its_definition(options: dict[str, Any], choice: dict[str, Any]) -> None:
    """Output, routing and gradients against the formulas of the method on whole matrices."""
    made = layer(**options, **choice)
    c, delta = made.lime_settings["default"], made.lime_delta["default"]
    if c.peft == "dora":
        with torch.no_grad():
            delta.magnitude.mul_(torch.linspace(0.5, 1.5, 10, dtype=torch.float64))
    torch.manual_seed(3)
    x = torch.randn(2, 7, 12, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True] * 7, [False, False, True, True, True, True, True]])
    outputs = []
    for path in ("auto", "torch"):
        with fused.use(path), made.routing_state.recording() as recorder:
            call = TowerCall("", mask_BT=mask, mask_BS=mask, recorder=recorder)
            with made.routing_state.restored({"": call}):
                outputs.append(made(x))
    (entry,) = next(iter(recorder._entries.values()))
    z, zhat = literal(made, x)
    router = made.lime_router["default"]
    if c.router == "zero":
        frozen = z + zhat if c.peft == "dora" else z
        picked = [router.pick(signal) for signal in (frozen, zhat)]
        considered = mask.unsqueeze(-1) if c.n_gram > 1 else None
        assert c.routing_norm != "tensor" or considered is None
        parts = [routing.normalise(p, c.routing_norm, s) for p, s in zip(picked, (frozen, zhat), strict=True)]
        logits = (1 - c.gamma_routing) * parts[0] + c.gamma_routing * parts[1]
    else:
        logits = x @ router.weight.t()
    if c.n_gram == 1:
        torch.testing.assert_close(entry.probabilities, (logits / c.temperature).softmax(-1))
    modulator = entry.weights @ made.lime_experts["default"]
    if c.shared_modulator:
        modulator = modulator + made.lime_gamma["default"] * made.lime_shared["default"]
    expected = torch.where(mask.unsqueeze(-1), z + zhat * modulator, made.base_layer(x))
    leaves = [x, *(p for p in delta.parameters() if p.requires_grad), made.lime_experts["default"]]
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * upstream).sum(), leaves, retain_graph=True)
    for out in outputs:
        torch.testing.assert_close(out, expected)
        for one, other in zip(torch.autograd.grad((out * upstream).sum(), leaves), gradients, strict=True):
            torch.testing.assert_close(one, other)


@types
def test_without_modulators_it_is_the_update_alone(options: dict[str, Any]) -> None:
    made = layer(**options, enabled=False)
    x = torch.randn(5, 12, dtype=torch.float64)
    z, zhat = literal(made, x)
    torch.testing.assert_close(made(x), z + zhat)
    assert not made.routes
    assert [name for name, _ in made.named_parameters() if "lime_" in name and "lime_delta" not in name] == []
    assert made.grouped_parameters("default")["modulators"] == []


@types
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("enabled", [True, False])
def test_a_fresh_layer_is_exactly_the_frozen_one(options: dict[str, Any], dtype: torch.dtype, enabled: bool) -> None:
    base = nn.Linear(37, 29, dtype=dtype)
    base.weight.data[3] = 0.0  # a dead output: DoRA's norm of it is zero
    made = LimeLinear(base, "layer", "", RoutingState())
    made.update_layer("default", LimeSettings(**options, enabled=enabled))
    made.set_adapter("default")
    x = torch.randn(4, 6, 37, dtype=dtype)
    assert torch.equal(made(x), base(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(made(x), base(x))
    assert {p.dtype for group in made.grouped_parameters("default").values() for p in group} == {torch.float32}


class One(nn.Module):
    def __init__(self, bias: bool):
        super().__init__()
        self.layer = nn.Linear(24, 20, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("peft", ["lora", "dora"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("choice", [{}, {"routing_norm": "token", "selection": "dense"}, {"soft": True}], ids=str)
def test_even_modulators_give_the_library_s_own(peft: str, bias: bool, choice: dict[str, Any]) -> None:
    """P = 1 and gamma = 0: outputs and gradients of peft's LoRA and DoRA, in float32."""
    torch.manual_seed(0)
    theirs = get_peft_model(One(bias), LoraConfig(r=4, lora_alpha=8, target_modules=["layer"], use_dora=peft == "dora"))
    lora = theirs.base_model.model.layer
    ours = LimeLinear(lora.base_layer, "layer", "", RoutingState())
    ours.update_layer("default", LimeSettings(peft=peft, r=4, lora_alpha=8.0, **choice))
    ours.set_adapter("default")
    delta = ours.eval().lime_delta["default"]
    pairs = {"A": (delta.A, lora.lora_A["default"].weight), "B": (delta.B, lora.lora_B["default"].weight)}
    if peft == "dora":
        pairs["magnitude"] = (delta.magnitude, lora.lora_magnitude_vector["default"].weight)
        torch.testing.assert_close(*pairs["magnitude"])
    with torch.no_grad():
        ours.lime_experts["default"].fill_(1.0)
        for name, (mine, its) in pairs.items():
            its.mul_(1 + 0.5 * torch.rand_like(its)) if name == "magnitude" else its.normal_(std=0.4)
            mine.copy_(its)
    upstream = torch.randn(3, 5, 20)
    x = torch.randn(3, 5, 24)
    results = []
    for module in (ours, theirs):
        leaf = x.clone().requires_grad_()
        out = module(leaf)
        (out * upstream).sum().backward()
        results.append((out, leaf.grad))
    for mine, its in zip(*results, strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-5)
    for mine, its in pairs.values():
        assert its.grad.abs().max() > 0.1
        torch.testing.assert_close(mine.grad, its.grad, atol=1e-5, rtol=1e-5)


def test_slices_are_consecutive_drawn_per_layer_and_saved() -> None:
    torch.manual_seed(0)
    starts = set()
    for _ in range(20):
        made = LimeLinear(nn.Linear(40, 30), "layer", "", RoutingState())
        made.update_layer("default", LimeSettings(peft="slicefine", orientation="both", r=3))
        delta = made.lime_delta["default"]
        for indices, width in ((delta.columns, 40), (delta.rows, 30)):
            assert indices.tolist() == list(range(int(indices[0]), int(indices[0]) + 3))
            assert 0 <= int(indices[0]) <= width - 3
        starts.add((int(delta.columns[0]), int(delta.rows[0])))
        assert {"lime_delta.default.columns", "lime_delta.default.rows"} <= made.state_dict().keys()
    assert len(starts) > 10


@pytest.mark.parametrize(("orientation", "what"), [("columns", "13 columns"), ("rows", "13 rows"), ("both", "13 rows")])
def test_a_slice_wider_than_the_layer_is_refused(orientation: str, what: str) -> None:
    made = LimeLinear(nn.Linear(20 if orientation == "both" else 12, 10), "some.layer", "", RoutingState())
    with pytest.raises(ValueError, match=rf"r: a slice of {what} does not fit some\.layer, which has 1[02]"):
        made.update_layer("default", LimeSettings(peft="slicefine", orientation=orientation, r=13))


def test_lora_fa_keeps_a_frozen() -> None:
    made = layer(peft="lora_fa")
    for _ in range(2):
        assert [name for name, p in made.lime_delta["default"].named_parameters() if p.requires_grad] == ["B"]
        made.set_adapter("default")
