"""The mathematics against slow, literal versions of its equations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lime.method import balance, modulation, routing, selection, windows
from lime.method.deltas.mixture import MixtureDelta
from lime.method.deltas.table import TYPES
from lime.tuner.settings import LimeSettings

generator = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# -- routing -------------------------------------------------------------------------------------------------


def test_feature_slices_pick_what_they_name() -> None:
    signal = torch.arange(10.0)[None]
    picks = {
        name: routing.pick(signal, routing.feature_start(name, 4, 10), 4)[0].tolist()
        for name in ("leading", "trailing", "central")
    }
    assert picks == {"leading": [0, 1, 2, 3], "trailing": [6, 7, 8, 9], "central": [3, 4, 5, 6]}
    features = routing.random_features(4, 10, seed=3)
    assert len(set(features.tolist())) == 4
    assert torch.equal(features, routing.random_features(4, 10, seed=3))
    assert routing.pick(signal, features, 4)[0].tolist() == features.tolist()
    with pytest.raises(ValueError, match="leading, trailing, central"):
        routing.feature_start("middle", 4, 10)


def test_norms_divide_by_what_they_name() -> None:
    signal = normal(2, 3, 8)
    picked = signal[..., :4]
    for b in range(2):
        for t in range(3):
            one = picked[b, t]
            expected = {
                "slice": one / one.abs().max(),
                "token": one / signal[b, t].abs().max(),
                "tensor": one / picked.abs().max(),
            }
            for norm, value in expected.items():
                torch.testing.assert_close(routing.normalise(picked, norm, signal)[b, t], value)
    considered = torch.zeros(2, 3, 1, dtype=torch.bool)
    considered[1, 2] = True
    expected_max = picked[1, 2].abs().max()
    torch.testing.assert_close(routing.normalise(picked, "tensor", considered_BT1=considered), picked / expected_max)
    assert routing.normalise(torch.full((1, 4), 1e-9), "slice").max() == pytest.approx(1e-3)  # divisor clamped at 1e-6


def test_low_precision_signals_route_in_float32() -> None:
    assert routing.pick(torch.ones(1, 4, dtype=torch.bfloat16), 0, 2).dtype == torch.float32
    assert routing.pick(torch.ones(1, 4, dtype=torch.float64), 0, 2).dtype == torch.float64


def test_jitter_stays_in_its_band() -> None:
    torch.manual_seed(0)
    noise = routing.jitter(torch.ones(1000), 0.1)
    assert 0.9 <= noise.min() < 0.91
    assert 1.09 < noise.max() <= 1.1


# -- selection -----------------------------------------------------------------------------------------------


def literal_auto(w: Tensor, theta: float, cap: int | None) -> Tensor:
    out = torch.zeros_like(w)
    for row, target in zip(w, out, strict=True):
        kept = [i for i in range(len(row)) if row[i] >= theta * row.max()]
        kept = sorted(kept, key=lambda i: -row[i])[: cap or len(kept)]
        for i in kept:
            target[i] = row[i] / sum(row[j] for j in kept)
    return out


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.floats(0, 1), st.one_of(st.none(), st.integers(1, 4)), st.integers(0, 999))
def test_auto_keeps_the_set_of_equation_4(E: int, theta: float, cap: int | None, seed: int) -> None:
    w = torch.rand(5, E, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)
    got = selection.select(w, "auto", threshold=theta, max_experts=cap)
    torch.testing.assert_close(got, literal_auto(w, theta, cap))
    torch.testing.assert_close(got.sum(-1), torch.ones(5, dtype=torch.float64))


def test_topk_keeps_exactly_k_even_with_ties() -> None:
    w = torch.full((3, 4), 0.25)
    got = selection.select(w, "topk", top_k=2)
    assert (got > 0).sum(-1).tolist() == [2, 2, 2]
    assert got.sum(-1).tolist() == [1.0, 1.0, 1.0]
    assert torch.equal(selection.select(w, "dense"), w)
    with pytest.raises(ValueError, match="auto, topk, dense"):
        selection.select(w, "all")


@pytest.mark.parametrize(("kind", "limit"), [("auto", 0.6 * 0.5), ("topk", 0.3)])
def test_soft_masks(kind: str, limit: float) -> None:
    w = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    got = selection.select(w, kind, threshold=0.6, top_k=2, soft=True, soft_temperature=0.25)
    mask = torch.tensor([1 / (1 + math.exp(-(p - limit) / 0.25)) for p in (0.5, 0.3, 0.2)], dtype=torch.float64)
    torch.testing.assert_close(got[0], w[0] * mask / ((w[0] * mask).sum() + 1e-9))
    assert (got > 0).all(), "with a soft mask every expert carries weight"


# -- windows -------------------------------------------------------------------------------------------------


def literal_anchors(mask: list[bool], n: int, anchor: str) -> list[int]:
    real = [i for i, one in enumerate(mask) if one]
    out = list(range(len(mask)))
    for start in range(0, len(real), n):
        window = real[start : start + n]
        for i in window:
            out[i] = window[0] if anchor == "first" else window[-1]
    return out


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=14), st.integers(1, 5), st.sampled_from(["first", "last"]))
def test_windows_count_real_tokens(mask: list[bool], n: int, anchor: str) -> None:
    got = windows.anchor_columns(torch.tensor([mask]), n, anchor)
    assert got[0].tolist() == literal_anchors(mask, n, anchor)


@pytest.mark.parametrize("anchor", ["first", "last"])
def test_windows_do_not_cross_sequences(anchor: str) -> None:
    lengths = [5, 3, 7]
    expected, offset = [], 0
    for length in lengths:
        expected += [offset + i for i in literal_anchors([True] * length, 3, anchor)]
        offset += length
    assert windows.segment_anchor_columns(torch.tensor(lengths), 15, 3, anchor).tolist() == expected


def test_sharing_reads_the_anchor() -> None:
    values = normal(2, 5, 3)
    anchor = torch.tensor([[0, 0, 0, 3, 3], [1, 1, 2, 4, 4]])
    got = windows.share(values, anchor)
    assert all(torch.equal(got[b, t], values[b, anchor[b, t]]) for b in range(2) for t in range(5))
    past = normal(2, 5, 3)
    got = windows.share_with_past(values, past, anchor - 1)
    assert torch.equal(got[0, 0], past[0, 0])
    assert torch.equal(got[1, 0], values[1, 0])
    assert windows.is_anchor(anchor).tolist() == [[True, False, False, True, False], [False, True, True, False, True]]


# -- balance -------------------------------------------------------------------------------------------------


def test_balance_losses_against_equation_5() -> None:
    p = normal(2, 9, 4).softmax(-1)
    real = torch.tensor([1.0, 1, 0, 1, 1, 1, 0, 0, 1], dtype=torch.float64)
    sums = balance.masked_sum(p, real)
    importance, kl = balance.balance_losses(sums, torch.tensor([6.0, 6.0]))
    for layer in range(2):
        mean = p[layer][real.bool()].mean(0)
        assert importance[layer] == pytest.approx(4 * sum(m * m for m in mean.tolist()) - 1)
        assert kl[layer] == pytest.approx(sum(m * math.log(4 * m) for m in mean.tolist()))


def test_balance_of_even_uneven_and_no_load() -> None:
    even, one, none = torch.full((1, 4), 2.5), torch.tensor([[10.0, 0, 0, 0]]), torch.zeros(1, 4)
    assert [float(x) for x in balance.balance_losses(even, torch.tensor([10.0]))] == pytest.approx([0, 0], abs=1e-6)
    assert [float(x) for x in balance.balance_losses(one, torch.tensor([10.0]))] == pytest.approx([3, math.log(4)])
    assert [float(x) for x in balance.balance_losses(none, torch.tensor([0.0]))] == [0, 0]
    one.requires_grad_()
    _, kl = balance.balance_losses(one, torch.tensor([10.0]))
    (gradient,) = torch.autograd.grad(kl.sum(), one)
    assert gradient.isfinite().all()
    assert float(balance.BalanceTerms(torch.tensor(2.0), torch.tensor(3.0)).total(0.1, 0.01)) == pytest.approx(0.23)


# -- modulation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("normalised", [True, False])
def test_one_product_equals_the_definition(shared: bool, normalised: bool) -> None:
    z, u, basis, experts = normal(2, 5, 7), normal(2, 5, 3), normal(3, 7), normal(4, 7)
    logits = normal(2, 5, 4)
    extra = (normal(7), normal(1)) if shared else ()
    leaves = [tensor.requires_grad_() for tensor in (z, u, basis, experts, logits, *extra)]
    w = logits.softmax(-1) if normalised else logits.exp()
    expected = modulation.modulate(z, u @ basis, w, experts, *extra)
    got = modulation.modulate_low_rank(z, u, basis, w, experts, *extra, normalised=normalised)
    torch.testing.assert_close(got, expected)
    upstream = normal(2, 5, 7)
    for a, b in zip(
        torch.autograd.grad((got * upstream).sum(), leaves, retain_graph=True),
        torch.autograd.grad((expected * upstream).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shared", [True, False])
def test_experts_modulate_the_rank(shared: bool) -> None:
    """`zhat` of the expert i is `B (q_i * A x)`; the shared modulator joins every expert."""
    z, u, basis, experts, ranks = normal(2, 5, 7), normal(2, 5, 3), normal(3, 7), normal(4, 7), normal(4, 3)
    w, extra = normal(2, 5, 4).softmax(-1), (normal(7), normal(1)) if shared else ()
    always = extra[0] * extra[1] if shared else 0
    expected = z + sum(w[..., i : i + 1] * ((u * ranks[i]) @ basis) * (experts[i] + always) for i in range(4))
    for normalised in (True, False):
        got = modulation.modulate_low_rank(z, u, basis, w, experts, *extra, normalised=normalised, ranks_ER=ranks)
        torch.testing.assert_close(got, expected)


def test_modulation_is_equation_1() -> None:
    z, zhat, experts, shared, gamma = normal(7), normal(7), normal(2, 7), normal(7), normal(1)
    w = torch.tensor([0.3, 0.7], dtype=torch.float64)
    got = modulation.modulate(z, zhat, w, experts, shared, gamma)
    for o in range(7):
        factor = 0.3 * experts[0, o] + 0.7 * experts[1, o] + gamma[0] * shared[o]
        assert got[o] == pytest.approx(float(z[o] + zhat[o] * factor))


# -- deltas --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, kind in TYPES.items() if kind.delta is not None])
def test_every_delta_starts_at_zero_and_declares_its_parameters(name: str) -> None:
    base = nn.Linear(6, 5)
    delta = TYPES[name].delta_class()(base, **TYPES[name].delta_options(LimeSettings()))
    x = torch.randn(3, 6)
    update = delta(x, torch.rand(3, delta.num_experts)) if isinstance(delta, MixtureDelta) else delta(x)
    assert torch.equal(update, torch.zeros(3, 5))
    assert all("." not in key for key, _ in delta.named_parameters()), "adapter files are keyed one level deep"


def test_lora_is_its_formula_and_drops_in_training_only() -> None:
    delta = TYPES["lora"].delta_class()(nn.Linear(6, 5), r=2, lora_alpha=8.0, dropout=0.5, zero_init=False)
    x = torch.randn(40, 6)
    a, b = delta.A, delta.B  # type: ignore[attr-defined]
    torch.testing.assert_close(delta.eval()(x), 4.0 * x @ a.t() @ b.t())
    assert not torch.allclose(delta.train()(x), delta.eval()(x))
