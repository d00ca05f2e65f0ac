"""scripts/count_parameters.py, as a person runs it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

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
    assert out.splitlines()[-1].split()[:3] == ["language_model", "96", "516,192"]


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
    },
    ("llava_onevision", "language_model"): {"prompt_tuning": 71_680, "lime_prompt_tuning": 89_601},
    ("llava_onevision_0_5b", "language_model"): {
        "lora": 270_336,
        "lime_lora": 516_192,
        "lime_dora": 565_344,
        "lime_lora_fa": 344_160,
        "lime_slicefine": 344_160,
        "lime_prompt_tuning": 22_401,
    },
}
"""Published totals; SliceFine alone trains columns and rows, under LiME columns; prompts have 20 tokens."""


@pytest.mark.parametrize(
    ("model", "scope", "method", "expected"),
    [(*where, method, expected) for where, rows in PUBLISHED.items() for method, expected in rows.items()],
)
def test_every_published_method(model: str, scope: str, method: str, expected: int) -> None:
    name, *options = method.split()
    config = count_parameters.configuration([f"model={model}", f"method={name}", *options])
    assert count_parameters.count(config, scope).trainable == expected


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
