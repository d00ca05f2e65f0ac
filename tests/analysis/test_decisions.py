"""How much of a mixture routing is: the numbers on routing made up, the frozen pass against the model, the command."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from lime.analysis.decisions.measures import Tokens, explained, measured
from lime.analysis.decisions.passes import Setting, adapted_pass, frozen_pass, settings_to_try
from lime.analysis.decisions.study import Wanted, study
from lime.jobs.train import train
from lime.tuner.model import lime_layers
from lime.tuner.settings import FEATURE_SLICES, ROUTING_NORMS
from tests.analysis.test_study import adapted
from tests.training.parts import config

NUMBERS = torch.Generator().manual_seed(0)


def tokens(rows: int = 40, length: int = 30, tasks: int = 4) -> Tokens:
    prompts = [torch.randint(0, 20, (length,), generator=NUMBERS) for _ in range(rows)]
    return Tokens.of(prompts, [f"task {row % tasks}" for row in range(rows)])


def one_hot(expert_N: torch.Tensor, sure: float) -> torch.Tensor:
    p_NE = torch.full((len(expert_N), 4), (1 - sure) / 3)
    return p_NE.scatter_(1, expert_N[:, None], sure)


@pytest.mark.parametrize("name", ["identity", "position", "task"])
def test_shares_are_of_what_decides_and_nothing_by_chance(name: str) -> None:
    of = tokens()
    decides = {"identity": of.identity_N, "position": of.position_N, "task": of.task_R[of.row_N]}[name]
    found = measured(one_hot(decides % 4, 0.7), one_hot(decides % 4, 1.0), of)
    for measure, share in found.items():
        if measure.startswith(("signal_", "winner_")):
            assert share == pytest.approx(float(measure.endswith(name)), abs=0.05), measure
    assert found["experts"] == 1
    assert found["busiest"] < 0.4


def test_routing_by_rows_is_not_routing_by_tasks() -> None:
    """Twelve rows of four tasks that route each in its own way: tasks explain much of it, and no more than chance."""
    of = tokens(rows=12)
    values_RE = torch.randn(200, 12, 2, generator=NUMBERS, dtype=torch.double)
    shares = torch.tensor([explained(values_RE[draw, of.row_N], of)["task"] for draw in range(200)])
    assert float(shares.mean()) == pytest.approx(0.0, abs=0.04)


def test_the_same_for_every_token_and_no_routing_at_all() -> None:
    of = tokens()
    expert_N = torch.zeros(len(of.row_N), dtype=torch.long)
    modulators = (torch.ones(4, 3), torch.ones(3), torch.zeros(1))
    always = measured(one_hot(expert_N, 0.7), one_hot(expert_N, 1.0), of, modulators)
    assert always["constant"] == pytest.approx(1.0)
    assert always["busiest"] == 1.0
    assert always["deviation"] == always["moved"] == 0.0
    assert always["signal_identity"] != always["signal_identity"]  # NaN: nothing varies
    none = measured(torch.full((len(expert_N), 4), 0.25), torch.full((len(expert_N), 4), 0.25), of)
    assert none["entropy"] == pytest.approx(1.0)
    assert none["busiest"] == 0.25


def test_the_modulation_moves_by_what_its_definition_says() -> None:
    of = tokens()
    w_NE = torch.rand(len(of.row_N), 4, generator=NUMBERS).softmax(1)
    experts_EO, shared_O, gamma = torch.rand(4, 6, generator=NUMBERS), torch.rand(6, generator=NUMBERS), torch.ones(1)
    of_tokens_NO = w_NE @ experts_EO + gamma * shared_O
    mean_O = of_tokens_NO.mean(0)
    expected = float((of_tokens_NO - mean_O).square().mean().sqrt() / mean_O.square().mean().sqrt())
    assert measured(w_NE, w_NE, of, (experts_EO, shared_O, gamma))["moved"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("norm", ["slice", "token", "tensor"])
def test_a_setting_on_frozen_outputs_is_what_a_fresh_adapter_does(norm: str) -> None:
    setting = Setting(norm, "random", 0.4, 3, 0.3)
    model, data, rows = adapted(scope="language_model", **vars(setting))
    for layer in lime_layers(model):
        for parameter in layer.lime_delta.parameters():
            torch.nn.init.zeros_(parameter)
    layers, of, read = frozen_pass(model, data.collator, rows)
    routed, again, _ = adapted_pass(model, data.collator, rows, "test")
    assert [row.id for row in read] == [row.id for row in rows]
    assert torch.equal(of.identity_N, again.identity_N)
    assert set(layers) == set(routed) == {layer.key for layer in lime_layers(model)}
    for key, (p_NE, w_NE) in routed.items():
        settings = next(iter(layers[key].layer.lime_settings.values()))
        expected_NE, weights_NE = layers[key].routed(setting, settings)
        assert p_NE == pytest.approx(expected_NE, abs=1e-5)
        assert w_NE == pytest.approx(weights_NE, abs=1e-4)
        assert float(p_NE.std(0).max()) > 1e-3


def test_settings_vary_one_option_at_a_time() -> None:
    settings = settings_to_try()
    assert len(set(settings)) == len(settings)
    assert {one.routing_norm for one in settings} == set(ROUTING_NORMS)
    assert {one.feature_slice for one in settings} == set(FEATURE_SLICES)
    assert {one.num_experts for one in settings} == {2, 4, 8, 64}


def test_the_command_on_a_frozen_model_and_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(evaluation__mode="none", trainer__max_steps=2)
    train(settings, tmp_path / "run")
    (tmp_path / "run" / "adapter" / ".lime-made.json").unlink()  # as of a run that was copied from another machine
    written = study(settings, Wanted(3, (tmp_path / "run",), tmp_path / "out", "routing"))
    figures = ["entropy", "busiest", "agreement", "trained"]
    assert [path.name for path in written] == [
        "routing.md",
        "routing.csv",
        *(f"routing_{name}.png" for name in figures),
    ]
    assert all(path.stat().st_size > 500 for path in written)
    with written[1].open(encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line["projection"] == "all"]
    frozen, run = lines[0], lines[-1]
    assert (frozen["source"], frozen["routing_norm"], run["source"]) == ("frozen", "slice", "run")
    assert 0 < float(frozen["moved"]) < 0.1  # fresh experts lie within a tenth of one
    assert float(run["moved"]) > 0
    by_norm = {line["routing_norm"]: line for line in lines if line["gamma_routing"] == "0.0000"}
    assert float(by_norm["slice"]["entropy"]) < float(by_norm["token"]["entropy"]) < 1
    assert float(by_norm["standard"]["constant"]) < 1e-3 < float(by_norm["scaled"]["constant"])  # no feature has a mean
    assert by_norm["slice"]["busiest"] == frozen["busiest"]  # no norm, and no gamma before training, changes who wins
    text = written[0].read_text(encoding="utf-8")
    assert "9 rows" in text or "rows 9" in text

    other = config("qwen2_vl", evaluation__mode="none")
    chosen = config(evaluation__mode="none", evaluation__splits=["sst2", "caltech101"])
    written = study(chosen, Wanted(3, (tmp_path / "run",), tmp_path / "chosen", "routing"))
    assert "6 rows" in (text := written[0].read_text(encoding="utf-8")) or "rows 6" in text

    monkeypatch.setattr("lime.analysis.decisions.study.frozen_pass", None)  # said before anything is measured
    with pytest.raises(ValueError, match="was trained on tiny_llava_onevision"):
        study(other, Wanted(3, (tmp_path / "run",), tmp_path / "other", "routing"))
    (tmp_path / "out" / "tables" / "routing.csv").write_text("mine")
    (tmp_path / "out" / "tables" / "routing.md").write_text("mine")
    with pytest.raises(FileExistsError, match="was not written by this program"):
        study(settings, Wanted(3, (), tmp_path / "out", "routing"))
