"""One adapted layer: the ways through it agree with each other and with the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lime.method.deltas.base import Delta
from lime.method.deltas.lora import LoRADelta
from lime.method.deltas.table import TYPES, PeftType
from lime.method.modulation import modulate
from lime.tuner.layers.linear import LimeLinear
from lime.tuner.routing.call import TowerCall
from lime.tuner.routing.state import RoutingState
from lime.tuner.settings import LimeSettings
from tests.ways import way


class Unfactored(Delta):
    """LoRA that does not say it has low rank."""

    frozen = ("A",)

    def __init__(self, base: nn.Linear, **options: Any):
        super().__init__(base)
        inner = LoRADelta(base, **options)
        self.A, self.B, self.scale = inner.A, inner.B, inner.scale

    def forward(self, x_BTI: Tensor) -> Tensor:
        return x_BTI @ self.A.t() @ self.B.t() * self.scale


def layer(dtype: torch.dtype = torch.float64, **options: Any) -> LimeLinear:
    torch.manual_seed(0)
    base = nn.Linear(12, 10, dtype=dtype).requires_grad_(False)
    made = LimeLinear(base, "some.layer", "", RoutingState())
    made.update_layer("default", LimeSettings(**{"r": 3, **options}), init_weights=False)
    made.set_adapter("default")
    return made.eval()


def run(made: LimeLinear, x: Tensor, mask: Tensor | None = None) -> Tensor:
    with made.routing_state.restored({"": TowerCall("", mask_BT=mask, mask_BS=mask)}):
        return made(x)


CHOICES: list[dict[str, Any]] = [
    {},
    {"routing_norm": "token"},
    {"routing_norm": "tensor", "soft": True},
    {"feature_slice": "trailing", "selection": "dense", "shared_modulator": False},
    {"feature_slice": "central", "n_gram": 3},
    {"feature_slice": "random", "selection": "topk"},
    {"router": "learned", "max_experts": 2},
]


@pytest.mark.parametrize("options", CHOICES, ids=str)
def test_every_way_through_a_layer_agrees(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused function, one product in torch, an update without low rank, and Eq. 1 from recorded weights."""
    monkeypatch.setitem(TYPES, "unfactored", PeftType("unfactored", "unfactored", Unfactored))
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    mask = torch.tensor([[True] * 7, [False, False, True, True, True, True, True]])
    results = []
    for peft, path in (("lora", "torch"), ("lora", "auto"), ("lora", "literal"), ("unfactored", "torch")):
        made = layer(peft=peft, **options)
        leaf = x.clone().requires_grad_()
        with way(path), made.routing_state.recording() as recorder:
            call = TowerCall("", mask_BT=mask, mask_BS=mask, recorder=recorder)
            with made.routing_state.restored({"": call}):
                out = made(leaf)
        if path == "torch":
            (group,) = recorder._groups()
            weights = group.weights_LNE[0].reshape(2, 7, -1)
        has_shared = made.lime_settings["default"].shared_modulator
        shared = (made.lime_shared["default"], made.lime_gamma["default"]) if has_shared else ()
        z, zhat = made.base_layer(x), made.lime_delta["default"](x) * mask.unsqueeze(-1)
        torch.testing.assert_close(out, modulate(z, zhat, weights, made.lime_experts["default"], *shared))
        assert torch.equal(out[~mask], z[~mask])
        balance, statistics = recorder.balance(), recorder.statistics()["some.layer:default"]
        loss = out.square().sum() + 3 * balance.importance + 2 * balance.kl
        parameters = [p for p in made.parameters() if p.requires_grad]
        results.append((out, *balance, *statistics.tensors(), *torch.autograd.grad(loss, [leaf, *parameters])))
    for several in zip(*results[:3], strict=True):
        for other in several[1:]:
            torch.testing.assert_close(other, several[0])
    for one, other in zip(results[0][:9], results[-1][:9], strict=True):  # its A does not train
        torch.testing.assert_close(other, one)


@pytest.mark.parametrize("feature_slice", ["leading", "trailing", "central", "random"])
def test_the_stacked_product_picks_from_the_frozen_output(feature_slice: str) -> None:
    made = layer(feature_slice=feature_slice)
    router, delta = made.lime_router["default"], made.lime_delta["default"]
    x = torch.randn(5, 12, dtype=torch.float64)
    u, picked = router.frozen_signal(x, made.base_layer, delta.projection())
    torch.testing.assert_close(u, delta.rank_space(x))
    torch.testing.assert_close(picked, router.pick(made.base_layer(x)))


def test_frozen_parameters_of_a_delta_stay_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TYPES, "unfactored", PeftType("unfactored", "unfactored", Unfactored))
    made = layer(peft="unfactored")
    for _ in range(2):
        assert not made.lime_delta["default"].A.requires_grad
        assert made.lime_delta["default"].B.requires_grad
        made.set_adapter("default")
    assert [id(p) for p in made.grouped_parameters("default")["peft"]] == [id(made.lime_delta["default"].B)]


def test_random_features_are_drawn_per_layer_and_saved() -> None:
    one, same, other = (
        layer(feature_slice="random"),
        layer(feature_slice="random"),
        layer(feature_slice="random", routing_seed=1),
    )
    features = [made.lime_router["default"].features for made in (one, same, other)]
    assert torch.equal(features[0], features[1])
    assert not torch.equal(features[0], features[2])
    assert "lime_router.default.features" in one.state_dict()


def test_tokens_that_are_not_the_mask_s_are_refused() -> None:
    mask = torch.ones(2, 7, dtype=torch.bool)
    run(layer(), torch.randn(2, 3, 12, dtype=torch.float64), mask)
    mask[0, 0] = False
    with pytest.raises(
        ValueError, match=r"some\.layer: its input has tokens \(2, 3\), and those .* \(2, 7\), with padding"
    ):
        run(layer(), torch.randn(2, 3, 12, dtype=torch.float64), mask)


def test_initial_values() -> None:
    made = LimeLinear(nn.Linear(400, 300), "layer", "", RoutingState())
    made.update_layer("default", LimeSettings())
    experts, shared = made.lime_experts["default"].detach(), made.lime_shared["default"].detach()
    assert 0.9 <= float(experts.min()) < 0.91
    assert 1.09 < float(experts.max()) <= 1.1
    assert float(shared.std()) == pytest.approx(0.1, rel=0.2)
    assert made.lime_gamma["default"].tolist() == [0.0]
    assert not made.lime_delta["default"].B.any()
    made.update_layer("wide", LimeSettings(modulator_range=0.5, rank_modulation=True))
    experts = made.lime_experts["wide"].detach()
    assert 0.5 <= float(experts.min()) < 0.51
    assert 1.49 < float(experts.max()) <= 1.5
    assert torch.equal(made.lime_ranks["wide"], torch.ones(4, 2))
