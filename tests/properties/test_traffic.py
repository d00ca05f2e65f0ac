"""What an adapted layer keeps and moves, counted; and no step waits for a value."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lime.analysis.benchmark.counting import Traffic, kept_storages
from lime.analysis.benchmark.forms import Subject
from lime.analysis.benchmark.layer import Case, counts
from lime.method.deltas.table import MIXTURES
from lime.tuner.layers.linear import LimeLinear
from lime.tuner.routing.call import TowerCall
from lime.tuner.routing.state import RoutingState
from lime.tuner.settings import LimeSettings

WIDTH, COUNTS = 896, (128, 256)
"""Counts come from the difference of two numbers of tokens, which takes out what does not grow: the scaled basis."""
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "top-k": {"selection": "topk"},
    "dense": {"selection": "dense"},
    "soft": {"soft": True},
    "capped": {"max_experts": 2},
    "3-grams": {"n_gram": 3},
    "3-grams by their last": {"n_gram": 3, "window_anchor": "last", "selection": "topk"},
    "dropout": {"dropout": 0.1},
    "learned router": {"router": "learned"},
}
WAITS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "_unique2", "is_nonzero", "equal")


def layer(width: int, **options: Any) -> LimeLinear:
    torch.manual_seed(0)
    made = LimeLinear(nn.Linear(width, width).requires_grad_(False), "layer", "", RoutingState())
    made.update_layer("default", LimeSettings(**options))
    made.set_adapter("default")
    return made.train()


def step(made: LimeLinear, x: torch.Tensor, mask: torch.Tensor | None, balance: bool) -> torch.Tensor:
    """Scalar loss of one forward pass."""
    with made.routing_state.recording() as recorder:
        call = TowerCall("", mask_BT=mask, mask_BS=mask, recorder=recorder if balance else None)
        with made.routing_state.restored({"": call}):
            out = made(x)
    return out.sum() + recorder.balance().total(0.1, 0.01) if balance else out.sum()


def kept_per_token(made: LimeLinear, masked: bool, balance: bool) -> float:
    """Bytes saved for the backward pass beyond the input."""
    held = []
    for tokens in COUNTS:
        x, mask, _ = example(tokens, masked)
        with kept_storages(made, x) as kept:
            loss = step(made, x, mask, balance)
        held.append(sum(kept.values()))
        del loss
    return (held[1] - held[0]) / (COUNTS[1] - COUNTS[0])


def passes(made: nn.Module, masked: bool, balance: bool) -> float:
    """Elements read and written forward and backward, in units of tokens x d_out."""
    moved = []
    for tokens in COUNTS:
        x, mask, upstream = example(tokens, masked)
        with Traffic() as traffic:
            if isinstance(made, LimeLinear):
                with made.routing_state.recording() as recorder:
                    call = TowerCall("", mask_BT=mask, mask_BS=mask, recorder=recorder if balance else None)
                    with made.routing_state.restored({"": call}):
                        out = made(x)
                loss = [recorder.balance().total(0.1, 0.01)] if balance else []
                torch.autograd.backward([out, *loss], [upstream, *(None for _ in loss)])
            else:
                made(x).backward(upstream)
        moved.append(traffic.elements)
    return (moved[1] - moved[0]) / (COUNTS[1] - COUNTS[0]) / WIDTH


def example(tokens: int, masked: bool) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Input, mask and gradient of the output."""
    x = torch.randn(2, tokens // 2, WIDTH, requires_grad=True)
    mask = torch.ones(2, tokens // 2, dtype=torch.bool) if masked else None
    return x, mask, torch.randn(2, tokens // 2, WIDTH)


@pytest.mark.parametrize(("masked", "balance"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_kept_bytes_and_wide_passes(options: dict[str, Any], masked: bool, balance: bool) -> None:
    """At r 2, E 4 with jitter: at most 64 bytes a token beyond the input, and 10 passes over the frozen layer's own."""
    made = layer(WIDTH, **options)
    assert 0 < kept_per_token(made, masked, balance) <= 64
    assert 0 < passes(made, masked, balance) - passes(made.base_layer, False, False) <= 10


@pytest.mark.parametrize("options", [{"peft": "lora_fa"}, {"peft": "slicefine"}], ids=str)
def test_other_types_in_one_product_keep_and_move_no_more(options: dict[str, Any]) -> None:
    made = layer(WIDTH, **options)
    assert 0 < kept_per_token(made, True, True) <= 64
    assert 0 < passes(made, True, True) - passes(made.base_layer, False, False) <= 10


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lime_dora_keeps_and_moves_less_than_dora(dtype: str) -> None:
    """DoRA rescales the frozen output, which one product cannot: two wide arrays more, in whichever form."""
    base = nn.Linear(WIDTH, WIDTH).to(getattr(torch, dtype))
    settings = LimeSettings(target_modules=["proj"])
    ours, theirs = (
        counts(lambda tokens, name=name: Case(base, Subject.of(name), settings, "plain", tokens, 0), WIDTH)
        for name in ("lime_dora", "dora")
    )
    assert ours["passes"] < theirs["passes"]
    assert ours["kept_per_token"] < theirs["kept_per_token"]


class NoWaiting(TorchDispatchMode):
    """Fails where the host would have to wait for a value."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in WAITS, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("peft", ["lora", "lora_fa", "dora", "slicefine"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_no_step_waits_for_a_value(options: dict[str, Any], peft: str) -> None:
    made = layer(32, peft=peft, **{"dropout": 0.1, **options})
    x = torch.randn(2, 6, 32, requires_grad=True)
    mask = torch.tensor([[True] * 6, [False, False, True, True, True, True]])
    with NoWaiting():
        step(made, x, mask, balance=True).backward()


@pytest.mark.parametrize("peft", [*MIXTURES])
def test_no_step_of_a_mixture_waits_for_a_value(peft: str) -> None:
    made = layer(32, **{"peft": peft, **MIXTURES[peft]})
    x = torch.randn(2, 6, 32, requires_grad=True)
    with NoWaiting():
        step(made, x, None, balance=False).backward()


@pytest.mark.parametrize("options", [o for o in VARIANTS.values() if "dropout" not in o], ids=str)
def test_no_shape_depends_on_values(options: dict[str, Any]) -> None:
    """Forward, balance terms and backward with tensors that have shapes alone."""
    with FakeTensorMode():
        made = layer(32, **options)
        x = torch.randn(2, 6, 32, requires_grad=True)
        step(made, x, torch.ones(2, 6, dtype=torch.bool), balance=True).backward()
        assert x.grad is not None
        assert x.grad.shape == x.shape
