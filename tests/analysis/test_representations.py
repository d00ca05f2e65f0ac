"""CKA, the fit of modulators to separate experts, and the information between experts and tasks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lime.analysis.approximation import (
    error_of_rank,
    fit_modulators,
    mixture_layers,
    scrambled,
    whitened_experts,
)
from lime.analysis.cka import cka_replicates, linear_cka
from lime.method.deltas.moe_lora import MoELoRADelta


def test_cka_of_itself_of_rotations_and_of_independent_representations() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 40)), rng.normal(size=(200, 300))
    rotation, _ = np.linalg.qr(rng.normal(size=(40, 40)))
    assert linear_cka(x, x) == pytest.approx(1.0, abs=1e-12)
    assert abs(linear_cka(x, y)) < 0.05  # the biased estimator gives 0.3 here
    partly = x @ rng.normal(size=(40, 30)) + 3 * rng.normal(size=(200, 30))
    value = linear_cka(x, partly)
    assert 0.1 < value < 0.99
    assert linear_cka(-7.5 * x @ rotation + 3.0, partly) == pytest.approx(value, abs=1e-10)
    assert linear_cka(partly, x) == pytest.approx(value, abs=1e-12)
    with pytest.raises(ValueError, match="same 4 or more rows"):
        linear_cka(x[:3], y[:3])
    with pytest.raises(ValueError, match="does not vary"):
        linear_cka(np.ones((10, 3)), x[:10])


def test_cka_without_a_group_is_that_of_the_other_samples() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 8))
    y = x @ rng.normal(size=(8, 5)) + rng.normal(size=(60, 5))
    groups = np.arange(60) % 4
    found = cka_replicates(x, y, groups)
    assert found == pytest.approx([linear_cka(x[groups != g], y[groups != g]) for g in range(4)], abs=1e-12)


def expert_updates(delta: MoELoRADelta) -> np.ndarray:
    """Updates `s B_e A_e` of the routed experts, (E, O, I)."""
    a_ErI = delta.A.detach().double().numpy()[: delta.num_experts * delta.r].reshape(delta.num_experts, delta.r, -1)
    b_OEr = delta.B.detach().double().numpy()[:, : delta.num_experts * delta.r].reshape(-1, delta.num_experts, delta.r)
    return delta.scale * np.einsum("oer,eri->eoi", b_OEr, a_ErI)


def mixture(num_experts: int = 3, r: int = 2) -> MoELoRADelta:
    torch.manual_seed(0)
    return MoELoRADelta(nn.Linear(7, 9), num_experts=num_experts, r=r, lora_alpha=4.0, zero_init=False)


def test_a_mixture_built_from_modulators_is_matched_exactly() -> None:
    delta = mixture()
    a, b = torch.randn(2, 7), torch.randn(9, 2)
    modulators = torch.rand(3, 9) + 0.5
    with torch.no_grad():
        delta.A[:6] = a.repeat(3, 1)
        delta.B[:, :6] = torch.cat([b * p[:, None] for p in modulators], 1)
    inputs = np.random.default_rng(0).normal(size=(100, 7))
    for moment in (None, inputs.T @ inputs / 100):
        found = fit_modulators(expert_updates(delta), moment)
        assert found.error < 1e-6
        assert found.mean_error > 0.1
        rebuilt = found.modulators[:, :, None] * found.shared
        assert rebuilt == pytest.approx(expert_updates(delta), abs=1e-5)
    rank_two = whitened_experts(delta)
    assert error_of_rank(rank_two, 2) < 1e-5
    assert error_of_rank(rank_two, 1) > 0.1
    assert fit_modulators(scrambled(rank_two)).error > 0.1


def test_the_inputs_moment_in_the_experts_own_rank_gives_the_same_errors() -> None:
    delta = mixture()
    inputs = np.random.default_rng(0).normal(size=(100, 7)) * np.arange(1, 8)
    u = inputs @ delta.A.detach().double().numpy().T
    whole = fit_modulators(expert_updates(delta), inputs.T @ inputs / 100)
    short = fit_modulators(whitened_experts(delta, u.T @ u / 100))
    assert short.error == pytest.approx(whole.error, abs=1e-6)
    assert short.mean_error == pytest.approx(whole.mean_error, abs=1e-6)
    outputs = np.einsum("eop,eop->e", *[whitened_experts(delta, u.T @ u / 100, always_on=True)] * 2)
    always = expert_updates(delta) + 2.0 * (delta.B[:, 6:] @ delta.A[6:]).detach().double().numpy()
    assert outputs == pytest.approx([((inputs @ one.T) ** 2).sum() / 100 for one in always], rel=1e-4)
    with pytest.raises(ValueError, match="second moment of shape"):
        whitened_experts(delta, np.eye(3))


def test_error_falls_with_the_rank_down_to_that_of_any_rank() -> None:
    experts = np.random.default_rng(0).normal(size=(3, 9, 8))
    errors = [error_of_rank(experts, rank) for rank in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1] + 0.05
    assert errors[-1] == pytest.approx(fit_modulators(experts).error)
    with pytest.raises(ValueError, match="rank: expected at least 1"):
        error_of_rank(experts, 0)


def test_separate_experts_leave_the_error_of_the_best_rank_one_fit() -> None:
    delta = mixture()
    experts = expert_updates(delta)
    direct = 2.0 * (delta.B[:, 2:4] @ delta.A[2:4]).detach().numpy()
    assert experts[1] == pytest.approx(direct, abs=1e-5)
    ((name, of_model),) = mixture_layers(nn.ModuleDict({"q": delta})).items()
    assert name == "q"
    found = fit_modulators(whitened_experts(of_model))
    left = sum((np.linalg.svd(experts[:, o], compute_uv=False)[1:] ** 2).sum() for o in range(9))
    assert found.error == pytest.approx((left / (experts**2).sum()) ** 0.5)
    assert 0.1 < found.error < found.mean_error
    with pytest.raises(ValueError, match="all zero"):
        fit_modulators(np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match="no MoE-LoRA layer"):
        mixture_layers(nn.Linear(2, 2))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(wrong: float) -> None:
    good = np.random.default_rng(0).normal(size=(8, 3))
    bad = good.copy()
    bad[2, 1] = wrong
    with pytest.raises(ValueError, match="first representation holds a value that is not finite"):
        linear_cka(bad, good)
    with pytest.raises(ValueError, match="second representation"):
        linear_cka(good, bad)
    with pytest.raises(ValueError, match="updates hold a value that is not finite"):
        fit_modulators(bad[None])
    with pytest.raises(ValueError, match="second moment of the inputs holds"):
        fit_modulators(good[None], np.full((3, 3), wrong))


def test_second_moments_that_are_none_are_named() -> None:
    experts = np.random.default_rng(0).normal(size=(2, 4, 3))
    with pytest.raises(ValueError, match="symmetric"):
        fit_modulators(experts, np.triu(np.ones((3, 3))))
    with pytest.raises(ValueError, match="positive semi-definite"):
        fit_modulators(experts, np.diag([1.0, 1.0, -1.0]))
    singular = np.diag([1.0, 1.0, 0.0])
    assert fit_modulators(experts, singular).error == pytest.approx(fit_modulators(experts[:, :, :2]).error)
