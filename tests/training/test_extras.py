"""trainer.extra, callbacks.extra and logger.extra: what passes, what is refused by name, and what a resume keeps."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lime.config.check import ConfigError
from lime.config.identity import config_hash
from lime.jobs.train import train
from lime.training.extras import SET_BY, made_extras
from tests.training.parts import config, metrics, values

OWN = "tests.training.own_code"
COUNTING = {"_target_": f"{OWN}.Counting"}
QUICK: dict[str, Any] = {"evaluation__mode": "none", "trainer__max_epochs": 1}
PASSED: dict[str, Any] = {
    "benchmark": True, "detect_anomaly": True, "enable_autolog_hparams": False, "enable_model_summary": True,
    "fast_dev_run": False, "gradient_clip_algorithm": "value", "inference_mode": False, "limit_train_batches": 3,
    "limit_val_batches": 1, "max_time": "00:01:00:00", "min_epochs": 1, "min_steps": 1, "model_registry": None,
    "num_sanity_val_steps": 1, "overfit_batches": 0.0, "reload_dataloaders_every_n_epochs": 1,
    "sync_batchnorm": False,
}  # fmt: skip


def test_every_argument_of_the_trainer_is_reachable(tmp_path: Path) -> None:
    """By an option of this project or by trainer.extra; the latter all at once, in a run."""
    profiler = {
        "_target_": "lightning.pytorch.profilers.SimpleProfiler", "dirpath": str(tmp_path), "filename": "profile"
    }  # fmt: skip
    plugin = {"_target_": "lightning.pytorch.plugins.io.AsyncCheckpointIO"}
    nodes = {"profiler": profiler, "plugins": []}
    arguments = inspect.signature(pl.Trainer).parameters
    assert set(arguments) == {*SET_BY, *PASSED, *nodes}
    assert made_extras(config(trainer__extra={"plugins": [plugin]})).trainer["plugins"][0].__class__.__module__
    some = {"trainer__validate_every_n_epochs": 1, "data__validation_fraction": 0.3}
    train(config(**QUICK, **some, trainer__extra={**PASSED, **nodes}), tmp_path / "run")
    assert [row["step"] for row in metrics(tmp_path / "run") if row["loss/task"]] == ["1", "2", "3"]
    assert any("run_training_batch" in path.read_text() for path in tmp_path.glob("*profile*"))


@pytest.mark.parametrize("name", SET_BY)
def test_an_argument_that_an_option_sets_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"trainer\.extra\.{name}: is set by "):
        made_extras(config(trainer__extra={name: 1}))


@pytest.mark.parametrize(
    ("section", "value", "told"),
    [
        ("trainer", {"limit_trian_batches": 1}, "limit_trian_batches: no argument of Lightning's Trainer"),
        ("trainer", {"limit_train_batches": 1.5}, "trainer.extra.limit_train_batches: Lightning refuses this"),
        ("callbacks", [{"_target_": "no_such.Thing"}], r"callbacks.extra[0]: no_such.Thing: ImportError"),
        ("callbacks", [{"_target_": f"{OWN}.Nothing"}], r"No module named"),
        ("callbacks", [{**COUNTING, "steps": 1}], "unexpected keyword argument 'steps'"),
        ("callbacks", [COUNTING, {"_target_": f"{OWN}.Notes", "path": "x"}], "callbacks.extra[1]"),
        ("callbacks", [COUNTING, COUNTING], "more than one stateful callback"),
        ("logger", [{"_target_": "pathlib.Path"}], "logger.extra[0]: pathlib.Path: has no method log_metrics"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_before_the_model_is_loaded(
    section: str, value: Any, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lime.jobs.train.load_backbone", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(ConfigError) as caught:
        train(config(**QUICK, **{f"{section}__extra": value}), tmp_path)
    assert told in str(caught.value)
    assert "\n" not in caught.value.problems[0]


def test_a_node_without_a_class_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"callbacks\.extra\[0\]: expected _target_"):
        config(callbacks__extra=[{"class": "x"}])


def test_own_callbacks_keep_their_state_and_make_another_run(tmp_path: Path) -> None:
    options = {**QUICK, "callbacks__checkpoint": True, "callbacks__extra": [{**COUNTING, "start": 100}]}
    options["trainer__max_epochs"] = 2
    train(config(**options, trainer__max_steps=3), tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    counts = [state for key, state in _states(last).items() if "Counting" in key]
    assert counts == [{"count": 103}]
    train(config(**options, trainer__max_steps=5, ckpt_path=str(last)), tmp_path / "further")
    assert {"count": 105} in _states(tmp_path / "further" / "checkpoints" / "last.ckpt").values()
    plain = config_hash(values(**QUICK))
    assert config_hash(values(**QUICK, callbacks__extra=[COUNTING])) != plain
    assert config_hash(values(**QUICK, callbacks__extra=[])) == plain
    assert config_hash(values(**QUICK, trainer__extra={"min_steps": 2})) != plain


def _states(path: Path) -> dict[str, Any]:
    states: dict[str, Any] = torch.load(path, weights_only=True)["callbacks"]
    return states


def test_several_loggers_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Event files with the rows of metrics.csv, the costs and scores; a logger of one's own; one that fails."""
    notes, csv = tmp_path / "notes", tmp_path / "csv"
    own = [
        {"_target_": f"{OWN}.Notes", "path": str(notes)},
        {"_target_": f"{OWN}.Broken"},
        {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(csv)},
    ]
    options = {"trainer__max_epochs": 1, "callbacks__extra": [COUNTING], "callbacks__checkpoint": True}
    settings = config(**options, logger__tensorboard=True, logger__extra=own, evaluation__baseline_frozen=False)
    train(settings, tmp_path / "run")
    rows = metrics(tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    losses = events.Scalars("loss/task")
    assert [event.step for event in losses] == [int(row["step"]) for row in rows]
    assert [event.value for event in losses] == pytest.approx([float(row["loss/task"]) for row in rows])
    tags = events.Tags()
    assert {"score/macro", "parameters/trainable", "counted"} <= set(tags["scalars"])
    assert tags["images"] == ["routing/usage_by_layer"]
    lines = [line.split() for line in notes.read_text().splitlines()]
    noted = {int(step): float(value) for step, key, value in lines if key == "loss/task"}
    assert noted == pytest.approx({int(row["step"]): float(row["loss/task"]) for row in rows})
    assert [float(value) for _, key, value in lines if key == "counted"] == [1, 2, 3, 4, 5, 6]
    assert any(key == "score/macro" for _, key, _ in lines)
    assert "logger.extra: log_metrics: the server is gone" in caplog.text
    assert list(csv.rglob("metrics.csv"))
    train(settings, tmp_path / "run")  # again, from the checkpoint of its end: nothing twice
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/task")] == [int(row["step"]) for row in rows]


def test_tensorboard_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lime.config.training.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"logger\.tensorboard: needs tensorboard.*pip install 'lime-moe\[tensorb"):
        config(logger__tensorboard=True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"trainer__devices": [0, 0], "trainer__accelerator": "gpu"}, "trainer.devices: expected different numbers"),
        ({"trainer__devices": [0, 1]}, "trainer.devices: a list names GPUs"),
        ({"trainer__devices": 2, "trainer__accelerator": "mps"}, "trainer.devices: mps is one device"),
    ],
)  # fmt: skip
def test_devices_that_cannot_be_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told.replace(".", r"\.")):
        config(**options)


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"trainer__accelerator": "mps"}, "trainer.accelerator: mps was asked for"),
        ({"trainer__accelerator": "auto", "trainer__devices": [1]}, "names GPUs, of which torch sees 0"),
    ],
)
def test_devices_that_are_not_there_are_told(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told.replace(".", r"\.")):
        train(config(**QUICK, **options), tmp_path)
