"""Records: what a run writes, and what reading refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from lime.evaluation.aggregation import MACRO
from lime.evaluation.report import read_results
from lime.experiments.estimates import seed_mean
from lime.jobs.train import train
from lime.runs.record import Record, RecordError, read_record, write_record
from tests.experiments.made import record
from tests.training.parts import config


def broken(folder: Path, **changes: Any) -> Path:
    """A written record with some of its keys replaced; dotted names go into sections."""
    path = write_record(folder, record())
    values = json.loads(path.read_text())
    for key, value in changes.items():
        *sections, name = key.split("__")
        target = values
        for section in sections:
            target = target[section]
        target[name] = value
    path.write_text(json.dumps(values))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("record") / "run"
    train(config(data__validation_fraction=0.2, trainer__validate_every_n_epochs=1), folder, ["seed=1"])
    return folder


def test_run_writes_a_record_that_holds_everything(run: Path) -> None:
    found = read_record(run)
    assert (found.status, found.seed, found.overrides, found.error) == ("finished", 1, ["seed=1"], None)
    assert found.config["lime"]["num_experts"] == 4
    assert found.environment is not None
    assert found.identity.data == found.environment["data_fingerprint"]
    assert found.parameters is not None
    assert found.parameters.trainable > 0
    assert found.parameters.total > found.parameters.trainable
    assert found.adapter_bytes == (run / "adapter" / "adapter_model.safetensors").stat().st_size
    training = found.training
    assert training is not None
    assert (training.steps, [v["step"] for v in training.validation]) == (10, [5, 10])
    assert training.rows == 2 * 19  # two epochs over what the validation part leaves of 24 rows
    assert min(training.samples_per_second, training.tokens_per_second, training.peak_memory_mb) > 0
    assert len(found.routing) == found.parameters.adapted_layers
    assert all(sum(layer["usage"]) == pytest.approx(1, abs=1e-4) for layer in found.routing.values())


def test_scores_of_a_record_are_those_of_the_report(run: Path) -> None:
    found, (evaluation, _) = read_record(run), read_results(run)
    macro = found.score("macro", "macro")
    assert macro is not None
    assert (macro.score, macro.n) == (evaluation.macro.score.value, evaluation.macro.n)
    mean = seed_mean([found], MACRO)
    assert mean is not None
    assert mean.value == pytest.approx(evaluation.macro.score.value)
    lines = (run / "predictions.jsonl").read_text().splitlines()
    marks = [json.loads(line) for line in lines]
    for split, items in found.split_items().items():
        assert items.correct == "".join("1" if m["correct"] else "0" for m in marks if m["split"] == split)
        assert (items.clusters is None) == split.startswith("glue")


def test_failed_run_is_recorded_with_its_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no_such_proj"):
        train(config(peft__target_modules=["no_such_proj"]), tmp_path)
    found = read_record(tmp_path)
    assert found.status == "failed"
    assert found.error is not None
    assert "no_such_proj" in found.error.message
    assert "Traceback" in found.error.traceback


def test_without_evaluation_no_test_row_is_read(tmp_path: Path) -> None:
    assert train(config(evaluation__mode="none", trainer__max_steps=1), tmp_path) is None
    found = read_record(tmp_path)
    assert (found.status, found.scores, found.items, found.answering) == ("finished", [], {}, None)
    assert not (tmp_path / "predictions.jsonl").exists()


def test_written_record_is_read_back_alike(tmp_path: Path) -> None:
    made = record()
    write_record(tmp_path, made)
    assert dataclasses.asdict(read_record(tmp_path)) == dataclasses.asdict(made)


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    made = record()
    assert made.training is not None
    made.training.loss = float("nan")
    made.training.validation = [{"step": 3, "loss": float("inf")}]
    write_record(tmp_path, made)
    found = read_record(tmp_path)
    assert found.training is not None
    assert found.training.loss is None
    assert found.training.validation[0]["loss"] is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": "lime-record/9"}, "schema: expected lime-record/1, got 'lime-record/9'"),
        ({"status": "done"}, "status: expected one of running, finished, diverged, failed, interrupted"),
        ({"statos": 1}, "statos: unknown key; did you mean status?"),
        ({"training": None}, "training: lacking in a record of a finished run"),
        ({"training__steps": "5"}, "training.steps: expected a whole number, got '5'"),
        ({"identity__data": None}, "identity.data: lacking"),
        ({"scores": [{"level": "task"}]}, "scores.0.level: expected one of"),
        ({"items": {"a": {"rows": [0, 1], "correct": "1"}}}, "items.a: rows, correct"),
        ({"items": {"a": {"rows": [0], "correct": "x"}}}, "items.a: rows, correct"),
        ({"status": "failed"}, "error: lacking in a record of a failed run"),
    ],
)
def test_reading_names_file_and_key(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = broken(tmp_path, **changes)
    with pytest.raises(RecordError) as caught:
        read_record(tmp_path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no such file"):
        read_record(tmp_path)
    (tmp_path / "record.json").write_text('{"schema"')
    with pytest.raises(RecordError, match=r"record\.json: not JSON"):
        read_record(tmp_path)
    assert Record().errors()
