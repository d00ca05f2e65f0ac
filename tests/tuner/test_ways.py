"""Which way a call takes through an adapted layer: what is reported of it, and how few files it passes."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lime
from lime.tuner.layers.linear import LimeLinear
from lime.tuner.routing.call import TowerCall
from lime.tuner.routing.state import RoutingState
from lime.tuner.settings import LimeSettings
from tests.tuner import small_models as small
from tests.ways import way

PACKAGE = Path(lime.__file__).parent


def files_passed(run: Callable[[], Tensor], widths: tuple[int, ...], tokens: int) -> list[str]:
    """Files of the package with functions that are given a layer's input or a frozen output, in the order of their
    first call: tensors of one of these widths and with as many tokens."""
    passed = {}

    def is_wide(value: Any) -> bool:
        values = value if isinstance(value, tuple) else (value,)
        return any(
            isinstance(one, Tensor) and one.dim() > 1 and one.shape[-1] in widths and one.shape[:-1].numel() == tokens
            for one in values
        )

    def note(frame: Any, event: str, _: Any) -> None:
        ours = event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE))
        if ours and any(is_wide(value) for value in frame.f_locals.values()):
            passed[str(Path(frame.f_code.co_filename).relative_to(PACKAGE))] = True

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return list(passed)


@pytest.mark.parametrize("name", ["torch", "fused", "decoding"])
def test_the_input_passes_at_most_five_files(name: str) -> None:
    """Between `forward` and the result; each of them is named where the way is chosen."""
    torch.manual_seed(0)
    layer = LimeLinear(nn.Linear(16, 24).requires_grad_(False), "layer", "", RoutingState())
    layer.update_layer("default", LimeSettings(), init_weights=False)
    layer.set_adapter("default")
    layer.train(name != "decoding")
    x = torch.randn(2, 3, 16, requires_grad=name != "decoding")
    mask = torch.tensor([[True, True, True], [False, True, True]])
    call = TowerCall("", mask, mask, past=3 if name == "decoding" else 0, cached=name == "decoding")
    with (
        layer.routing_state.restored({"": call}),
        way("torch" if name == "torch" else "auto"),
        torch.set_grad_enabled(name != "decoding"),
    ):
        if name == "decoding":
            layer(x)  # constants of the generation
        assert layer.choose(x, call).way == name
        first, *files = files_passed(lambda: layer(x), (16, 24), tokens=6)
    assert first == "tuner/layers/linear.py"
    assert 2 <= len(files) <= 5, files
    listed = tuple(re.findall(r"`([a-z_]+/[a-z_/.]*)`", str(sys.modules[LimeLinear.__module__].__doc__)))
    assert all(file.removeprefix("tuner/").startswith(listed) for file in files), files


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "8 fused, in generate 8 decoding"),
        ({"n_gram": 2}, "8 fused"),
        ({"peft": "dora"}, "0 fused, 8 torch (dora rescales the frozen output)"),
        ({"peft": "hydra_lora"}, "8 fused"),
        ({"feature_slice": "variance"}, "8 fused, in generate 8 decoding"),
        ({"routing_norm": "scaled"}, "0 fused, 8 torch (routing_norm: scaled has a scale of each feature)"),
        ({"rank_modulation": True}, "0 fused, 8 torch (experts modulate the rank too)"),
        ({"peft": "moe_lora", "dropout": 0.1}, "0 fused, 8 torch (dropout acts on a mixture)"),
        ({"peft": "slicefine", "enabled": False}, "0 fused, 8 torch (the PEFT type is alone, without LiME)"),
        ({"peft": "any"}, "0 fused, 8 torch (its update is that of another adapter, formed at full width)"),
        ({"peft": "lora", "enabled": False}, ""),
        ({"peft": "prompt_tuning"}, ""),
    ],
    ids=str,
)
def test_the_report_and_the_log_say_which(
    options: dict[str, Any], expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="lime"):
        model, report = lime.apply(small.build("llava_onevision"), **options)
    line = f"ways through the layers: {expected}" if expected else ""
    assert report.ways == line
    assert str(report).endswith(line or "parameters train")
    assert str(report) in caplog.text
    if "fused" in line:
        with way("torch"):
            assert "(the path 'torch' was asked for)" in lime.tuner.report(model).ways or "0 fused" in line
