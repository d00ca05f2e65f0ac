"""Quantised frozen layers: LiME over them is LiME over a plain layer of the weights they stand for.

What runs on a CPU: 8-bit and 4-bit layers of bitsandbytes and int8 weights of torchao, where these are installed, and a
stand-in of the same kind. GPTQ, AWQ, AQLM, EETQ, HQQ and Intel Neural Compressor need a GPU or their own kernels; their
layers that are not `nn.Linear` are not targets.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from lime.tuner.layers.linear import LimeLinear
from lime.tuner.routing.state import RoutingState
from lime.tuner.settings import LimeSettings

IN, OUT = 128, 64


class Int8Linear(nn.Linear):
    """Weights in 8 bits with one scale for each row, dequantised in the product."""

    def __init__(self, plain: nn.Linear):
        super().__init__(plain.in_features, plain.out_features)
        scale = plain.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((plain.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.bias, self.scale = plain.bias, scale

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


def stand_in(plain: nn.Linear) -> nn.Linear:
    return Int8Linear(plain)


def bitsandbytes_4bit(plain: nn.Linear) -> nn.Linear:
    bnb = pytest.importorskip("bitsandbytes")
    made = bnb.nn.Linear4bit(IN, OUT, compute_dtype=torch.float32, quant_type="nf4")
    made.load_state_dict(plain.state_dict())
    return made.to("cpu")


def bitsandbytes_8bit(plain: nn.Linear) -> nn.Linear:
    bnb = pytest.importorskip("bitsandbytes")
    made = bnb.nn.Linear8bitLt(IN, OUT, has_fp16_weights=False)
    made.load_state_dict(plain.state_dict())
    return made.to("cpu")


def torchao_int8(plain: nn.Linear) -> nn.Linear:
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(holder := nn.Sequential(plain), quantization.Int8WeightOnlyConfig())
    return holder[0]


def adapted(base: nn.Linear, **options: Any) -> LimeLinear:
    torch.manual_seed(1)
    base.requires_grad_(False)
    made = LimeLinear(base, "some.layer", "", RoutingState())
    made.update_layer("default", LimeSettings(r=3, **options), init_weights=False)
    made.set_adapter("default")
    with torch.no_grad():
        made.lime_gamma["default"].fill_(0.5)
    return made.eval()


def run(made: LimeLinear, x: Tensor) -> list[Tensor]:
    out = made(x)
    parameters = [p for p in made.parameters() if p.requires_grad]
    return [out.detach(), *torch.autograd.grad(out.float().square().mean(), parameters)]


@pytest.mark.parametrize("quantise", [stand_in, bitsandbytes_4bit, bitsandbytes_8bit, torchao_int8])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"peft": "slicefine"},
        {"routing_norm": "token", "n_gram": 2},
        {"router": "learned"},
        {"feature_slice": "random"},
    ],
    ids=str,
)
def test_the_weights_they_stand_for(quantise: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    quantised = quantise(nn.Linear(IN, OUT)).eval().requires_grad_(False)
    x = torch.randn(2, 5, IN)
    frozen = quantised(x)
    # The plain layer that gives the same outputs: identity rows through the quantised one.
    plain = nn.Linear(IN, OUT)
    with torch.no_grad():
        plain.bias.copy_(quantised(torch.zeros(1, IN))[0])
        plain.weight.copy_((quantised(torch.eye(IN)) - plain.bias).t())
    torch.testing.assert_close(plain(x), frozen.float(), atol=0.05, rtol=0.05)
    ours = adapted(quantised, **options)
    assert {p.dtype for p in ours.parameters() if p.requires_grad} == {torch.float32}
    for got, expected in zip(run(ours, x), run(adapted(plain, **options), x), strict=True):
        assert float(torch.nn.functional.cosine_similarity(got.flatten(), expected.flatten(), 0)) > 0.99
    ours.enable_adapters(False)
    torch.testing.assert_close(ours(x), frozen, atol=1e-2, rtol=1e-2)  # bitsandbytes repeats itself up to rounding


@pytest.mark.parametrize("quantise", [bitsandbytes_4bit, torchao_int8])
def test_dora_reads_the_dequantised_weight(quantise: Any) -> None:
    torch.manual_seed(0)
    quantised = quantise(nn.Linear(IN, OUT))
    weight = dequantize_module_weight(quantised).float()
    ours = adapted(quantised, peft="dora")
    delta: Any = ours.lime_delta["default"]
    torch.testing.assert_close(delta.magnitude, weight.norm(dim=1), atol=1e-4, rtol=1e-4)
    assert all(gradient.isfinite().all() for gradient in run(ours, torch.randn(2, 5, IN)))
