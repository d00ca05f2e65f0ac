"""The fused layer's Triton kernels against its torch operations; run by `test_triton.py` in a process of its own,
because Triton is either interpreted, on the CPU, or compiled, on a GPU."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lime.analysis.benchmark.forms import Subject
from lime.analysis.benchmark.layer import Case
from lime.method import fused, triton
from lime.method.fused import operations
from lime.method.fused.parts import Plan, Weights
from lime.method.routing import RoutingPlan
from lime.method.triton import backward_kernels, checking, forward_kernels, launches
from lime.tuner.layers.linear import LimeLinear
from lime.tuner.routing.call import TowerCall
from lime.tuner.settings import LimeSettings
from tests.method.test_fused import layer as on_cpu
from tests.ways import way

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
WIDTH, TOKENS = 137, 19
"""Of the outputs and of a sequence: multiples of no block."""
CHOICES: list[dict[str, Any]] = [
    {},
    {"selection": "dense", "feature_slice": "central"},
    {"selection": "topk", "feature_slice": "random", "r": 8},
    {"soft": True},
    {"selection": "topk", "soft": True, "n_gram": 3, "window_anchor": "last"},
    {"router": "learned", "max_experts": 2},
    {"n_gram": 2},
    {"num_experts": 1, "shared_modulator": False},
    {"num_experts": 16, "r": 1},
    {"num_experts": 3, "max_experts": 2, "dropout": 0.3},
    {"peft": "lora_fa", "num_experts": 5},
    {"peft": "slicefine", "orientation": "both", "feature_slice": "trailing"},
]
LOW_AND_FULL, PLAIN = (torch.bfloat16, torch.float32), Plan()
choices = pytest.mark.parametrize("options", CHOICES, ids=str)


def layer(dtype: torch.dtype, **options: Any) -> LimeLinear:
    return on_cpu(dtype, **options).to(DEVICE)


def outcome(made: LimeLinear, x: Tensor, path: str) -> list[Tensor]:
    """Output, balance losses and all gradients, in training with padding."""
    leaf = x.detach().requires_grad_()
    mask = torch.ones(2, TOKENS, dtype=torch.bool, device=DEVICE)
    mask[1, :5] = False
    torch.manual_seed(5)
    with way(path), made.routing_state.recording() as recorder:
        call = TowerCall("", mask_BT=mask, mask_BS=mask, recorder=recorder)
        with made.routing_state.restored({"": call}):
            out = made(leaf)
    balance = recorder.balance()
    upstream = torch.linspace(-1, 1, out.numel(), device=DEVICE).view_as(out).to(out.dtype)
    loss = (out * upstream).sum().to(balance.kl.dtype) + 3 * balance.importance + 2 * balance.kl
    leaves = [leaf, *(p for p in made.parameters() if p.requires_grad)]
    shown = [value.float() for value in call.to_cache.values()]
    return [one.detach() for one in (out, *balance, *shown, *torch.autograd.grad(loss, leaves))]


def example(seed: int = 0) -> Tensor:
    return torch.randn(2, TOKENS, 16, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@choices
def test_float32(options: dict[str, Any]) -> None:
    made = layer(torch.float32, width=WIDTH, **options).train()
    results = zip(outcome(made, example(), "triton"), outcome(made, example(), "fused"), strict=True)
    for got, expected in results:
        assert float((got - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e-2])
def test_the_gradient_of_a_small_update(scale: float) -> None:
    """It is bounded as by torch, and so are the balance losses' first gradients."""
    made = layer(torch.float32, width=WIDTH).train()
    with torch.no_grad():
        made.lime_delta["default"].B.mul_(scale)
    results = zip(outcome(made, example(), "triton"), outcome(made, example(), "fused"), strict=True)
    for got, expected in results:
        assert float((got - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))
        assert float(got.abs().max()) < 1e3


@pytest.mark.parametrize("options", CHOICES[:3], ids=str)
def test_bfloat16_is_no_further_from_float32_than_torch(options: dict[str, Any]) -> None:
    low, full = (layer(dtype, width=WIDTH, jitter_noise=0.0, **options).train() for dtype in LOW_AND_FULL)
    full.base_layer.load_state_dict(low.base_layer.state_dict())
    x = example().bfloat16()
    got, by_torch, exact = outcome(low, x, "triton"), outcome(low, x, "fused"), outcome(full, x.float(), "fused")
    for one, other, reference in zip(got, by_torch, exact, strict=True):
        assert one.dtype == other.dtype
        scale = float(reference.norm())
        error, usual = float((one.float() - reference).norm()), float((other.float() - reference).norm())
        assert error <= 2 * usual + 4e-3 * scale + 1e-4


@pytest.mark.parametrize("tokens", [1, 32, 65])
def test_any_number_of_tokens(tokens: int) -> None:
    made = layer(torch.float32, width=WIDTH).eval()
    x = torch.randn(1, tokens, 16, generator=torch.Generator().manual_seed(tokens)).to(DEVICE)
    with fused.use("triton"):
        got = made(x)
    with way("literal"):
        torch.testing.assert_close(got, made(x), rtol=1e-5, atol=1e-5)


def test_padding_keeps_the_frozen_output() -> None:
    made = layer(torch.bfloat16, width=WIDTH).eval()
    mask = torch.ones(2, TOKENS, dtype=torch.bool, device=DEVICE)
    mask[1, 5:] = False
    x = example().bfloat16()
    call = TowerCall("", mask_BT=mask, mask_BS=mask)
    with fused.use("triton"), made.routing_state.restored({"": call}):
        out = made(x)
    frozen = made.base_layer(x)
    assert torch.equal(out[~mask], frozen[~mask])
    assert not torch.equal(out[mask], frozen[mask])


def count_launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the launches from here on."""
    taken: list[str] = []
    for name in ("add_update", "backward"):
        original = getattr(launches, name)
        monkeypatch.setattr(launches, name, lambda *a, _of=original, _name=name: taken.append(_name) or _of(*a))
    return taken


def test_it_takes_the_kernels_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome(layer(torch.float32).train(), example(), "triton")  # the checks of these kinds are over
    outcome(layer(torch.float32, n_gram=3).train(), example(), "triton")
    taken = count_launches(monkeypatch)
    outcome(layer(torch.float32).train(), example(), "triton")
    assert taken == ["add_update", "backward"]
    outcome(layer(torch.float32, n_gram=3).train(), example(), "triton")  # windows: backward by torch
    assert taken == ["add_update", "backward", "add_update"]
    for options in ({"routing_norm": "tensor"}, {"num_experts": 80}):
        outcome(layer(torch.float32, width=WIDTH, **options).train(), example(), "triton")
    for path in ("fused", "torch"):
        outcome(layer(torch.float32).train(), example(), path)
    assert taken == ["add_update", "backward", "add_update"]
    outcome(layer(torch.float32).train(), example(), "auto")
    assert len(taken) == (3 if DEVICE == "cpu" else 5)  # on a GPU unasked


def test_each_kind_is_checked_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(checking, "_agrees", {})
    taken = count_launches(monkeypatch)
    for _ in range(2):
        outcome(layer(torch.float32).train(), example(), "triton")
    assert taken == ["add_update", "add_update", "backward", "backward", "add_update", "backward"]
    outcome(layer(torch.bfloat16).train(), example().bfloat16(), "triton")  # another kind
    assert len(taken) == 10
    assert not caplog.records


def wrong_forward(z_NO: Tensor, *given: Any) -> Any:
    routed = operations.add_update(z_NO, *given)
    z_NO[:, -1] *= 1.1
    return routed


def wrong_backward(*given: Any) -> Any:
    made = operations.backward(*given)
    return made._replace(basis_RO=made.basis_RO * 1.01)


def uncompiled(*given: Any) -> Any:
    raise RuntimeError("CompilationError at 41:8\nmore lines")


@pytest.mark.parametrize(
    ("name", "planted", "said"),
    [
        ("add_update", wrong_forward, "forward kernels.*they differ by"),
        ("backward", wrong_backward, "backward kernels.*they differ by"),
        ("add_update", uncompiled, "forward kernels.*RuntimeError: CompilationError at 41:8\\)"),
        ("backward", uncompiled, "backward kernels.*RuntimeError: CompilationError at 41:8\\)"),
    ],
)
def test_a_fault_warns_once_and_torch_acts(
    name: str, planted: Any, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checking, "_agrees", {})
    monkeypatch.setattr(launches, name, planted)
    made = layer(torch.float32).train()
    expected = outcome(made, example(), "fused")
    for _ in range(2):
        got = outcome(made, example(), "triton")
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert re.search(said, record.getMessage())


def test_what_is_left_to_torch() -> None:
    def taken(x: Tensor, plan: Plan = PLAIN, experts: int = 4, rank: int = 2) -> bool:
        some = functools.partial(torch.ones, device=DEVICE)
        weights = Weights(some(8, 4), None, some(rank, 4), some(rank, 8), some(experts, 8))
        return triton._takes(x, weights, plan)

    x = torch.ones(3, 4, device=DEVICE)
    assert taken(x)
    assert taken(x.bfloat16())
    assert not taken(x.double())
    assert not taken(x[:0])
    assert not taken(x, experts=65)
    assert not taken(x, rank=65)
    assert not taken(x, Plan(RoutingPlan(norm="tensor")))
    assert taken(x, Plan(RoutingPlan(norm="tensor", learned=True)))


class Launches(TorchDispatchMode):
    """Counts what would be a launch on a GPU: every operation but views and allocations, and the kernels."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not (func.is_view or name.startswith(("empty", "new_empty", "detach", "promote_types"))):
            self.count += 1
        return func(*args, **(kwargs or {}))


class Launched:
    """Stands for a kernel: counts its launch and computes nothing."""

    def __init__(self, counter: Launches):
        self.counter = counter

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.counter.count += 1

        return launch


@pytest.mark.parametrize("variant", ["plain", "mask"])
@pytest.mark.parametrize("dtype", LOW_AND_FULL, ids=str)
def test_at_most_eight_launches_beyond_lora(dtype: torch.dtype, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward of one layer, against peft's LoRA."""
    settings, base = LimeSettings(target_modules=["proj"]), nn.Linear(64, 96).to(dtype)
    counts = {}
    for name in ("lora", "lime_lora:triton"):
        case, counter = Case(base, Subject.of(name), settings, variant, 32, 0), Launches()
        with monkeypatch.context() as patch:
            patch.setattr(forward_kernels, "add_update", Launched(counter))
            for kernel in ("write_factors", "route_backward", "modulate_backward"):
                patch.setattr(backward_kernels, kernel, Launched(counter))
            patch.setattr(triton, "_interpreted", lambda: True)
            patch.setattr(checking, "_once", lambda kind, difference: True)
            with counter:
                case.run()
        counts[name] = counter.count
    assert 0 < counts["lime_lora:triton"] - counts["lora"] <= 8
