"""The fused function against the definition: values, gradients, precisions, and where it steps aside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lime.method import fused
from lime.method.fused.dropout import MASKS, Dropout
from lime.method.fused.function import Fused
from lime.tuner.layers.linear import LimeLinear
from lime.tuner.routing.call import TowerCall
from lime.tuner.routing.state import RoutingState
from lime.tuner.settings import LimeSettings
from tests.ways import way

CHOICES: list[dict[str, Any]] = [
    {},
    {"selection": "dense", "feature_slice": "central"},
    {"selection": "topk", "feature_slice": "random"},
    {"soft": True, "routing_norm": "tensor"},
    {"selection": "topk", "soft": True, "n_gram": 3, "window_anchor": "last"},
    {"router": "learned", "n_gram": 2, "max_experts": 2},
    {"peft": "lora_fa", "shared_modulator": False, "n_gram": 2, "routing_norm": "tensor"},
    {"peft": "slicefine", "orientation": "both", "feature_slice": "trailing"},
]
MASK = torch.tensor([[True] * 6, [False, False, True, True, True, True]])
choices = pytest.mark.parametrize("options", CHOICES, ids=str)


def layer(dtype: torch.dtype, width: int = 24, adapters: torch.dtype | None = None, **options: Any) -> LimeLinear:
    torch.manual_seed(1)
    base = nn.Linear(16, width, dtype=dtype).requires_grad_(False)
    made = LimeLinear(base, "layer", "", RoutingState())
    made.update_layer("default", LimeSettings(**{"r": 3, **options}), init_weights=False)
    made.set_adapter("default")
    if "default" in made.lime_gamma:
        made.lime_gamma["default"].data.fill_(0.5)
    return made


def outcome(made: LimeLinear, x: Tensor, path: str, mask: Tensor | None = MASK) -> list[Tensor]:
    """Output, balance losses and all gradients by one path."""
    leaf = x.detach().requires_grad_()
    torch.manual_seed(5)
    with way(path), made.routing_state.recording() as recorder:
        call = TowerCall("", mask_BT=mask, mask_BS=mask, recorder=recorder)
        with made.routing_state.restored({"": call}):
            assert made.choose(leaf, call).way == ("fused" if path == "auto" else "torch")
            out = made(leaf)
    balance = recorder.balance()
    upstream = torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype)
    loss = (out * upstream).sum().to(balance.kl.dtype) + 3 * balance.importance + 2 * balance.kl
    leaves = [leaf, *(p for p in made.parameters() if p.requires_grad)]
    return [out, *balance, *torch.autograd.grad(loss, leaves)]


@choices
def test_it_is_the_definition_with_the_same_noise(options: dict[str, Any]) -> None:
    """In training: both draw the same jitter from one seed."""
    x = torch.randn(2, 6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = layer(torch.float64, **options).train()
    for one, other in zip(outcome(made, x, "auto"), outcome(made, x, "literal"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@choices
def test_float32_is_the_definition_to_rounding(options: dict[str, Any]) -> None:
    """Within 1e-6 of the definition in float64; the definition in float32 is no nearer to it."""
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    made, exact = layer(torch.float32, **options).eval(), layer(torch.float64, **options).eval()
    exact.load_state_dict({name: value.double() for name, value in made.state_dict().items()})
    for one, other in zip(outcome(made, x, "auto"), outcome(exact, x.double(), "literal"), strict=True):
        assert float((one - other).detach().norm()) <= 1e-6 * max(1.0, float(other.detach().norm()))


@pytest.mark.parametrize("autocast", [False, True])
def test_low_precision_agrees_to_its_rounding(autocast: bool) -> None:
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    made = layer(torch.float32 if autocast else torch.bfloat16, selection="dense").eval()
    x = x if autocast else x.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        got, expected = outcome(made, x, "auto"), outcome(made, x, "literal")
    assert got[0].dtype == torch.bfloat16
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        difference = (one.float() - other.float()).detach().norm()
        assert float(difference) <= 0.03 * float(other.detach().float().norm()) + 1e-3


@choices
def test_gradients_by_finite_differences(options: dict[str, Any]) -> None:
    made = layer(torch.float64, width=8, **options).eval()
    parameters = {name: p for name, p in made.named_parameters() if p.requires_grad}
    x = torch.randn(2, 6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def run(x: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        with made.routing_state.recording() as recorder:
            call = TowerCall("", mask_BT=MASK, mask_BS=MASK, recorder=recorder)
            with made.routing_state.restored({"": call}):
                out = torch.func.functional_call(made, dict(zip(parameters, values, strict=True)), (x,))
        return out, recorder.balance().total(1.0, 1.0)

    assert torch.autograd.gradcheck(run, (x, *parameters.values()), fast_mode=True)


def test_non_contiguous_inputs_and_gradients() -> None:
    x = torch.randn(6, 16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).permute(2, 0, 1)
    made = layer(torch.float64).eval()
    results = []
    for one in (x, x.contiguous()):
        leaf = one.detach().requires_grad_()
        results.append(
            torch.autograd.grad(made(leaf).sum(), [leaf, *(p for p in made.parameters() if p.requires_grad)])
        )
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_the_mask_of_dropout_is_drawn_again() -> None:
    """Linear in B, so the output's slope is exact only if both passes drop the same; and the generator goes on."""
    made = layer(torch.float64, dropout=0.5, gamma_routing=0.0, jitter_noise=0.0).train()
    x = torch.randn(2, 300, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    B = made.lime_delta["default"].B
    torch.manual_seed(7)
    out = made(x)
    after = torch.get_rng_state()
    upstream = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((out * upstream).sum(), B)
    assert torch.equal(after, torch.get_rng_state())
    change = torch.randn(B.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    B.data.add_(change)
    torch.manual_seed(7)
    torch.testing.assert_close(((made(x) - out) * upstream).sum(), (gradient * change).sum())


def test_dropout_drops_each_feature_of_each_token_by_itself() -> None:
    torch.manual_seed(0)
    x, p = torch.rand(200, 300, dtype=torch.float64) + 1, 0.3
    dropout = Dropout.draw(x, p)
    dropped = dropout.project(torch.eye(300, dtype=torch.float64), x).t()
    kept = dropped != 0
    torch.testing.assert_close(dropped, x * kept / (1 - p))
    assert float(kept.double().mean()) == pytest.approx(1 - p, abs=0.01)
    by_feature, by_token = kept[:MASKS].double().mean(0), kept.double().mean(1)
    for share, count in ((by_feature, MASKS), (by_token, 300)):  # as spread out as independent draws are
        assert float(share.std()) == pytest.approx((p * (1 - p) / count) ** 0.5, rel=0.15)
    assert len(torch.unique(kept, dim=0)) == MASKS
    assert not torch.equal(dropped, Dropout.draw(x, p).project(torch.eye(300, dtype=torch.float64), x).t())


@pytest.mark.parametrize("tokens", [3, 2 * MASKS, 2 * MASKS + 5])
def test_gradients_of_dropout_are_those_of_its_masks(tokens: int) -> None:
    torch.manual_seed(0)
    x, rows = (torch.randn(n, 8, dtype=torch.float64, requires_grad=True) for n in (tokens, 3))
    others, grad_projected = torch.randn(2, 8, dtype=torch.float64), torch.randn(5, tokens, dtype=torch.float64)
    dropout = Dropout.draw(x, 0.4)
    eye = torch.eye(8, dtype=torch.float64)
    factors = dropout.project(eye, torch.ones_like(x).detach()).t()
    expected = torch.autograd.grad(
        [rows @ (x * factors).t(), others @ x.t()], [rows, x], [grad_projected[:3], grad_projected[3:]]
    )
    grad_x = torch.zeros(tokens, 8, dtype=torch.float64)
    after = torch.get_rng_state()
    got = dropout.backward(grad_projected, rows.detach(), others, x.detach(), grad_x)
    assert torch.equal(after, torch.get_rng_state())
    torch.testing.assert_close((got, grad_x), expected)


def test_a_second_derivative_is_refused() -> None:
    made = layer(torch.float64)
    x = torch.randn(2, 6, 16, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(made(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        gradient.sum().backward()


class Own(nn.Linear):
    pass


def test_it_steps_aside_where_the_frozen_layer_is_more_than_its_product() -> None:
    def reason(x: Tensor | None, **options: Any) -> str:
        choice = layer(torch.float32, **options).choose(x)
        assert (choice.way == "fused") == (not choice.reason)
        return choice.reason

    x = torch.randn(2, 6, 16)
    assert reason(x) == reason(None) == ""
    assert reason(x.double()) == "input and frozen weight are of different dtypes"
    assert "routing_norm" in reason(x, routing_norm="token")
    assert reason(x, peft="dora") == reason(None, peft="dora") == "dora rescales the frozen output"
    assert "without LiME" in reason(x, enabled=False)
    with fused.use("torch"):
        assert "'torch'" in reason(x)
    trained = layer(torch.float32)
    trained.base_layer.requires_grad_(True)
    assert "trained" in trained.choose(x).reason
    subclassed = layer(torch.float32)
    subclassed.base_layer.__class__ = Own
    assert "nn.Linear" in subclassed.choose(x).reason
    hooked, calls = layer(torch.float32), []
    hooked.base_layer.register_forward_hook(lambda *_: calls.append(1))
    hooked(x)
    assert calls == [1]


def test_paths_are_named() -> None:
    with pytest.raises(ValueError, match="auto, triton, fused, torch"), fused.use("fast"):
        pass
    with fused.use("torch"):
        assert fused.path() == "torch"
    assert fused.path() == "auto"
    assert issubclass(Fused, torch.autograd.Function)
