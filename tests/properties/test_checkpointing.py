"""Gradient checkpointing changes no gradient and counts no token twice; gradients of several calls keep apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import lime
from tests.tuner import small_models as small

families = pytest.mark.parametrize("family", small.FAMILIES)
OPTIONS: dict[str, dict[str, Any]] = {"1-gram": {}, "3-gram": {"n_gram": 3}, "dropout": {"dropout": 0.3}}


def batches(family: str) -> list[dict[str, Tensor]]:
    """Two batches of one shape with different padding: the masks must not be confused."""
    rows = [small.row(family, 6, 1, with_image=True), small.row(family, 15, 2), small.row(family, 4, 3)]
    return [small.batch(family, rows, side, width=18) for side in ("left", "right")]


def step(
    model: Any, inputs: list[dict[str, Tensor]], balance_only: bool = False
) -> tuple[dict[str, Tensor], list[int]]:
    """Gradients of both batches' losses, backward after both forward passes; and what was recorded."""
    model.train()
    model.zero_grad()
    total: Any = 0.0
    recorders = []
    for i, one in enumerate(inputs):
        torch.manual_seed(i)
        with lime.record(model) as recorder:
            loss = model(**one, labels=one["input_ids"]).loss
        total = total + recorder.balance().total(1.0, 1.0) + (0.0 if balance_only else loss)
        recorders.append(recorder)
    total.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return gradients, [len(recorder) for recorder in recorders]


@families
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("balance_only", [False, True])
def test_gradients_are_the_same(family: str, options: dict[str, Any], balance_only: bool) -> None:
    make = lambda: small.apply_random(small.build(family), scope="both", **options)  # noqa: E731
    plain, recorded = step(make(), batches(family), balance_only)
    assert any("lime_delta" in name and gradient.abs().sum() > 0 for name, gradient in plain.items())
    model = make()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    checkpointed, recorded_again = step(model, batches(family), balance_only)
    assert recorded == recorded_again, "recomputation is not recorded"
    names = {name for name in plain if "lime_" in name}
    assert names <= checkpointed.keys()
    for name in names:
        torch.testing.assert_close(checkpointed[name], plain[name], atol=1e-5, rtol=1e-3)


@families
def test_reentrant_checkpointing_is_refused(family: str) -> None:
    model = small.apply_random(small.build(family))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(ValueError, match="non-reentrant"):
        step(model, batches(family))


@families
def test_a_checkpoint_around_the_whole_model(family: str) -> None:
    """The user's own checkpoint: the tower opens its record again, and nothing is recorded twice."""
    from torch.utils.checkpoint import checkpoint

    (inputs, _) = batches(family)
    plain, recorded = step(small.apply_random(small.build(family)), [inputs])
    model = small.apply_random(small.build(family)).train()
    torch.manual_seed(0)
    with lime.record(model) as recorder:
        loss = checkpoint(lambda: model(**inputs, labels=inputs["input_ids"]).loss, use_reentrant=False)
        (loss + recorder.balance().total(1.0, 1.0)).backward()
    assert [len(recorder)] == recorded
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, plain[name], atol=1e-5, rtol=1e-3)


@families
def test_statistics_add_up_over_micro_batches(family: str) -> None:
    model = small.apply_random(small.build(family))
    rows = [small.row(family, length, length) for length in (4, 9, 6, 13)]
    with lime.record(model) as whole:
        small.logits(model, small.batch(family, rows))
    parts = []
    for pair in (rows[:2], rows[2:]):
        with lime.record(model) as recorder:
            small.logits(model, small.batch(family, pair, "left"))
        parts.append(recorder.statistics())
    merged = parts[0] + parts[1]
    for name, statistics in whole.statistics().items():
        for got, expected in zip(merged[name].tensors(), statistics.tensors(), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)
        assert 1 <= float(statistics.experts_per_token) <= 4
        assert 0 < float(statistics.entropy) <= 1.3863
        torch.testing.assert_close(statistics.mean_probability.sum(), torch.tensor(1.0))


@families
def test_jitter_acts_in_training_only(family: str) -> None:
    (inputs, _) = batches(family)
    model = small.apply_random(small.build(family), selection="dense")
    torch.testing.assert_close(small.logits(model, inputs)[1], small.logits(model, inputs)[1])
    model.train()
    assert not torch.allclose(small.logits(model, inputs)[1], small.logits(model, inputs)[1], atol=1e-4)


def test_the_training_path_reads_no_value_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """No `.item()`, no `.tolist()`, no truth value of a tensor, in the forward pass of the adapted layers."""
    model = small.apply_random(small.build("llava_onevision"), n_gram=3)
    language = model.get_base_model().model.language_model.train()
    embeddings = torch.randn(2, 6, 32)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    layers = small.lime_layers(model)
    reads: list[str] = []

    def guarded(layer: Any) -> Any:
        inner = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            with monkeypatch.context() as patch:
                for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__"):
                    patch.setattr(Tensor, name, lambda self, *a, name=name: reads.append(name))
                return inner(*args, **kwargs)

        return forward

    for layer in layers:
        layer.forward = guarded(layer)
    with lime.record(model) as recorder:
        out = language(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).last_hidden_state
    assert out.isfinite().all()
    assert not reads
    assert len(recorder) == len(layers)
