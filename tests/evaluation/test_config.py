"""The settings check themselves, naming the key."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lime.evaluation.config import EvaluationConfig


def test_the_defaults_are_right() -> None:
    assert EvaluationConfig().errors() == []
    assert EvaluationConfig(splits=["glue_test_sst2"]).errors(["glue_test_sst2"]) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "guess"}, "evaluation.mode: expected one of generate, likelihood, none, got 'guess'"),
        ({"likelihood_normalisation": "max"}, "evaluation.likelihood_normalisation: expected one of mean, sum"),
        ({"batch_size": 0}, "evaluation.batch_size: expected an integer of at least 1, got 0"),
        ({"max_new_tokens": 0}, "evaluation.max_new_tokens: expected an integer of at least 1"),
        ({"splits": []}, "evaluation.splits: expected null (all splits) or at least one split name"),
        ({"splits": ["glue_test_sst2"] * 2}, "evaluation.splits: each split may be named once"),
        ({"splits": ["glue_test_sst"]}, "unknown split 'glue_test_sst'; did you mean 'glue_test_sst2'?"),
    ],
)
def test_each_mistake_names_its_key(values: dict, message: str) -> None:
    found = EvaluationConfig(**values).errors(["glue_test_sst2", "glue_test_qqp"])
    assert len(found) == 1
    assert message in found[0]


def test_all_mistakes_are_told_at_once() -> None:
    assert len(EvaluationConfig(mode="x", batch_size=0, splits=["a", "b"]).errors(["c"])) == 4


def test_scoring_needs_no_model_library() -> None:
    code = (
        "import sys, lime.evaluation.config, lime.evaluation.predictions, lime.evaluation.report, "
        "lime.evaluation.tables; "
        "assert not {'torch', 'transformers', 'peft', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
