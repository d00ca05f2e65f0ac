"""The same questions about how a model runs: dtypes, threads, rows of features, compilation."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn

import lime
from lime.method.deltas import table
from tests.conformance.test_battery import disturb
from tests.conformance.test_library import adapted, every_layer, every_type, out, rows
from tests.conformance.types import TYPES


@every_type
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_cast_as_a_whole(name: str, dtype: torch.dtype) -> None:
    model = copy.deepcopy(adapted(name)[0]).to(dtype)
    got = out(model)
    assert got.dtype == dtype
    assert got.isfinite().all()
    prompt = {key: value[:1] for key, value in rows().items()}
    tokens = model.generate(**prompt, max_new_tokens=2, do_sample=False)
    assert tokens.shape[1] == prompt["input_ids"].shape[1] + 2 or tokens.shape[1] > prompt["input_ids"].shape[1]


@every_type
def test_threads(name: str) -> None:
    model, _ = adapted(name)
    inputs = [rows(seed) for seed in range(1, 9, 2)]
    for one, keep in zip(inputs, (9, 8, 7, 6), strict=True):
        one["attention_mask"][0, keep:] = 0
    alone = [out(model, one) for one in inputs]
    wrong: list[int] = []

    def repeat(i: int) -> None:
        for _ in range(3):
            if not torch.allclose(out(model, inputs[i]), alone[i], atol=1e-4):
                wrong.append(i)

    threads = [threading.Thread(target=repeat, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@every_layer
def test_rows_of_features(name: str) -> None:
    """A model of linear layers over (rows, features): no row sees another."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    options = {**TYPES[name].options, "scope": "language_model", "target_modules": ["0", "2"]}
    model, _ = lime.apply(mlp, **options)  # type: ignore[arg-type]
    disturb(model)
    x = torch.randn(5, 32)
    lime.tuner.calibrate(model, [{"input": x}])
    if table.TYPES[TYPES[name].options["peft"]].by_sequence:
        with pytest.raises(ValueError, match="which of them form a sequence is unknown"):
            model(x)
        return
    with torch.no_grad():
        whole = model.eval()(x)
        torch.testing.assert_close(whole, torch.cat([model(row) for row in x.split(1)]), atol=1e-5, rtol=1e-5)
        assert model(x[:0]).shape == (0, 8)
    model.train()(x).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.slow
@every_type
def test_compiled(name: str) -> None:
    model = copy.deepcopy(adapted(name)[0])
    expected = out(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(out(compiled), expected, atol=1e-4, rtol=1e-4)  # type: ignore[arg-type]
