"""The MoE-PEFT baselines in an adapted layer, against their equations token by token and expert by expert."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lime.method import fused
from lime.method.deltas import table
from lime.method.deltas.table import MIXTURES
from lime.tuner import preset_settings
from lime.tuner.layers.linear import LimeLinear
from lime.tuner.routing.call import TowerCall
from lime.tuner.routing.state import RoutingState

D_IN, D_OUT, R, ALPHA = 12, 10, 3, 6.0
MASK = torch.tensor([[True] * 7, [False, False, True, True, True, True, True], [True] * 4 + [False] * 3])
ROUTED_BY_SEQUENCE = [name for name, kind in table.TYPES.items() if kind.by_sequence]
mixtures = pytest.mark.parametrize("peft", MIXTURES)


def layer(peft: str, bias: bool = True, zero: bool = False, d_in: int = D_IN, **options: Any) -> LimeLinear:
    torch.manual_seed(0)
    base = nn.Linear(d_in, D_OUT, bias=bias, dtype=torch.float64).requires_grad_(False)
    made = LimeLinear(base, "some.layer", "", RoutingState())
    settings = preset_settings(**{"peft": peft, "r": R, "lora_alpha": ALPHA, **options})
    made.update_layer("default", settings, init_weights=zero)
    made.set_adapter("default")
    with torch.no_grad():
        made.lime_router["default"].weight.mul_(4.0)  # far from even, and no near ties
        if peft == "moe_dora":
            magnitude = made.lime_delta["default"].magnitude
            magnitude.mul_(torch.linspace(0.5, 1.5, magnitude.numel(), dtype=torch.float64).view_as(magnitude))
    return made.eval()


# -- the equations, written out ------------------------------------------------------------------------------


def literal(made: LimeLinear, x: Tensor, mask: Tensor) -> Tensor:
    """Output of the layer, one token at a time."""
    rows = []
    for x_TI, mask_T in zip(x, mask.tolist(), strict=True):
        weights = route(made, x_TI, mask_T)
        for x_I, w_E, real in zip(x_TI, weights, mask_T, strict=True):
            z_O = made.base_layer(x_I)
            rows.append(one_token(made, x_I, w_E) if real else z_O)
    return torch.stack(rows).view(*x.shape[:-1], D_OUT)


def route(made: LimeLinear, x_TI: Tensor, mask_T: list[bool]) -> list[Tensor]:
    """Expert weights of every token of a sequence; those of a window's first real token, or of the mean token."""
    c, router = made.lime_settings["default"], made.lime_router["default"].weight
    if c.peft in ROUTED_BY_SEQUENCE:
        mean_I = sum(x_I for x_I, real in zip(x_TI, mask_T, strict=True) if real) / sum(mask_T)
        width = router.shape[1]
        parts = [range(k * D_IN // width, -(-(k + 1) * D_IN // width)) for k in range(width)]
        pooled = torch.stack([sum(mean_I[i] for i in part) / len(part) for part in parts])
        return [choose(made, router @ pooled)] * len(mask_T)
    weights, place = [], 0
    for x_I, real in zip(x_TI, mask_T, strict=True):
        if not real:
            weights.append(choose(made, router @ x_I))
            continue
        if place % c.n_gram == 0:
            decided = choose(made, router @ x_I)
        weights.append(decided)
        place += 1
    return weights


def choose(made: LimeLinear, logits_E: Tensor) -> Tensor:
    """Weights of one decision; of `mix_lora` those of A's gates, then those of B's, each summing to one."""
    c = made.lime_settings["default"]
    if c.peft == "mix_lora":
        return torch.cat([choose_of(c, half) for half in logits_E.chunk(2)])
    return choose_of(c, logits_E)


def choose_of(c: Any, logits: Tensor) -> Tensor:
    exps = [(logit / c.temperature).exp() for logit in logits]
    p = torch.stack([one / sum(exps) for one in exps])
    if c.selection == "dense":
        return p
    order = p.argsort(descending=True).tolist()
    chosen = order[: c.top_k]
    if c.selection == "auto":
        chosen = [e for e in order if p[e] >= c.auto_topk_threshold * p.max()]
    kept = torch.stack([p[e] if e in chosen else p[e] * 0 for e in range(len(p))])
    kept = kept / kept.sum()
    return kept.detach() + (p - p.detach()) if c.peft == "more" else kept


def one_token(made: LimeLinear, x: Tensor, w: Tensor) -> Tensor:
    c, delta, base = made.lime_settings["default"], made.lime_delta["default"], made.base_layer
    E, r, s = c.num_experts, c.r, c.lora_alpha / c.r
    A, B, W0 = delta.A, delta.B, base.weight
    bias = 0 if base.bias is None else base.bias
    if c.peft in ("moe_lora", "moe_lora_fa", "mola", "moe_dora"):
        experts = [(A[e * r : (e + 1) * r], B[:, e * r : (e + 1) * r]) for e in range(A.shape[0] // r)]
        shared = [experts.pop()] if c.peft != "mola" else []
        assert len(experts) == E
        out = sum((s * B_s @ (A_s @ x) for A_s, B_s in shared), bias)
        if c.peft != "moe_dora":
            return W0 @ x + out + sum(w[e] * s * B_e @ (A_e @ x) for e, (A_e, B_e) in enumerate(experts))
        for e, (A_e, B_e) in enumerate(experts):
            changed = W0 + s * B_e @ A_e
            out = out + w[e] * delta.magnitude[e] / changed.detach().norm(dim=1) * (changed @ x)
        return out
    if c.peft in ("hydra_lora", "mocle"):
        return W0 @ x + bias + sum(w[e] * s * B[:, e * r : (e + 1) * r] @ (A @ x) for e in range(E))
    if c.peft == "mix_lora":
        G = E // 2
        gates = [(G * w[k * G // r], G * w[G + k * G // r]) for k in range(r)]
        return W0 @ x + bias + sum(s * g_B * g_A * B[:, k] * (A[k] @ x) for k, (g_A, g_B) in enumerate(gates))
    out = W0 @ x + bias
    for e in range(E):
        rank = int(2 * r * (e + 1) / E + 0.5)
        out = out + w[e] * s * rank / (2 * r) * B[:, :rank] @ (A[:rank] @ x)
    return out


CHOICES: list[dict[str, Any]] = [{}, {"num_experts": 6}, {"selection": "auto", "n_gram": 3, "temperature": 0.7}]


@mixtures
@pytest.mark.parametrize(("bias", "path"), [(True, "auto"), (False, "auto"), (True, "torch")])
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_layer_is_its_equation(
    peft: str, choice: dict[str, Any], bias: bool, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, what is recorded, and gradients, with padding on both sides."""
    if peft in ROUTED_BY_SEQUENCE and "n_gram" in choice:
        choice = {"selection": "auto", "temperature": 0.7}
    monkeypatch.setattr("lime.method.deltas.more.ROUTER_FEATURES", 5)  # narrower than the layer, as it is in a model
    made = layer(peft, bias, **choice)
    torch.manual_seed(3)
    x = torch.randn(3, 7, D_IN, dtype=torch.float64, requires_grad=True)
    with made.routing_state.recording() as recorder:
        call = TowerCall("", mask_BT=MASK, mask_BS=MASK, recorder=recorder)
        with made.routing_state.restored({"": call}), fused.use(path):
            out = made(x)
    expected = literal(made, x, MASK)
    torch.testing.assert_close(out, expected)
    assert torch.equal(out[~MASK], made.base_layer(x)[~MASK]), "padding keeps exactly z"
    (entry,) = next(iter(recorder._entries.values()))
    scale = 0.5 if peft == "mix_lora" else 1.0
    weights = torch.stack([torch.stack(route(made, *one)) for one in zip(x, MASK.tolist(), strict=True)]) * scale
    torch.testing.assert_close(entry.weights[MASK], weights[MASK])
    torch.testing.assert_close(entry.probabilities.sum(-1), torch.ones(3, 7, dtype=torch.float64))

    delta = made.lime_delta["default"]
    leaves = [x, made.lime_router["default"].weight, *(p for p in delta.parameters() if p.requires_grad)]
    upstream = torch.randn_like(out)
    got = torch.autograd.grad((out * upstream).sum(), leaves, retain_graph=True)
    want = torch.autograd.grad((expected * upstream).sum(), leaves)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)


@mixtures
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_layer_is_exactly_the_frozen_one(peft: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    base = nn.Linear(37, 29, dtype=dtype)
    base.weight.data[3] = 0.0  # a dead output: its norm is zero
    made = LimeLinear(base, "layer", "", RoutingState())
    made.update_layer("default", preset_settings(peft=peft))
    made.set_adapter("default")
    x = torch.randn(4, 6, 37, dtype=dtype)
    assert torch.equal(made(x), base(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(made(x), base(x))
    assert {p.dtype for group in made.grouped_parameters("default").values() for p in group} == {torch.float32}
    assert [id(p) for p in made.grouped_parameters("default")["modulators"]] == [id(made.lime_router["default"].weight)]


@mixtures
@pytest.mark.parametrize("autocast", [False, True], ids=["bf16 base", "autocast"])
def test_in_half_precision_the_ways_agree(peft: str, autocast: bool) -> None:
    """Outputs and gradients to the precision of bf16, and both in the dtypes of the plain layer. Without a hard choice,
    which rounding could turn."""
    made = layer(peft, selection="dense")
    made.to(torch.float32)
    if not autocast:
        made.base_layer.to(torch.bfloat16)
    torch.manual_seed(3)
    x = torch.randn(2, 7, D_IN, dtype=made.base_layer.weight.dtype)
    leaves = [p for group in made.grouped_parameters("default").values() for p in group]
    results = []
    for path in ("auto", "torch"):
        leaf = x.clone().requires_grad_()
        with fused.use(path), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = made(leaf)
        assert out.dtype == torch.bfloat16
        results.append([out.float(), *torch.autograd.grad(out.float().square().sum(), [leaf, *leaves])])
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        assert (one.float() - other.float()).norm() <= 0.04 * other.float().norm()


# -- what they become with one expert ------------------------------------------------------------------------


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D_IN, D_OUT, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("peft", ["moe_lora", "moe_lora_fa", "hydra_lora", "mola", "mocle", "moe_dora"])
def test_one_expert_is_the_library_s_lora_or_dora(peft: str) -> None:
    """With one expert the router is constant; the always-on expert is at its start, where it adds nothing."""
    made = layer(peft, num_experts=1)
    delta = made.lime_delta["default"]
    torch.manual_seed(1)
    config = LoraConfig(r=R, lora_alpha=ALPHA, target_modules=["layer"], use_dora=peft == "moe_dora")  # type: ignore[arg-type]
    theirs = get_peft_model(One(), config, autocast_adapter_dtype=False)
    lora = theirs.base_model.model.layer
    lora.base_layer.load_state_dict(made.base_layer.state_dict())
    pairs = {"B": (delta.B, lora.lora_B["default"].weight), "A": (delta.A, lora.lora_A["default"].weight)}
    if peft == "moe_dora":
        pairs["magnitude"] = (delta.magnitude, lora.lora_magnitude_vector["default"].weight)
    with torch.no_grad():
        delta.B[:, R:] = 0.0
        for mine, its in pairs.values():
            its.copy_(mine.view(-1) if its.dim() == 1 else mine[: its.shape[0], : its.shape[1]])
    x = torch.randn(2, 5, D_IN, dtype=torch.float64)
    upstream = torch.randn(2, 5, D_OUT, dtype=torch.float64)
    results = []
    for module in (made, theirs):
        leaf = x.clone().requires_grad_()
        out = module(leaf)
        (out * upstream).sum().backward()
        results.append((out, leaf.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    for name, (mine, its) in pairs.items():
        if name != "A" or peft != "moe_lora_fa":
            assert its.grad.abs().max() > 0
            routed = mine.grad.view(-1) if its.dim() == 1 else mine.grad[: its.shape[0], : its.shape[1]]
            torch.testing.assert_close(routed, its.grad)


def lora_product(made: LimeLinear, x: Tensor) -> Tensor:
    delta = made.lime_delta["default"]
    return made.base_layer(x) + ALPHA / R * x @ delta.A.t() @ delta.B.t()


@pytest.mark.parametrize("experts", [2, 4, 6])
def test_mix_lora_with_even_gates_is_lora(experts: int) -> None:
    made = layer("mix_lora", num_experts=experts)
    x = torch.randn(2, 5, D_IN, dtype=torch.float64)
    assert torch.allclose(made(x), lora_product(made, x)) == (experts == 2)
    torch.nn.init.zeros_(made.lime_router["default"].weight)
    torch.testing.assert_close(made(x), lora_product(made, x))


def test_more_with_one_expert_is_lora_of_twice_the_rank() -> None:
    made = layer("more", num_experts=1)
    assert made.lime_delta["default"].A.shape[0] == 2 * R
    x = torch.randn(2, 5, D_IN, dtype=torch.float64)
    torch.testing.assert_close(made(x), lora_product(made, x))


# -- cost ----------------------------------------------------------------------------------------------------


class Watch(TorchDispatchMode):
    """Operations, and the results as wide as the layer's output over all tokens."""

    def __init__(self, tokens: int):
        super().__init__()
        self.tokens, self.calls, self.wide = tokens, 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        self.calls += 1
        if isinstance(out, Tensor) and out.shape[-1:] == (D_OUT,) and out.numel() == self.tokens * D_OUT:
            self.wide += 1
        return out


@mixtures
def test_no_expert_costs_an_operation_of_its_own(peft: str) -> None:
    """Forward and backward take as many operations with 16 experts as with 4, and as many of full width."""
    counts = []
    for experts in (4, 16):
        made = layer(peft, r=8, num_experts=experts, d_in=4)
        x = torch.randn(1, 5000, 4, dtype=torch.float64)
        with Watch(5000) as watch:
            made(x).sum().backward()
        counts.append((watch.calls, watch.wide))
    assert counts[0] == counts[1]
    assert counts[0][1] > 0


# -- settings ------------------------------------------------------------------------------------------------


@mixtures
@pytest.mark.parametrize(
    "options",
    [
        {"enabled": False}, {"router": "learned"}, {"gamma_routing": 0.5}, {"feature_slice": "trailing"},
        {"routing_norm": "token"}, {"shared_modulator": False}, {"routing_seed": 2}, {"orientation": "rows"},
    ],
    ids=str,
)  # fmt: skip
def test_what_has_no_effect_is_refused(peft: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}: "):
        preset_settings(peft=peft, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peft": "mix_lora", "num_experts": 3}, "num_experts: expected an even number up to 2 r .4."),
        ({"peft": "mix_lora", "num_experts": 6}, "num_experts: expected an even number up to 2 r .4."),
        ({"peft": "more", "num_experts": 5}, "num_experts: expected at most 2 r .4."),
        ({"peft": "mocle", "n_gram": 2}, "n_gram: 2 has no effect without a type that routes by token"),
        ({"peft": "moe_lora", "expert_layout": "inverted_triangle"}, "expert_layout: .* `peft: mola`"),
        ({"peft": "lora", "expert_layout": "inverted_triangle"}, "expert_layout: .* `peft: mola`"),
        ({"peft": "moe_lora", "top_k": 0}, "top_k: expected at least 1 expert"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preset_settings(**options)


@mixtures
def test_a_mixture_brings_its_own_routing_over_any_preset(peft: str) -> None:
    for preset in ("default", "quickstart"):
        settings = preset_settings(preset, peft=peft)
        assert {option: getattr(settings, option) for option in MIXTURES[peft]} == MIXTURES[peft]
    other = preset_settings(peft=peft, selection="auto", temperature=2.0, jitter_noise=0.2)
    assert (other.selection, other.temperature, other.jitter_noise, other.top_k) == ("auto", 2.0, 0.2, 2)
