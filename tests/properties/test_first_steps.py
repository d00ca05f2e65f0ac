"""The first optimiser steps belong to the task: the balance losses' gradient while the update is zero or small.

A direction has a gradient of 1 / its size. An update starts at zero, and a warm-up keeps it small for many steps.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lime
from lime.config.schema import BalanceConfig
from lime.method import routing
from lime.method.deltas.table import MIXTURES
from tests.conformance.test_battery import fresh, frozen, loss_of, mixed
from tests.conformance.types import TYPES
from tests.integrations.test_trainer import trainer
from tests.training.test_step import adapted, gradient
from tests.tuner import small_models as small
from tests.ways import way

ROUTED = [name for name, kind in TYPES.items() if kind.routed]
NORMS: list[dict[str, Any]] = [
    {"routing_norm": norm, "n_gram": n_gram} for norm in ("slice", "token", "tensor") for n_gram in (1, 3)
]
LIBRARY = ("lora", "vera", "ia3", "oft", "boft", "loha", "lokr", "hra", "miss", "adalora")
OPTIONS: dict[str, dict[str, Any]] = {"oft": {"oft_block_size": 8, "r": 0}, "hra": {"r": 4}, "miss": {"r": 4}}


def norms(model: nn.Module, family: str = "llava_onevision") -> tuple[float, float]:
    """Norms of the gradients of the task and of the weighted balance losses, over all trainable parameters."""
    model.train()
    torch.manual_seed(0)
    with lime.tuner.record(model) as recorder:
        task = loss_of(model, mixed(family))
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = []
    for loss in (task, recorder.balance().total(0.1, 0.01)):
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        found.append(float(torch.nn.utils.get_total_norm([g for g in gradients if g is not None])))
    return found[0], found[1]


def step(model: nn.Module, rate: float) -> None:
    """What AdamW's first step does: every parameter moves by its learning rate."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss_of(model, mixed("llava_onevision")).backward()
    torch.optim.AdamW(parameters, lr=rate).step()
    model.zero_grad()


def make(name: str, **options: Any) -> Any:
    """A fresh adapter of a type of the battery, or of one of the peft library (`any NAME`)."""
    kind, _, base = name.partition(" ")
    if kind != "any":
        return fresh(name, "llava_onevision", **options)[0]
    torch.manual_seed(1)
    model = copy.deepcopy(frozen("llava_onevision"))
    return lime.apply(model, peft="any", base=base, base_options=OPTIONS.get(base), **options)[0]


@pytest.mark.parametrize("name", [*ROUTED, *(f"any {base}" for base in LIBRARY)])
def test_the_first_gradient_is_the_tasks(name: str) -> None:
    """Under LiME the balance losses have less than a hundredth of it; a learned router has an ordinary gradient."""
    task, balance = norms(make(name))
    assert balance < (0.2 if name in MIXTURES else 0.01) * task


@pytest.mark.parametrize("options", NORMS, ids=str)
@pytest.mark.parametrize("name", ["lime lora", "lime dora", "any lora"])
def test_by_every_norm_and_path(name: str, options: dict[str, Any]) -> None:
    for path in ("auto", "torch", "literal"):
        with way(path):
            model = make(name, **options)
            task, balance = norms(model)
            assert balance < 0.01 * task, path
            step(model, 1e-6)
            task, balance = norms(model)
            assert balance < task, path


@pytest.mark.parametrize("rate", [1e-9, 1e-7, 1e-5, 1e-3])
@pytest.mark.parametrize("name", ["lime lora", "lime dora", "lime slicefine both", "any ia3", "any hra"])
def test_a_small_update_is_no_lever(name: str, rate: float) -> None:
    """However short the first step was, the second's balance gradient stays below the task's."""
    model = make(name)
    step(model, rate)
    task, balance = norms(model)
    assert balance < task


def test_a_prompt_pulls_no_harder_than_later() -> None:
    """The balance losses of a prompt are those of one layer and a few tokens: larger than its task's gradient, always.
    A small prompt's are at most a few times those of a large one, not a thousand times."""
    sizes = []
    for rate in (1e-5, 1e-4, 1e-2):
        model = make("lime prompt_tuning")
        step(model, rate)
        sizes.append(norms(model)[1])
    assert norms(make("lime prompt_tuning"))[1] == 0
    assert max(sizes) < 4 * sizes[-1]


@pytest.mark.parametrize("norm", ["slice", "token", "tensor"])
@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-5, 1e-2, 1.0])
def test_values_do_not_change(norm: str, scale: float) -> None:
    """Only the gradient is bounded; what is divided by what stays as Eq. 3 says."""
    generator = torch.Generator().manual_seed(0)
    z, direction = torch.randn(2, 2, 5, 8, generator=generator)
    zhat = (direction * scale).requires_grad_()
    least, picked = routing.divisor(z[..., :4], norm, z), zhat[..., :4]
    got = routing.normalise(picked, norm, zhat, None, least)
    size = {"slice": picked.abs().amax(-1, True), "token": zhat.abs().amax(-1, True), "tensor": picked.abs().max()}
    assert torch.equal(got, picked / size[norm].clamp_min(1e-6))
    upstream = torch.randn(2, 5, 4, generator=generator)
    (gradient,) = torch.autograd.grad((got * upstream).sum(), zhat)
    bound = 0 if scale < 1e-6 else 2 * float(upstream.abs().sum()) / (routing.LEAST_SHARE * float(least.min()))
    assert float(gradient.abs().max()) <= bound


def test_the_gradient_of_an_update_that_is_not_small_is_the_derivative() -> None:
    torch.manual_seed(0)
    frozen = torch.randn(3, 4, dtype=torch.float64)
    update = (0.1 * torch.randn(3, 4, dtype=torch.float64)).requires_grad_()
    least = routing.divisor(frozen, "slice")
    assert (update.abs().amax(-1) > routing.LEAST_SHARE * least.squeeze(-1)).all()
    torch.autograd.gradcheck(lambda x: routing.normalise(x, "slice", None, None, least), update)


def test_kernels_share_the_constant() -> None:
    source = Path(routing.__file__).with_name("triton") / "backward_kernels.py"
    assert f"LEAST_SHARE: tl.constexpr = tl.constexpr({routing.LEAST_SHARE})" in source.read_text()


@pytest.mark.parametrize("family", small.FAMILIES)
def test_in_lime_trainer(family: str, tmp_path: Path) -> None:
    """The norms that it logs, with and without balance losses."""
    logged = {}
    for name, coefficients in {"with": {}, "without": {"importance_coef": 0.0, "kl_coef": 0.0}}.items():
        torch.manual_seed(1)
        model = lime.apply(small.build(family), jitter_noise=0.0)[0]
        made = trainer(family, tmp_path / name, model=model, warmup_steps=100, max_grad_norm=1.0, **coefficients)
        made.train()
        logged[name] = [entry["grad_norm"] for entry in made.state.log_history if "grad_norm" in entry]
    first, second = zip(logged["with"][:2], logged["without"][:2], strict=True)
    assert first[0] == pytest.approx(first[1], rel=0.01)
    assert second[0] == pytest.approx(second[1], rel=0.5)


def test_in_a_run() -> None:
    """The gradient that train.py's optimiser gets first, with and without balance losses."""
    model, collator, rows = adapted("llava_onevision")
    with torch.no_grad():
        for layer in small.lime_layers(model):
            layer.lime_delta["default"].B.zero_()
    batches = [collator.training_batch(rows)]
    found = [gradient(model, batches, balance) for balance in (BalanceConfig(), None)]
    with_balance, alone = (float(torch.nn.utils.get_total_norm(list(one.values()))) for one in found)
    assert with_balance == pytest.approx(alone, rel=0.1)
