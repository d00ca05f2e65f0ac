"""An offline run with the real client holds metrics, configuration, a table with pictures, and the heat map."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from PIL import Image

from lime.config.sweeps import Plan, PlannedRun
from lime.config.training import WandbConfig
from lime.data.tasks import CATEGORIES
from lime.evaluation.aggregation import MACRO
from lime.evaluation.predictions import Prediction, read_predictions
from lime.evaluation.report import read_results
from lime.jobs.train import train
from lime.loggers.usage import usage_figure
from lime.loggers.values import EXACT_MATCH, USAGE, score_key
from lime.loggers.wandb import PREDICTIONS, WandbRun, resolve_mode, run_id, sample
from lime.runs.record import read_record
from lime.training.metrics import COLUMNS
from tests.training.parts import config, data_root, metrics
from tests.training.wandb_file import merged, records_at_end, values


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The W&B folder of a run of a sweep named "made"."""
    sweep = tmp_path_factory.mktemp("wandb") / "made"
    point = {"lime.num_experts": 4, "seed": 1}
    Plan(sweep, (), (PlannedRun("run", point), PlannedRun("other", {**point, "seed": 2}))).write()
    train(config(trainer__max_steps=4, logger__wandb={"mode": "offline", "samples": 6}), sweep / "run")
    (folder,) = (sweep / "run" / "wandb").glob("offline-run-*")
    return folder


@pytest.fixture(scope="module")
def record(offline: Path) -> list[Any]:
    """Everything in the run's file."""
    return records_at_end(offline)


def test_metrics_are_those_of_the_run_s_own_file(offline: Path, record: list[Any]) -> None:
    rows = metrics(offline.parents[1])
    history = [values(one.history.item) for one in record if one.HasField("history")]
    logged = [row for row in history if "loss/task" in row]
    assert [row["_step"] for row in logged] == [int(row["step"]) for row in rows] == [1, 2, 3, 4]
    for key in ("loss/task", "loss/importance", "routing/entropy", "routing/experts_active", "lr/modulators"):
        assert [row[key] for row in logged] == pytest.approx([float(row[key]) for row in rows]), key
    assert [one.exit.exit_code for one in record if one.HasField("exit")] == [0]


def test_summary_and_configuration_are_the_run_s(offline: Path, record: list[Any]) -> None:
    folder = offline.parents[1]
    summary, settings = merged(record, "summary"), merged(record, "config")
    evaluation, _ = read_results(folder)
    assert summary[score_key(MACRO)] == pytest.approx(evaluation.macro.score.value)
    assert summary[EXACT_MATCH] == pytest.approx(evaluation.macro.exact_match.value)
    for score in evaluation.splits:
        assert summary[score_key(score.split)] == pytest.approx(score.value)
    measured = read_record(folder)
    assert measured.parameters is not None
    assert measured.training is not None
    assert summary["parameters/trainable"] == measured.parameters.trainable
    assert summary["training/samples_per_second"] == pytest.approx(measured.training.samples_per_second)
    assert summary["adapter_bytes"] == measured.adapter_bytes
    assert settings["lime"]["num_experts"] == 4
    assert settings["environment"]["data_fingerprint"] == measured.identity.data


def test_a_run_of_a_sweep_is_named_by_its_point_in_the_group_of_the_sweep(record: list[Any]) -> None:
    (run,) = {(one.run.run_group, one.run.display_name) for one in record if one.HasField("run")}
    assert run == ("made", "main num_experts=4 seed=1")


def test_table_of_predictions_holds_pictures_and_frames(offline: Path, record: list[Any]) -> None:
    logged = merged(record, "history")[PREDICTIONS]
    assert (logged["_type"], logged["nrows"]) == ("table-file", 6)
    assert (offline / "files" / logged["path"]).is_file()
    (artifact,) = (one.artifact for one in record if one.HasField("artifact"))
    assert artifact.type == "run_table"
    content = {entry.path: Path(entry.local_path).read_bytes() for entry in artifact.manifest.contents}
    for entry in artifact.manifest.contents:
        assert base64.b64encode(hashlib.md5(content[entry.path]).digest()).decode() == entry.digest
    table = json.loads(content[f"{PREDICTIONS}.table.json"])
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    stored = {p.id: p for p in read_predictions(offline.parents[1])}
    for row in rows:
        made = stored[row["id"]]
        assert (row["raw"], row["truth"], row["correct"]) == (made.raw, made.truth, made.correct)
    pictures = {row["task"]: row["picture"] for row in rows}
    assert pictures.pop("glue_test_sst2") is None
    sizes = {task: Image.open(io.BytesIO(content[shown["path"]])).size for task, shown in pictures.items()}
    shown_image = [stored[row["id"]].media_path for row in rows if row["task"] == "image_test_caltech101"][-1]
    assert sizes["image_test_caltech101"] == Image.open(data_root() / shown_image).size
    assert sizes["video_test_action_sequence"] == (4 * 48, 48)  # four frames of a clip side by side


def test_heat_map_of_expert_usage(offline: Path, record: list[Any]) -> None:
    logged = merged(record, "history")[USAGE]
    assert logged["_type"] == "image-file"
    assert Image.open(offline / "files" / logged["path"]).size == (logged["width"], logged["height"])


def logged_keys(value: Any) -> Iterator[str]:
    """Every key that the panels of a specification name."""
    parts: Any = value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
    if isinstance(value, dict):
        key = {"LinePlot": "y", "MediaBrowser": "media_keys", "WeavePanelSummaryTable": "table_name"}
        named = value.get((key | {"SummaryMetric": "name"}).get(value.get("type"), ""), [])
        yield from [named] if isinstance(named, str) else named
    for part in parts:
        yield from logged_keys(part)


def test_every_key_of_the_dashboard_is_logged(record: list[Any]) -> None:
    pytest.importorskip("wandb_workspaces")
    from lime.integrations import wandb_dashboard

    pages = [wandb_dashboard.workspace("e", "p"), wandb_dashboard.report("e", "p")]
    named = {key for page in pages for key in logged_keys(wandb_dashboard.spec(page))}
    assert {score_key(MACRO), "loss/task", "routing/entropy", "training/peak_memory_mb", USAGE, PREDICTIONS} <= named
    logged = {*merged(record, "history"), *merged(record, "summary")}
    absent = {key for key in named if key not in logged}
    # the run above has no validation part and rows of three of the seven categories
    assert absent == {"val/loss", *(score_key(name) for name in CATEGORIES)} - logged
    assert "val/loss" in COLUMNS


def test_log_says_how_to_upload(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    run = WandbRun(WandbConfig(mode="offline"), "alone", tmp_path, {})
    run.finish(failed=False)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert caplog.messages[-1] == f"wandb: this run is offline; once logged in, upload with: wandb sync {folder}"


def test_mode_follows_the_environment_then_the_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode("auto") == "disabled"
    assert resolve_mode("online") == "online"
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert resolve_mode("auto") == "offline"


def test_sample_takes_splits_in_turn() -> None:
    made = [Prediction(f"{s}/{i}", s, "q", "", "r", "r", "r", True) for s in "ab" for i in range(3)]
    assert [p.id for p in sample(made, 4)] == ["a/0", "b/0", "a/1", "b/1"]


def test_heat_map_has_a_row_per_layer_and_a_column_per_expert() -> None:
    figure = usage_figure({"model.layers.0.q": [0.2, 0.8], "model.layers.1.q": [0.5, 0.5]})
    (image,) = figure.axes[0].images
    assert image.get_array().shape == (2, 2)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0.q", "1.q"]
    assert image.norm.vmin + image.norm.vmax == pytest.approx(1.0)  # centred on the uniform share
    with pytest.raises(ValueError, match="no expert usage"):
        usage_figure({})


def test_a_login_without_its_server_is_offline_with_a_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def refused(**_: object) -> bool:
        raise wandb.errors.AuthenticationError("cannot be reached\nmore")

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(wandb, "login", refused)
    assert resolve_mode("auto") == "offline"
    assert "wandb: cannot be reached; offline instead (logger.wandb.mode=offline does not ask)" in caplog.messages
    started = wandb.init

    def init(**options: Any) -> Any:
        if options["mode"] == "online":
            raise wandb.errors.CommError("no such host")
        return started(**options)

    monkeypatch.setattr(wandb, "init", init)
    run = WandbRun(WandbConfig(mode="online"), "alone", tmp_path, {})
    run.finish(failed=False)
    assert any(text.startswith("wandb: no such host; offline instead") for text in caplog.messages)
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_a_folder_is_one_run_whatever_its_restarts(tmp_path: Path) -> None:
    for continues in (False, True, False):
        WandbRun(WandbConfig(mode="offline"), "alone", tmp_path, {}, continues=continues).finish(failed=True)
    names = [path.name for path in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")]
    assert len(set(names)) == 1
    assert names[0] == f"run-{run_id(tmp_path)}.wandb"
    assert run_id(tmp_path / "wandb") != run_id(tmp_path)


def test_what_goes_wrong_with_wandb_does_not_end_a_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = WandbRun(WandbConfig(mode="offline"), "alone", tmp_path, {})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(type(run._run), "log", full)
        run.log_metrics({"loss/task": 1.0}, 1)
    assert "wandb: log_metrics: [Errno 28] No space left on device" in caplog.text
    run.finish(failed=False)
