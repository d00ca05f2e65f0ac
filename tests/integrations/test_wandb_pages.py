"""The dashboard and the sweep file of Weights & Biases, built with its own libraries and nobody logged in."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from lime.config.identity import config_hash
from lime.config.overrides import register
from lime.config.schema import TrainConfig
from lime.jobs.compose import composed
from scripts.wandb_dashboard import main as dashboard
from scripts.wandb_sweep import main as sweep

ROOT = Path(__file__).parents[2]
SECTIONS = ["Runs by method", "Categories", "Routing", "Efficiency", "Predictions"]


@pytest.fixture
def pages(tmp_path: Path) -> list[dict[str, Any]]:
    pytest.importorskip("wandb_workspaces")
    for _ in range(2):  # what it wrote it replaces
        arguments = ["--experiment", "num_experts", "--entity", "me", "--dry-run", str(tmp_path / "spec.json")]
        assert dashboard(arguments) == 0
    content: list[dict[str, Any]] = json.loads((tmp_path / "spec.json").read_text())["pages"]
    return content


def test_dry_run_writes_workspace_and_report(pages: list[dict[str, Any]]) -> None:
    workspace, report = pages
    assert (workspace["type"], workspace["entity"], workspace["project"]) == ("Workspace", "me", "lime")
    assert [section["name"] for section in workspace["sections"]] == SECTIONS
    assert [group["name"] for group in workspace["runset_settings"]["groupby"]] == ["Group", "method"]
    grids = [block for block in report["blocks"] if block["type"] == "PanelGrid"]
    assert [block["text"] for block in report["blocks"] if block["type"] == "H2"] == SECTIONS
    assert {grid["runsets"][0]["filters"] for grid in grids} == {"Metric('Group') = 'num_experts'"}
    for grid in grids:  # no panel lies on another
        places = [(panel["layout"]["x"], panel["layout"]["y"]) for panel in grid["panels"]]
        assert len(set(places)) == len(places)
        assert all(panel["layout"]["x"] + panel["layout"]["w"] <= 24 for panel in grid["panels"])


def test_workspace_becomes_what_is_sent() -> None:
    pytest.importorskip("wandb_workspaces")
    from lime.integrations import wandb_dashboard

    sent = wandb_dashboard.workspace("me", "lime")._to_model().model_dump(by_alias=True)
    sections = sent["spec"]["section"]["panelBankConfig"]["sections"]
    bars = sections[0]["panels"][0]
    assert bars["viewType"] == "Bar Chart"
    assert bars["config"]["metrics"] == ["summary_metrics.score/macro"]
    assert bars["config"]["groupBy"] == "method.value"
    assert [section["name"] for section in sections] == SECTIONS


def test_saving_without_a_login_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb_workspaces")
    assert dashboard([]) == 2  # tests run with WANDB_MODE=offline
    assert "wandb login" in capsys.readouterr().err


@pytest.mark.parametrize("experiment", ["num_experts", "balance", "router"])
def test_sweep_file_has_every_value(experiment: str, tmp_path: Path) -> None:
    assert sweep([experiment, "--out", str(tmp_path / "sweep.yaml")]) == 0
    content = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
    params = OmegaConf.load(ROOT / "experiments" / f"{experiment}.yaml").hydra.sweeper.params
    assert (content["method"], content["program"], content["name"]) == ("grid", "train.py", experiment)
    assert {key: found["values"] for key, found in content["parameters"].items()} == {
        key: [yaml.safe_load(value) for value in str(text).split(",")] for key, text in params.items()
    }


def test_agents_run_the_points_of_the_experiment(tmp_path: Path) -> None:
    """What W&B's agent makes of the command, read by this project's own command line."""
    assert sweep(["num_experts", "seed=7", "data=mmt47_mini_small", "--out", str(tmp_path / "s.yaml")]) == 0
    content = yaml.safe_load((tmp_path / "s.yaml").read_text())
    assert list(content["parameters"]) == ["lime.num_experts"]  # seed was named, so it is not swept
    arguments = create_sweep_command_args({"args": {"lime.num_experts": {"value": 3}}})
    command = []
    for part in create_sweep_command(content["command"]):
        command += arguments.get(part[2:-1], [part])
    assert command[:3] == ["${env}", "${interpreter}", "${program}"]
    overrides = command[3:]
    register(TrainConfig, ROOT / "experiments")
    config = composed(overrides, ROOT / "conf", "train", TrainConfig)
    assert (config.lime.num_experts, config.seed, config.data.train_rows) == (3, 7, 3300)
    assert config.logger.wandb is not None
    assert (config.logger.wandb.project, config.logger.wandb.group) == ("lime", "num_experts")
    assert "hydra.run.dir=multirun/num_experts/${run_id:}" in overrides
    direct = composed(
        ["+experiment=num_experts", "data=mmt47_mini_small", "lime.num_experts=3", "seed=7"],
        ROOT / "conf", "train", TrainConfig,
    )  # fmt: skip
    assert config_hash(dataclasses.asdict(config)) == config_hash(dataclasses.asdict(direct))


def test_wrong_values_are_told_before_a_file_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(["num_experts", "lime.num_experts=0,2", "--out", str(tmp_path / "s.yaml")]) == 2
    assert "expected at least 1 expert" in capsys.readouterr().err
    assert not (tmp_path / "s.yaml").exists()
