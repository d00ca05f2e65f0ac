"""The authors' routing, number by number: float64 cases with values and gradients to 1e-9.

`cases.json` holds the settings of each case, `cases.safetensors` its inputs and results, keyed `<case>/<field>`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lime.method import fused
from lime.method.selection import select
from lime.tuner import LimeSettings
from lime.tuner.layers.linear import LimeLinear
from lime.tuner.routing.call import TowerCall
from lime.tuner.routing.state import RoutingState
from tests.ways import way

HERE = Path(__file__).parent
CASES: dict[str, dict[str, Any]] = json.loads((HERE / "cases.json").read_text())
TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return load_file(HERE / "cases.safetensors")


def settings_of(case: dict[str, Any]) -> LimeSettings:
    """The case's settings in this package's terms."""
    E, top_k = case["num_experts"], case["top_k"]
    if case["auto_topk"]:
        selection: dict[str, Any] = {"selection": "auto", "auto_topk_threshold": case["threshold"]}
        if case["sparse"]:
            selection["max_experts"] = min(2 * top_k, E)
        else:
            selection |= {"soft": True, "soft_temperature": case["soft_temperature"]}
    else:
        selection = {"selection": "topk", "top_k": top_k}
        if case["soft_topk"] and not case["sparse"]:
            selection |= {"soft": True, "soft_temperature": case["soft_temperature"]}
    settings = LimeSettings(
        peft=case["peft"],
        r=case["rank"],
        lora_alpha=case["alpha"],
        num_experts=E,
        temperature=case["temperature"],
        gamma_routing=case["gamma_routing"],
        routing_norm="tensor",
        jitter_noise=0.0,
        shared_modulator=case["shared"],
        n_gram=case["n_gram"],
        window_anchor="last" if case["n_gram"] > 1 else "first",
        **selection,
    )
    settings.check()
    return settings


class Case:
    """One adapted layer, set to a case's numbers, and the leaves whose gradients are stored."""

    def __init__(self, name: str, tensors: dict[str, Tensor]):
        self.given = {
            key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")
        }
        config = CASES[name]
        base = nn.Linear(config["d_in"], config["d_out"], bias=config["bias"], dtype=torch.float64)
        base.requires_grad_(False)
        base.weight.copy_(self.given["weight"])
        if config["bias"]:
            base.bias.copy_(self.given["bias"])
        self.state = RoutingState()
        self.layer = LimeLinear(base, "layer", "", self.state)
        self.layer.update_layer("default", settings_of(config))
        self.layer.set_adapter("default")
        delta = self.layer.lime_delta["default"]
        own = {
            "lora_A": delta.A,
            "lora_B": delta.B,
            "experts": self.layer.lime_experts["default"],
        }
        if config["peft"] == "dora":
            own["magnitude"] = delta.magnitude
        if config["shared"]:
            own |= {"shared": self.layer.lime_shared["default"], "shared_scale": self.layer.lime_gamma["default"]}
        for key, parameter in own.items():
            with torch.no_grad():
                parameter.copy_(self.given[key])
        self.x = self.given["x"].clone().requires_grad_()
        self.leaves = {"x": self.x, **own}
        self.mask = self.given["mask"].bool() if config["mask"] else None

    def run(self, training: bool) -> tuple[Tensor, Any]:
        self.layer.train(training)
        with self.state.recording() as recorder:
            call = TowerCall("", mask_BT=self.mask, mask_BS=self.mask, recorder=recorder)
            with self.state.restored({"": call}):
                return self.layer(self.x), recorder


@pytest.mark.parametrize("path", ["auto", "torch", "literal"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str, path: str, tensors: dict[str, Tensor]) -> None:
    with way(path):
        check_values_and_gradients(name, tensors)


def check_values_and_gradients(name: str, tensors: dict[str, Tensor]) -> None:
    case, config = Case(name, tensors), CASES[name]
    given = case.given
    out, recorder = case.run(training=True)
    importance, kl = recorder.balance()
    usage = recorder.statistics()["layer:default"].mean_probability

    def same(got: Tensor, field: str) -> None:
        torch.testing.assert_close(
            got, given[field].reshape(got.shape), atol=TOLERANCE, rtol=TOLERANCE, msg=lambda m: f"{field}: {m}"
        )

    same(out, "out")
    same(importance, "importance")
    same(kl, "kl_uniform")
    same(usage, "usage")
    same(case.run(training=False)[0], "out_eval")
    if config["peft"] == "dora":  # there the norm took part in the gradient: no gradients are stored
        assert not any(key.startswith("grad_") and key != "grad_out" for key in given)
        return

    loss = (out * given["grad_out"]).sum() + 3 * importance + 2 * kl
    stored = {key: leaf for key, leaf in case.leaves.items() if f"grad_{key}" in given}
    assert stored, "a case stores at least one gradient"
    for (key, _), gradient in zip(stored.items(), torch.autograd.grad(loss, list(stored.values())), strict=True):
        same(gradient, f"grad_{key}")


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name]["n_gram"] == 1])
def test_load_of_the_selected_experts(name: str, tensors: dict[str, Tensor]) -> None:
    """The stored load is the squared coefficient of variation of the hard set's counts (of auto, kept in float32).

    Where selection is hard these are the recorder's counts. A soft mask lets every expert carry weight, and the
    recorder says so; the authors' code then still counts the hard set that the mask softens.
    """
    case, settings = Case(name, tensors), settings_of(CASES[name])
    with fused.use("torch"):  # keeps the probabilities of each token
        _, recorder = case.run(training=True)
    statistics = recorder.statistics()["layer:default"]
    counts = statistics.active_sum
    if settings.soft:
        assert counts.eq(statistics.token_count).all()
        (group,) = recorder._groups()
        hard = select(
            group.probabilities_LNE[0],
            settings.selection,
            threshold=settings.auto_topk_threshold,
            top_k=settings.top_k,
        )
        real_N1 = 1 if group.real_N is None else group.real_N.unsqueeze(-1)
        counts = ((hard > 0) * real_N1).sum(0).double()
    load = counts.var(correction=0) / counts.mean().square()
    stored = case.given["load"].reshape(())
    tolerance = TOLERANCE if stored.dtype == torch.float64 else 1e-6
    torch.testing.assert_close(load, stored.double(), atol=tolerance, rtol=tolerance)
