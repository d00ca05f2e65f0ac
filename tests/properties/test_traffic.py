"""What an adapted layer keeps and moves, counted; and no step waits for a value."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lime.analysis.benchmark.counting import Traffic, kept_storages
from lime.tuner.context import RoutingState, ScopeCall
from lime.tuner.layer import LimeLinear
from lime.tuner.recorder import recording
from lime.tuner.settings import LimeSettings

WIDTH, TOKENS = 896, 128
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "top-k": {"selection": "topk"},
    "dense": {"selection": "dense"},
    "soft": {"soft": True},
    "3-grams": {"n_gram": 3},
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
    with recording(made.routing_state) as recorder:
        call = ScopeCall("", mask_BT=mask, mask_BS=mask, recorder=recorder if balance else None)
        with made.routing_state.restored({"": call}):
            out = made(x)
    return out.sum() + recorder.balance().total(0.1, 0.01) if balance else out.sum()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_kept_bytes_and_wide_passes(options: dict[str, Any], masked: bool) -> None:
    """At r 2, E 4 with jitter: at most 64 bytes a token beyond the input, and 10 passes over the frozen layer's own."""
    made = layer(WIDTH, **options)
    held = []
    for tokens in (
        TOKENS,
        2 * TOKENS,
    ):  # the difference leaves out what does not grow with the tokens: the scaled basis
        x = torch.randn(2, tokens // 2, WIDTH, requires_grad=True)
        mask = torch.ones(2, tokens // 2, dtype=torch.bool) if masked else None
        with kept_storages(made, x) as kept:
            step(made, x, mask, balance=False)
        held.append(sum(kept.values()))
    assert held[1] - held[0] <= 64 * TOKENS
    counts = []
    for one in (made, made.base_layer):
        for tokens in (TOKENS, 2 * TOKENS):
            x = torch.randn(2, tokens // 2, WIDTH, requires_grad=True)
            upstream = torch.randn(2, tokens // 2, WIDTH)
            real = None if not masked else torch.ones(2, tokens // 2, dtype=torch.bool)
            with made.routing_state.restored({"": ScopeCall("", mask_BT=real, mask_BS=real)}), Traffic() as traffic:
                one(x).backward(upstream)
            counts.append(traffic.elements)
    passes = (counts[1] - counts[0] - counts[3] + counts[2]) / (TOKENS * WIDTH)
    assert 0 < passes <= 10


class NoWaiting(TorchDispatchMode):
    """Fails where the host would have to wait for a value."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in WAITS, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("peft", ["lora", "lora_fa", "dora", "slicefine"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_no_step_waits_for_a_value(options: dict[str, Any], peft: str) -> None:
    made = layer(32, peft=peft, dropout=0.1, **options)
    x = torch.randn(2, 6, 32, requires_grad=True)
    mask = torch.tensor([[True] * 6, [False, False, True, True, True, True]])
    with NoWaiting():
        step(made, x, mask, balance=True).backward()
