"""The pass over test rows agrees with the model's own account; the command on short runs; what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

import lime
from lime.analysis.study.collecting import Wanted, collect
from lime.analysis.study.findings import approximation_findings, labelled, routing_findings
from lime.analysis.study.names import short_names
from lime.config.schema import EvalConfig
from lime.data.datamodule import MMTDataModule
from lime.data.rows import Row
from lime.data.tasks import mmt47
from lime.jobs.setup import open_data
from lime.jobs.train import train
from lime.models.loading import load_backbone
from lime.tuner.layers.linear import LimeLinear
from lime.tuner.model import lime_layers
from scripts.analyse import main
from tests.training.parts import config

SPLITS = ("glue_test_sst2", "image_test_caltech101", "video_test_action_sequence")


def adapted(family: str = "llava_onevision", **options: object) -> tuple[nn.Module, MMTDataModule, list[Row]]:
    """A model with a random adapter, and two test rows of each modality."""
    settings = config(family)
    backbone = load_backbone(settings.model)
    data = open_data(EvalConfig(model=settings.model, data=settings.data), backbone, batch_size=1)
    torch.manual_seed(0)
    model, _ = lime.apply(backbone.model, **{"r": 2, "scope": "both", **options})  # type: ignore[arg-type]
    for layer in lime_layers(model):
        for parameter in layer.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.1)
    rows = [row for split in SPLITS for row in data.test_rows(split)[:2]]
    return model.eval(), data, rows


@pytest.mark.parametrize(
    "options",
    [{"num_experts": 3, "n_gram": 3}, {"num_experts": 3, "peft": "dora"}, {"num_experts": 4, "peft": "moe_lora"}],
    ids=["lime_windows", "lime_dora", "moe_lora"],
)
def test_a_pass_agrees_with_the_record_and_with_the_layers(options: dict[str, object]) -> None:
    model, data, rows = adapted(**options)
    found = collect(model, data.collator, rows, Wanted(states=True, maps=2, tokens=2, window=3), "test")
    assert [row.id for row in found.rows] == [row.id for row in rows]
    linear = {layer.key: layer for layer in lime_layers(model) if isinstance(layer, LimeLinear)}
    assert set(found.updates) == set(linear) == set(found.seen)
    vision = [key for key in linear if "vision" in key]
    assert len(vision) > 0
    assert all(found.seen[key].tolist() == ([2, 3, 4, 5] if key in vision else [0, 1, 2, 3, 4, 5]) for key in linear)
    routing = routing_findings(found, labelled(found.rows, mmt47()))
    assert set(routing["by"]["modality"]["text"]) == set(linear) - set(vision)
    assert set(routing["by"]["modality"]["video"]) == set(linear)
    outputs: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_hook(
            lambda layer, x, y: outputs.__setitem__(layer.key, (y - layer.base_layer(x[0])).flatten(0, -2)[-1])
        )
        for layer in linear.values()
    ]
    for index, row in enumerate(rows):
        outputs.clear()
        inputs = {k: v for k, v in data.collator.prompt_batch([row]).items() if isinstance(v, Tensor)}
        with torch.no_grad(), lime.record(model) as recorder:
            hidden = model(**inputs, output_hidden_states=True).hidden_states
        statistics = recorder.statistics()
        for name, layer in statistics.items():
            routed = found.routing[name.rpartition(":")[0]]
            (at,) = np.flatnonzero(found.seen[name.rpartition(":")[0]] == index)
            assert routed.probability_RE[at] == pytest.approx(layer.mean_probability.numpy(), abs=1e-4)
            assert routed.active_RE[at] == pytest.approx(layer.usage.numpy(), abs=1e-5)
            assert routed.entropy_R[at] == pytest.approx(float(layer.entropy), abs=1e-4)
        for key, update in outputs.items():
            (at,) = np.flatnonzero(found.seen[key] == index)
            assert found.updates[key][at] == pytest.approx(update.numpy(), rel=1e-3, abs=1e-4)
        assert found.states_LRH is not None
        assert found.states_LRH[:, index] == pytest.approx(np.stack([h[0, -1].numpy() for h in hidden]), abs=1e-3)
    for handle in handles:
        handle.remove()
    assert found.windows_LNnH is not None
    assert found.windows_LNnH.shape[0::2] == (3, 3)
    assert len(found.clouds) == 2
    still = collect(model, data.collator, rows, Wanted(states=True), "test", frozen=True)
    assert not still.routing
    assert not still.updates
    with torch.no_grad(), model.disable_adapter():  # type: ignore[operator]
        last = model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1]
    assert still.states_LRH is not None
    assert still.states_LRH[-1, -1] == pytest.approx(last.numpy(), abs=1e-5)


def test_modulators_fit_a_model_whose_experts_are_modulated() -> None:
    model, data, rows = adapted(num_experts=3, peft="moe_lora", scope="language_model")
    for layer in lime_layers(model):
        delta = layer.lime_delta["default"]
        with torch.no_grad():
            delta.A[:6] = delta.A[:2].repeat(3, 1)
            delta.B[:, :6] = (torch.rand(3, len(delta.B), 1) + 0.5).mul(delta.B[:, :2]).transpose(0, 1).flatten(1)
    found = collect(model, data.collator, rows, Wanted(), "test")
    fitted = approximation_findings(model, found.moments, rank=2)
    assert set(fitted["layers"]) == {layer.key for layer in lime_layers(model)} == set(found.moments)
    for layer_found in fitted["layers"].values():
        assert layer_found["alone"]["any_rank"] < 1e-5
        assert layer_found["alone"]["of_rank"] < 1e-4
        assert layer_found["alone"]["mean_only"] > 0.1
        assert layer_found["alone"]["unrelated"] > 0.01  # inputs that barely vary leave little to fit


def test_names() -> None:
    assert short_names(["m.layers.0.attn.q", "m.layers.1.attn.q"]) == ["0", "1"]
    assert short_names(["m.layers.0.attn.q", "m.layers.0.attn.k"]) == ["q", "k"]
    assert short_names(["m.a", "m.a.b"]) == ["m.a", "m.a.b"]
    row = Row("glue_test_sst2/3", "glue_test_sst2", 3, "text", "", "?", "positive")
    names = labelled([row], mmt47())
    assert names.labels == {"task": ["glue_test_sst2"], "category": ["glue"], "modality": ["text"]}
    assert names.clusters == [row.id]
    assert not names.can_probe


def saved(folder: Path, fingerprint: str = "0" * 64) -> Path:
    """What of a run is read before a model is loaded."""
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    content = {"config": {"method": "lora"}, "backbone": {"name": folder.name, "fingerprint": fingerprint}}
    (folder / "adapter" / "run.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["empty"], "holds no adapter"),
        (["run", "--against", "empty"], "holds no adapter"),
        (["run", "--against", "other"], "compare runs on one backbone"),
        (["run", "--rows", "2"], "at least 3"),
        (["run", "--window", "1"], "at least 2 tokens"),
        (["sweep", "--against", "run"], "not of a sweep"),
        (["sweep"], "expected a sweep over lime.num_experts"),
    ],
)
def test_refusals_come_before_a_model(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("sweep").mkdir()
    Path("sweep/sweep.json").write_text(json.dumps({"schema": "lime-sweep/1", "command": [], "runs": []}))
    saved(Path("run"))
    saved(Path("other"), "1" * 64)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert message in said


@pytest.mark.slow
def test_the_command_on_short_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A LiME run against a MoE-LoRA run; a run without experts; a sweep over their number."""
    mixture = {"peft__type": "moe_lora", "method": "moe_lora", "lime__num_experts": 2}
    runs = {
        "lime": {"name": "lime"},
        "mixture": mixture,
        "plain": {"method": "lora", "lime__enabled": False},
        "two": {"lime__num_experts": 2},
    }
    for name, changes in runs.items():
        folder = tmp_path / ("sweep" if name in ("lime", "two") else "") / name
        train(config(evaluation__mode="none", **changes), folder)
    lime_run = tmp_path / "sweep" / "lime"

    out = tmp_path / "out"
    assert main([str(lime_run), "--against", str(tmp_path / "mixture"), "--rows", "4", "--out", str(out)]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines() if line.startswith(str(out))]
    figures = {"routing", "tasks", "information", "maps", "windows", "cka", "approximation"}
    assert {path.name for path in written} == {
        "analysis.json", "analysis.md", *(f"{name}.{kind}" for name in figures for kind in ("png", "pdf"))
    }  # fmt: skip
    found = json.loads((out / "analysis.json").read_text())
    assert found["schema"] == "lime-analysis/2"
    assert found["rows"]["count"] == 12
    layers = found["routing"]["layers"]
    assert all(sum(layer["usage"]) == pytest.approx(1.0, abs=1e-5) for layer in layers.values())
    assert set(found["routing"]["by"]["modality"]) == {"text", "image", "video"}
    assert len(found["windows"]["blocks"][0]["positions"]) == 3
    assert set(found["approximation"]["layers"]) == set(found["cka"]["updates"]) == set(layers)
    text = (out / "analysis.md").read_text()
    assert all(f"({name}.png)" in text for name in figures)

    assert main([str(tmp_path / "plain"), "--rows", "4"]) == 2
    assert "has no experts" in capsys.readouterr().err
    assert main([str(lime_run), "--rows", "4", "--splits", "sst2,nowhere"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: evaluation.splits: nowhere not in ")

    assert main([str(tmp_path / "sweep"), "--rows", "4", "--out", str(tmp_path / "experts")]) == 0
    points = json.loads((tmp_path / "experts" / "analysis.json").read_text())["sweep"]["points"]
    assert [point["num_experts"] for point in points] == [2, 4]
    assert points[0]["step"] is None
    step = points[1]["information"]["value"] - points[0]["information"]["value"]
    assert points[1]["step"]["value"] == pytest.approx(step)
    assert (tmp_path / "experts" / "experts.png").stat().st_size > 1000
