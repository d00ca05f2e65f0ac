"""Learning rates of towers and of B (LoRA+): who gets which, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer

import lime
from lime.config.check import ConfigError, build
from lime.config.schema import TrainConfig
from lime.config.training import OptimConfig, TowerRates
from lime.jobs.train import train
from lime.training.optimizer import optimizer_groups
from tests.training.parts import config, values
from tests.tuner import small_models as small

FAMILY = "llava_onevision"


def groups(options: OptimConfig, **settings: Any) -> dict[str, dict[str, Any]]:
    """Groups by name, each with the names of its parameters; every parameter that trains is in one of them, once."""
    model, _ = lime.apply(small.build(FAMILY), r=2, **settings)
    names = {p: name for name, p in model.named_parameters() if p.requires_grad}
    found = optimizer_groups(model, options)
    listed = [p for group in found for p in group["params"]]
    assert len(listed) == len(set(listed)) == len(names)
    return {group["name"]: {**group, "params": [names[p] for p in group["params"]]} for group in found}


def test_without_rates_of_their_own_there_are_the_two_groups() -> None:
    found = groups(OptimConfig(moe_lr=1.0, peft_lr=2.0), scope="both")
    assert [(name, group["lr"]) for name, group in found.items()] == [("modulators", 1.0), ("peft", 2.0)]
    assert all(".lime_delta." in name for name in found["peft"]["params"])


def test_a_tower_has_its_own_rates() -> None:
    options = OptimConfig(moe_lr=1.0, peft_lr=2.0, vision_tower=TowerRates(moe_lr=3.0, peft_lr=4.0), moe_weight_decay=0)
    options.language_model.peft_lr = 5.0
    found = groups(options, scope="both")
    rates = {name: group["lr"] for name, group in found.items()}
    assert rates == {
        "modulators": 1.0, "language_model.peft": 5.0, "vision_tower.modulators": 3.0, "vision_tower.peft": 4.0
    }  # fmt: skip
    for name, group in found.items():
        vision = name.startswith("vision_tower")
        assert all((".vision_tower." in one) == vision for one in group["params"])
        assert all((".lime_delta." in one) == name.endswith("peft") for one in group["params"])
        assert group["weight_decay"] == (0.01 if name.endswith("peft") else 0)


@pytest.mark.parametrize("settings", [{}, {"peft": "dora"}, {"peft": "moe_lora"}, {"peft": "any", "base": "lora"}])
def test_lora_plus_multiplies_the_rate_of_every_B_and_of_nothing_else(settings: dict[str, Any]) -> None:
    found = groups(OptimConfig(moe_lr=1.0, peft_lr=2.0, loraplus_ratio=8.0), **settings)
    assert {name: group["lr"] for name, group in found.items()} == {"modulators": 1.0, "peft": 2.0, "peft.B": 16.0}
    letters = {name: {part for one in group["params"] for part in ("A", "B") if f"{part}." in f"{one.split('_')[-1]}."}
               for name, group in found.items()}  # fmt: skip
    assert letters["peft.B"] == {"B"}
    assert "B" not in letters["peft"] | letters["modulators"]
    assert "A" in letters["peft"]


def test_lora_plus_gives_the_librarys_rates_over_its_own_adapter() -> None:
    model, _ = lime.apply(small.build(FAMILY), enabled=False, peft="lora")
    own = {id(p): group["lr"] for group in optimizer_groups(model, OptimConfig(peft_lr=2.0, loraplus_ratio=8.0))
           for p in group["params"]}  # fmt: skip
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=2.0, loraplus_lr_ratio=8.0)
    assert {id(p): group["lr"] for group in theirs.param_groups for p in group["params"]} == own


def test_rates_per_tower_and_lora_plus_together() -> None:
    options = OptimConfig(moe_lr=1.0, peft_lr=2.0, loraplus_ratio=8.0, vision_tower=TowerRates(peft_lr=3.0))
    rates = {name: group["lr"] for name, group in groups(options, scope="both").items()}
    expected = {"modulators": 1.0, "peft": 2.0, "peft.B": 16.0, "vision_tower.peft": 3.0, "vision_tower.peft.B": 24.0}
    assert rates == expected


def test_what_no_parameter_would_take_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"optim.vision_tower.peft_lr: no parameters of the update train in a vision"):
        groups(OptimConfig(vision_tower=TowerRates(peft_lr=1.0)))
    with pytest.raises(ValueError, match=r"optim.language_model.moe_lr: no modulators train .*\(in: nothing\)"):
        groups(OptimConfig(language_model=TowerRates(moe_lr=1.0)), enabled=False)
    for settings in ({"peft": "lora_fa"}, {"peft": "prompt_tuning"}, {"peft": "any", "base": "ia3"}):
        with pytest.raises(ValueError, match=r"optim.loraplus_ratio: needs a type that trains both A and B"):
            groups(OptimConfig(loraplus_ratio=4.0), **settings)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"optim__vision_tower": {"peft_lr": 1e-3}}, "optim.vision_tower.peft_lr: has no effect with peft.scope=lang"),
        ({"optim__vision_tower": {"peft_lr": -1.0}, "peft": {"scope": "both"}},
         "optim.vision_tower.peft_lr: expected a number of at least 0, got -1.0"),
        ({"optim__visual": {"peft_lr": 1e-3}}, "optim.visual"),
        ({"optim__vision_tower": {"lr": 1e-3}}, "optim.vision_tower.lr"),
        ({"optim__loraplus_ratio": 0.0}, "optim.loraplus_ratio: expected a number above 0"),
        ({"optim__loraplus_ratio": 2.0, "peft": {"type": "slicefine"}, "method": "lime_slicefine"},
         "optim.loraplus_ratio: peft.type=slicefine has no A and B"),
    ],
)  # fmt: skip
def test_what_the_configuration_can_tell_is_told_before_a_model_is_loaded(changes: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem.replace(".", r"\.")):
        build(TrainConfig, values(FAMILY, **changes))


def test_a_run_with_such_rates_logs_them_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "callbacks__checkpoint": True, "callbacks__checkpoint_every_n_steps": 2, "callbacks__keep_checkpoints": 9,
        "evaluation__mode": "none", "peft": {"scope": "both"}, "optim__loraplus_ratio": 4.0, "trainer__max_steps": 4,
        "optim__vision_tower": {"peft_lr": 1e-3}, "optim__schedule": "constant", "optim__warmup_ratio": 0.0,
    }  # fmt: skip
    train(config(FAMILY, **options), tmp_path / "whole")
    middle = str(tmp_path / "whole" / "checkpoints" / "step-2.ckpt")
    train(config(FAMILY, **options, ckpt_path=middle), tmp_path / "resumed")
    one, two = (torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
                for name in ("whole", "resumed"))  # fmt: skip
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    with (tmp_path / "whole" / "metrics.csv").open(encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    rates = {name: float(rate) for name, rate in last.items() if name.startswith("lr/")}
    assert rates == {
        "lr/modulators": 1e-2, "lr/peft": 1e-2, "lr/peft.B": 4e-2, "lr/vision_tower.peft": 1e-3,
        "lr/vision_tower.peft.B": 4e-3,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"ckpt_path: the checkpoint has learning rates for .*peft\.B, this run for"):
        train(config(FAMILY, **{**options, "optim__loraplus_ratio": None}, ckpt_path=middle), tmp_path / "other")
