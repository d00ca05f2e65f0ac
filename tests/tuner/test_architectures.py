"""One line adapts a model of transformers, whatever it is, or says in one sentence which argument it needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lime
from tests.tuner import architectures as tiny

PAGE = Path(__file__).parent.parent.parent / "docs" / "architectures.md"
QUICK = ("gpt2", "falcon", "mamba", "bert", "vit", "swin", "t5")
ALL = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in tiny.ARCHITECTURES]


OTHERS = [pytest.param(name, marks=() if name == "fsmt" else pytest.mark.slow) for name in tiny.OTHER_TOKENS]


@pytest.mark.parametrize("name", ALL)
def test_it_works_or_says_what_it_needs(name: str, tmp_path: Path) -> None:
    needs = tiny.ARCHITECTURES[name].needs
    base = tiny.build(name)
    inputs = tiny.inputs_of(base)
    with torch.no_grad():
        frozen = tiny.output_of(base, inputs)
    given: dict[str, Any] = {}
    for option, value in needs.items():  # one after the other, as its sentences say
        with pytest.raises(ValueError, match=rf"^{option}: .*give {option}='{value}'") as refused:
            lime.apply(base, **given)
        assert "\n" not in str(refused.value)
        given[option] = value
    model, report = lime.apply(base, **given)
    with torch.no_grad():
        torch.testing.assert_close(tiny.output_of(model.eval(), inputs), frozen, atol=1e-5, rtol=1e-5)

    model.train()
    with lime.record(model) as recorder:
        loss = tiny.output_of(model, inputs).square().mean()
    (loss + recorder.balance().total(0.1, 0.01)).backward()
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == report.trainable
    assert not [key for key, p in trained.items() if p.grad is None or not p.grad.isfinite().all()]

    torch.manual_seed(5)
    with torch.no_grad():
        for p in trained.values():
            p.add_(torch.randn_like(p), alpha=0.1)
        expected = tiny.output_of(model.eval(), inputs)
        assert not torch.allclose(expected, frozen, atol=1e-5)
        model.save_pretrained(tmp_path)
        again, _ = lime.load(tiny.build(name), tmp_path)
        assert torch.equal(tiny.output_of(again, inputs), expected)
        if "input_ids" in inputs and base.can_generate():
            row = {key: inputs[key][:1] for key in ("input_ids", "attention_mask")}
            assert model.generate(**row, max_new_tokens=3).shape[0] == 1


@pytest.mark.parametrize("name", OTHERS)
def test_attention_over_other_tokens(name: str) -> None:
    """Without padding it works; with padding it is refused by the layer's name."""
    base = tiny.build(name)
    inputs = tiny.inputs_of(base)
    whole = {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}
    with torch.no_grad():
        frozen = tiny.output_of(base, whole)
        model, _ = lime.apply(base)
        torch.testing.assert_close(tiny.output_of(model.eval(), whole), frozen, atol=1e-5, rtol=1e-5)
        with pytest.raises(
            ValueError, match=r"attention.* with padding; .*target_modules, exclude_modules|attn.* with pad"
        ):
            tiny.output_of(model, inputs)


def test_the_page_has_every_architecture() -> None:
    """`python -m tests.tuner.architectures > docs/architectures.md` makes it."""
    rows = re.findall(r"^\| `([^`]+)` \| \w+ \| [a-z-]+ \| ([^|]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert dict(rows) == {
        name: ", ".join(f"`{option}={value!r}`" for option, value in one.needs.items()) or "nothing"
        for name, one in tiny.ARCHITECTURES.items()
    }
    assert len(rows) >= 50


@pytest.mark.slow
def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == tiny.table()


def test_what_is_left_out_is_said(caplog: pytest.LogCaptureFixture) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.gate, self.dense = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 8)
            self.pool = nn.MultiheadAttention(8, 2)

    model = nn.ModuleDict({"attention": Attention(), "mlp": nn.Linear(8, 8)})
    with caplog.at_level("INFO", logger="lime.tuner.towers"):
        _, report = lime.apply(model)  # type: ignore[arg-type]
    assert [row.module for row in report.rows] == ["attention.qkv", "attention.dense"]
    assert "left out of the attention modules: gate (1), pool (1)" in caplog.text
    named = nn.ModuleDict({"attention": nn.Linear(8, 8)})
    with pytest.raises(ValueError, match=r"target_modules: ModuleDict has no attention projections .* attention \(1\)"):
        lime.apply(named)  # type: ignore[arg-type]
