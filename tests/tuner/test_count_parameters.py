"""scripts/count_parameters.py, as a person runs it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lime.tuner.reporting import count

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import count_parameters


def test_published_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert count_parameters.main(["model=llava_onevision", "method=lime_lora"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["language_model", "112", "2,408,560", "0.0300"] in lines
    assert ["both", "216", "3,486,936", "0.0434"] in lines
    assert count_parameters.main(["model=llava_onevision_0_5b", "peft.scope=language_model"]) == 0
    out = capsys.readouterr().out
    assert "893,675,552 parameters" in out
    assert ["language_model", "96", "516,192"] in [line.split()[:3] for line in out.splitlines()]


def test_the_estimate_of_memory_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    """8,029,890,080 parameters of 2 bytes; 3584 wide, 28 layers, 2 rows of 2,048 tokens, a vocabulary of 152,000."""
    assert count_parameters.main(["model=llava_onevision", "peft.scope=language_model"]) == 0
    out = capsys.readouterr().out
    assert "estimate, at most (rows of 2,048 tokens; nothing was run)" in out
    assert "weights 16.1 GB, adapters with AdamW 0.04 GB, activations of 2 rows 17.7 GB: 34 GB" in out
    assert "1,000 training rows: 11.0 min at 100 TFLOP/s" in out
    options = ["model=llava_onevision", "peft.scope=language_model", "trainer.gradient_checkpointing=true"]
    assert count_parameters.main(options) == 0
    assert "activations of 2 rows 5.1 GB" in capsys.readouterr().out


PUBLISHED = {  # model and scope; method (and further options): trainable parameters at E = 4, r = 2
    ("llava_onevision", "both"): {
        "lora": 1_740_800,
        "dora": 2_089_984,
        "lora_fa": 698_368,
        "slicefine": 1_740_800,
        "lime_lora": 3_486_936,
        "lime_dora": 3_836_120,
        "lime_lora_fa": 2_444_504,
        "lime_slicefine": 2_444_504,
        "moe_lora": 10_788_864,
        "moe_dora": 12_185_600,
        "mix_lora": 3_825_664,
        "hydra_lora": 5_920_768,
        "mola": 9_048_064,
        "mocle": 5_920_768,
    },
    ("llava_onevision", "language_model"): {"prompt_tuning": 71_680, "lime_prompt_tuning": 89_601},
    ("llava_onevision_0_5b", "language_model"): {
        "lora": 270_336,
        "lime_lora": 516_192,
        "lime_dora": 565_344,
        "lime_lora_fa": 344_160,
        "lime_slicefine": 344_160,
        "lime_prompt_tuning": 22_401,
        "mix_lora": 614_400,
        "moe_lora_fa": 835_584,
        "hydra_lora": 909_312,
        "moe_lora": 1_695_744,
        "moe_dora": 1_892_352,
    },
}
"""Published totals; SliceFine alone trains columns and rows, under LiME columns; prompts have 20 tokens; MoCLE is
printed as 5.92 million."""


@pytest.mark.parametrize(
    ("model", "scope", "method", "expected"),
    [(*where, method, expected) for where, rows in PUBLISHED.items() for method, expected in rows.items()],
)
def test_every_published_method(model: str, scope: str, method: str, expected: int) -> None:
    name, *options = method.split()
    config = count_parameters.configuration([f"model={model}", f"method={name}", *options])
    assert count_parameters.count(config, scope).trainable == expected


FORMULAS = {  # trainable parameters of a layer, of r (d_in + d_out), d_in, d_out, E and r
    "moe_lora": lambda lora, d_in, d_out, E, r: (E + 1) * lora + E * d_in,
    "moe_lora_fa": lambda lora, d_in, d_out, E, r: (E + 1) * r * d_out + E * d_in,
    "moe_dora": lambda lora, d_in, d_out, E, r: (E + 1) * lora + E * d_out + E * d_in,
    "hydra_lora": lambda lora, d_in, d_out, E, r: r * d_in + E * r * d_out + E * d_in,
    "mix_lora": lambda lora, d_in, d_out, E, r: lora + E * d_in,
    "mola": lambda lora, d_in, d_out, E, r: E * lora + E * d_in,
    "mocle": lambda lora, d_in, d_out, E, r: r * d_in + E * r * d_out + E * d_in,
    "more": lambda lora, d_in, d_out, E, r: 2 * lora + E * 128,
}


@pytest.mark.parametrize("method", FORMULAS)
def test_every_layer_of_a_mixture_has_its_formula(method: str) -> None:
    E, r = 6, 3
    options = ["model=llava_onevision_0_5b", f"method={method}", f"lime.num_experts={E}", f"peft.r={r}"]
    rows = count_parameters.count(count_parameters.configuration(options), "language_model").rows
    assert len({(row.d_in, row.d_out) for row in rows}) >= 2
    for row in rows:
        lora = r * (row.d_in + row.d_out)
        assert row.trainable == FORMULAS[method](lora, row.d_in, row.d_out, E, r), row.module


def test_more_is_near_the_published_total() -> None:
    """Printed as 3.59 million, router included; the paper does not say what that reads."""
    config = count_parameters.configuration(["model=llava_onevision", "method=more"])
    assert count_parameters.count(config, "both").trainable == 2 * 1_740_800 + 216 * 4 * 128 == 3_592_192


def test_an_inverted_triangle_has_the_parameters_of_the_uniform_layout() -> None:
    """Over the 28 blocks of the language model, seven to a quarter: 2, 3, 5 and 6 experts."""
    options = ["model=llava_onevision", "method=mola"]
    uniform = count_parameters.count(count_parameters.configuration(options), "language_model")
    config = count_parameters.configuration([*options, "lime.expert_layout=inverted_triangle"])
    triangle = count_parameters.count(config, "language_model")
    assert triangle.trainable == uniform.trainable
    of_query = {row.module.split(".")[-3]: row.trainable for row in triangle.rows if row.module.endswith(".q_proj")}
    experts = [of_query[str(block)] // (2 * (3584 + 3584) + 3584) for block in (0, 6, 7, 13, 14, 20, 21, 27)]
    assert experts == [2, 2, 3, 3, 5, 5, 6, 6]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=llava_onevision_0_5b", "lime.num_expert=3", "peft.r=x"], "did you mean lime.num_experts"),
        (["model=llava_onevision_0_5b", "lime.num_experts=300"], "k_proj has only 128 outputs"),
        (["model=llava_onevision_0_5b", "lime.num_experts=0"], "lime.num_experts: expected at least 1"),
    ],
)
def test_mistakes_end_with_a_message(overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert count_parameters.main(overrides) == 2
    assert message in capsys.readouterr().err


def test_a_base_of_four_bits_counts_its_numbers() -> None:
    """Two numbers in a byte: by the shape that the quantised parameter keeps, or by its type alone."""
    packed = nn.Parameter(torch.zeros(50, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = SimpleNamespace(shape=torch.Size([10, 10]))  # type: ignore[attr-defined]
    assert count(packed) == 100

    class Params4bit(nn.Parameter):
        pass

    assert count(Params4bit(torch.zeros(50, 1, dtype=torch.uint8), requires_grad=False)) == 100
    assert count(Params4bit(torch.zeros(10, 10), requires_grad=False)) == 100
    assert count(nn.Parameter(torch.zeros(10, 10))) == 100
