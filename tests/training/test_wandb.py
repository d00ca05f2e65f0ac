"""An offline run with the real client holds metrics, configuration, a table with pictures, and the heat map."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from PIL import Image

from lime.analysis.usage import usage_figure
from lime.evaluation.predictions import Prediction
from lime.integrations.wandb_run import resolve_mode, sample
from lime.training.job import train
from tests.training.parts import config


def test_offline_run_holds_table_pictures_and_heat_map(tmp_path: Path) -> None:
    train(config(trainer__max_steps=2, logger__wandb={"mode": "offline", "samples": 6}), tmp_path)
    (offline,) = (tmp_path / "wandb").glob("offline-run-*")
    (record,) = offline.glob("run-*.wandb")
    expected = (b"loss/task", b"routing/entropy", b"lr/modulators", b"exact_match/macro", b"num_experts")
    deadline = time.monotonic() + 60  # the client's own process writes the record, and may end after the run
    while (missing := [w for w in expected if w not in record.read_bytes()]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not missing
    media = offline / "files" / "media"
    (table_file,) = media.glob("table/predictions*.table.json")
    table = json.loads(table_file.read_text())
    assert len(table["data"]) == 6
    splits = [row[table["columns"].index("task")] for row in table["data"]]
    pictures = [row[table["columns"].index("picture")] for row in table["data"]]
    assert {split: picture is not None for split, picture in zip(splits, pictures, strict=True)} == {
        "glue_test_sst2": False,
        "image_test_caltech101": True,
        "video_test_action_sequence": True,
    }
    staged = list((tmp_path / "wandb" / "artifacts" / "staging").rglob("*"))
    shapes = {Image.open(path).size for path in staged if path.is_file() and path.read_bytes()[:4] == b"\x89PNG"}
    assert (4 * 48, 48) in shapes  # four frames of a clip
    assert (48, 40) in shapes  # an image
    tables = [json.loads(path.read_text()) for path in staged if path.is_file() and path.read_bytes()[:1] == b"{"]
    assert any(row[2] and row[2]["_type"] == "image-file" for found in tables for row in found.get("data", []))
    (heat_map,) = media.glob("images/routing/usage_by_layer*.png")
    assert Image.open(heat_map).height > 100


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
