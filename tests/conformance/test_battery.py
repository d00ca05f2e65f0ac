"""One battery over every type on both architectures: what holds for one adapter holds for all."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

import lime
from lime.method.deltas.table import MIXTURES
from lime.method.deltas.table import TYPES as PEFT_TYPES
from tests.conformance.types import TYPES, Type
from tests.properties.test_decoding import decode
from tests.tuner import small_models as small


@functools.cache
def frozen(family: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The base model, for comparison only."""
    return small.build(family, dtype=dtype).requires_grad_(False)


def fresh(name: str, family: str, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, Any]:
    """A new adapter on a copy of the base model, both towers; and the report."""
    base = copy.deepcopy(frozen(family, dtype))
    torch.manual_seed(1)  # after the base: building it, on the first call, draws numbers too
    model, report = lime.apply(base, **{**TYPES[name].options, **options})  # type: ignore[arg-type]
    lime.tuner.calibrate(model, [mixed(family, dtype=dtype)])
    return model.eval(), report


@torch.no_grad()
def disturb(model: nn.Module, seed: int = 2) -> None:
    """Move every trainable parameter, so that no part of the update is zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise, alpha=0.3 * float(parameter.abs().mean()) + 0.1)


@dataclass(frozen=True)
class Case:
    """A type on an architecture, with an adapter that has an effect; tests leave `model` as it is."""

    name: str
    family: str
    model: Any
    report: Any

    @property
    def type(self) -> Type:
        return TYPES[self.name]


@pytest.fixture(
    scope="module",
    params=[(name, family) for name in TYPES for family in small.FAMILIES],
    ids=lambda case: f"{case[0]}, {case[1]}",
)
def case(request: pytest.FixtureRequest) -> Case:
    name, family = request.param
    model, report = fresh(name, family)
    disturb(model)
    return Case(name, family, model, report)


def rows_of(family: str) -> list[dict[str, Any]]:
    return [small.row(family, 9, 1, with_image=True), small.row(family, 14, 2), small.row(family, 5, 3)]


def mixed(family: str, side: str = "right", dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    inputs = small.batch(family, rows_of(family), side)
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}


def loss_of(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    loss: Tensor = model(**inputs, labels=labels).loss
    return loss


def gradients(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of one training-mode step, by parameter name; none are left behind."""
    model.train()
    torch.manual_seed(0)
    loss_of(model, inputs).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    model.eval()
    return found


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(a, b, strict=True))


def close(a: list[Tensor], b: list[Tensor], tolerance: float) -> None:
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def test_every_type_has_its_rows() -> None:
    """Under LiME, and alone where there is such a thing; an adapter of the library alone is the library's affair."""
    covered = {(type_.options["peft"], type_.routed) for type_ in TYPES.values()}
    alone = set(PEFT_TYPES) - {"any", *MIXTURES}
    assert covered == {(name, True) for name in PEFT_TYPES} | {(name, False) for name in alone}


# -- start and training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_changes_nothing(case: Case, dtype: torch.dtype) -> None:
    """Exactly, in training and evaluation mode and whatever the modulators; over a bf16 base the adapter is float32 and
    gets finite gradients."""
    model, _ = fresh(case.name, case.family, dtype)
    inputs = mixed(case.family, dtype=dtype)
    start = frozen(case.family, dtype) if case.type.starts_frozen else copy.deepcopy(model)
    expected = small.logits(start, inputs)
    for _, modulator in lime.parameter_groups(model)["modulators"]:
        torch.nn.init.uniform_(modulator)  # without effect on an update of zero
    for mode in (True, False):
        got = small.logits(model.train(mode), inputs)
        if dtype is torch.float32 or case.type.exact_in_bf16:
            assert same(got, expected)
        else:
            close(got, expected, 0.05 * float(torch.cat(expected).abs().max()))
        assert got[0].dtype == dtype
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    if dtype is torch.bfloat16:
        found = gradients(model, inputs)
        assert found
        assert all(gradient.isfinite().all() for gradient in found.values())


def test_exactly_the_declared_parameters_train(case: Case) -> None:
    trained = {name for name, p in case.model.named_parameters() if p.requires_grad}
    declared = case.type.trained | case.type.modulators
    assert {next((one for one in declared if name.endswith("." + one)), name) for name in trained} == declared
    for row in case.report.rows:
        assert row.trainable == case.type.layer_count(row.d_in, row.d_out), row.module
    found = gradients(case.model, mixed(case.family))
    assert {name for name, gradient in found.items() if gradient.abs().max() > 0} == trained
    groups = lime.parameter_groups(case.model)
    assert {name for group in groups.values() for name, _ in group} == trained
    assert bool(groups["modulators"]) == case.type.routed


def test_one_step_lowers_the_loss(case: Case) -> None:
    model, _ = fresh(case.name, case.family)
    inputs = mixed(case.family)
    before = loss_of(model, inputs)
    before.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    norm = torch.stack([p.grad.norm() for p in trained]).norm()
    with torch.no_grad():
        for p in trained:
            p.sub_(p.grad, alpha=0.02 / float(norm))
        after = loss_of(model, inputs)
    expected = float(before.detach() - 0.02 * norm)
    assert float(after) < float(before.detach())
    assert float(after) == pytest.approx(expected, abs=0.01 * float(norm)), "by what the gradient promises"


def test_checkpointing_changes_no_gradient(case: Case) -> None:
    inputs = mixed(case.family)
    plain = gradients(case.model, inputs)
    model = copy.deepcopy(case.model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    checkpointed = gradients(model, inputs)
    assert plain.keys() <= checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-5, rtol=1e-3)


# -- life of the adapter -------------------------------------------------------------------------------------


def test_save_and_load_are_exact(case: Case, tmp_path: Path) -> None:
    inputs = mixed(case.family)
    before = small.logits(case.model, inputs)
    case.model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(frozen(case.family)), tmp_path).eval()  # type: ignore[arg-type]
    assert same(small.logits(again, inputs), before)
    trainable, report = lime.load(copy.deepcopy(frozen(case.family)), tmp_path, is_trainable=True)  # type: ignore[arg-type]
    assert same(small.logits(trainable.eval(), inputs), before)
    assert report.trainable == case.report.trainable
    expected = {name for name, p in case.model.named_parameters() if p.requires_grad}
    assert {name for name, p in trainable.named_parameters() if p.requires_grad} == expected


def test_disable_and_switch(case: Case) -> None:
    inputs = mixed(case.family)
    expected = small.logits(frozen(case.family), inputs)
    model = copy.deepcopy(case.model)
    first = small.logits(model, inputs)
    assert not any(torch.allclose(one, other, atol=1e-2) for one, other in zip(first, expected, strict=True))
    with model.disable_adapter():
        assert same(small.logits(model, inputs), expected)
    assert same(small.logits(model, inputs), first)

    torch.manual_seed(7)
    model.add_adapter("second", copy.deepcopy(model.peft_config["default"]))
    lime.tuner.calibrate(model, [inputs])
    assert same(small.logits(model.eval(), inputs), first), "adding an adapter does not switch to it"
    model.set_adapter("second")
    if case.type.starts_frozen:
        assert same(small.logits(model.eval(), inputs), expected), "the second one is fresh"
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == sum(p.requires_grad for p in case.model.parameters())
    assert all(".second" in name for name in trained)
    disturb(model, seed=3)
    second = small.logits(model, inputs)
    assert not any(torch.allclose(one, other, atol=1e-2) for one, other in zip(second, first, strict=True))
    model.set_adapter("default")
    assert same(small.logits(model.eval(), inputs), first)
    model.set_adapter("second")
    assert same(small.logits(model.eval(), inputs), second)


# -- properties, in every causal mode ------------------------------------------------------------------------


def in_each_mode(case: Case) -> Iterator[tuple[str, Any]]:
    for mode, options in case.type.modes.items():
        if not options:
            yield mode, case.model
            continue
        model, _ = fresh(case.name, case.family, **options)
        disturb(model)
        yield mode, model


def test_causal_independent_and_decoded_step_by_step(case: Case) -> None:
    """Rows do not see their neighbours or padding, tokens do not see later ones, a cache changes nothing."""
    rows = rows_of(case.family)
    for mode, model in in_each_mode(case):
        together = small.logits(model, small.batch(case.family, rows, "right"))
        left = small.logits(model, small.batch(case.family, rows, "left", width=24))
        alone = [small.logits(model, small.batch(case.family, [one]))[0] for one in rows]
        close(together, alone, 1e-4)
        close(left, alone, 1e-4)

        if case.type.causal:
            t, one = 6, rows[1]
            changed = {**one, "ids": one["ids"].clone()}
            changed["ids"][t] = (changed["ids"][t] + 17) % small.WORDS + 1
            (after,) = small.logits(model, small.batch(case.family, [changed]))
            torch.testing.assert_close(after[:t], alone[1][:t], atol=1e-5, rtol=1e-5)
            assert not torch.allclose(after[t:], alone[1][t:], atol=1e-3), f"{mode}: the change must be seen somewhere"

        inputs = small.batch(case.family, rows, "left")
        cached, uncached = decode(model, inputs), decode(model, inputs, use_cache=False)
        assert torch.equal(cached.sequences, uncached.sequences), mode
        close(list(cached.logits), list(uncached.logits), 1e-5)
