"""What a run left behind and somebody damaged is named, redone or refused; never taken in silence, never in the way."""

from __future__ import annotations

import io
import json
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lime.evaluation.predictions import PredictionError, read_predictions
from lime.inference.frozen import _known
from lime.inference.journal import Journal
from lime.jobs.train import train
from lime.runs.checkpoints import checkpoint_to_resume, damage, newest_checkpoint
from lime.training.metrics import COLUMNS, FileState, MetricsFile, UsageFile
from tests.training.parts import config, metrics

STEPS: dict[str, Any] = {
    "callbacks__checkpoint": True,
    "callbacks__checkpoint_every_n_steps": 1,
    "callbacks__keep_checkpoints": 10,
    "evaluation__baseline_frozen": False,
    "trainer__accumulate_grad_batches": 2,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with a checkpoint after each; read-only."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    train(config(**STEPS), folder)
    return folder


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    """One bit in the largest tensor."""
    part = max(zipfile.ZipFile(io.BytesIO(data)).infolist(), key=lambda one: one.file_size)
    place = part.header_offset + part.file_size // 2 + 64
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": cut,
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "one bit": flip,
    "last bytes": lambda data: data[:-20],
    "another file": lambda data: b"no checkpoint at all",
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_checkpoint_falls_back_to_the_one_before(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    for bad in ("step-6.ckpt", "last.ckpt"):
        path = tmp_path / "checkpoints" / bad
        path.write_bytes(DAMAGES[name](path.read_bytes()))
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-5.ckpt"
    assert "step-6.ckpt is damaged" in caplog.text
    with pytest.raises(ValueError, match=r"ckpt_path: .*step-6.ckpt: not a checkpoint of a run, or damaged"):
        checkpoint_to_resume(str(tmp_path / "checkpoints" / "step-6.ckpt"), tmp_path, {})


def test_bits_flipped_anywhere_are_seen(run: Path, tmp_path: Path) -> None:
    whole = (run / "checkpoints" / "step-6.ckpt").read_bytes()
    rng = random.Random(0)
    path = tmp_path / "step-6.ckpt"
    changed = seen = 0
    for _ in range(60):
        place = rng.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << rng.randrange(8))]) + whole[place + 1 :])
        if damage(path) is not None:
            seen += 1
            continue
        # In what the format leaves unused (padding, dates of its parts) a bit means nothing.
        changed += _values(path) != _values(run / "checkpoints" / "step-6.ckpt")
    print(f"{seen} of 60 flipped bits named, {changed} accepted with another content")
    assert changed == 0
    assert seen > 20


def _values(path: Path) -> str:
    return repr(torch.load(path, weights_only=True)["state_dict"])


def test_nothing_in_a_checkpoint_is_executed_nor_offered_to_be(tmp_path: Path) -> None:
    torch.save({"state_dict": Path("x"), "global_step": 1}, tmp_path / "step-1.ckpt")
    said = damage(tmp_path / "step-1.ckpt")
    assert said == "it holds something other than tensors and plain values, which is not read"
    torch.save({"state_dict": {}}, tmp_path / "step-2.ckpt")
    assert damage(tmp_path / "step-2.ckpt") == ("it lacks global_step, epoch, loops, optimizer_states, lr_schedulers")


def test_run_with_damaged_checkpoints_alone_starts_anew(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    for path in (folder / "checkpoints").glob("*.ckpt"):
        path.write_bytes(cut(path.read_bytes()))
    train(config(**STEPS), folder)
    assert metrics(folder) == metrics(run)
    assert (folder / "predictions.jsonl").read_bytes() == (run / "predictions.jsonl").read_bytes()


def test_another_run_does_not_take_the_folder_of_one_without_checkpoints(tmp_path: Path) -> None:
    short = {"trainer__max_steps": 1, "evaluation__mode": "none"}
    train(config(**short), tmp_path)
    before = (tmp_path / "record.json").read_bytes()
    with pytest.raises(ValueError, match=r"holds a run with other settings .seed: 1 then, 2 now"):
        train(config(**short, seed=2), tmp_path)
    assert json.loads(before)["seed"] == 1
    train(config(**short, seed=2, ckpt_path=None), tmp_path)


ROWS = [dict.fromkeys(COLUMNS, 0.5) | {"step": step, "epoch": 0} for step in range(1, 7)]


@pytest.mark.parametrize("lost", [[0], [2], [3, 4], [5]])
def test_lost_rows_of_metrics_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, lost: list[int]) -> None:
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path)
    for row in ROWS:
        file.write(row)
    file.close()
    kept = FileState(file.lines, file.checksum, step=6)
    whole = path.read_bytes()
    again = MetricsFile(path, kept)
    again.close()
    assert path.read_bytes() == whole
    assert not caplog.text
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(line for i, line in enumerate(lines) if i - 1 not in lost) + lines[-1][:9])
    MetricsFile(path, kept).close()
    assert f"of 6 lines up to step 6 that the checkpoint counts, {6 - len(lost)} can be read" in caplog.text
    steps = [int(row["step"]) for row in metrics(tmp_path)]
    assert steps == [i + 1 for i in range(6) if i not in lost]


def test_lost_rows_are_named_where_training_was_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = config(
        ckpt_path="auto",
        callbacks__checkpoint=True,
        trainer__max_steps=3,
        trainer__log_every_n_steps=1,
        evaluation__mode="none",
    )
    train(made, tmp_path)
    path = tmp_path / "metrics.csv"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    train(made, tmp_path)
    assert path.read_bytes() == whole
    assert "damaged" not in caplog.text
    path.write_bytes(b"".join([*lines[:2], *lines[3:], b"garbage\xff\n"]))
    train(made, tmp_path)
    assert "metrics.csv is damaged: of 3 lines up to step 3 that the checkpoint counts, 2 can be read" in caplog.text
    assert path.read_bytes() == b"".join([*lines[:2], *lines[3:]])


def test_rows_after_the_checkpoint_are_written_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also where a row before it was lost, so that later ones stand in its place."""
    file = UsageFile(tmp_path / "routing.jsonl")
    for step in range(1, 4):
        file.write({"step": step, "usage": {"layer": [1.0]}})
    kept = FileState(file.lines, file.checksum, step=3)
    for step in range(4, 7):
        file.write({"step": step, "usage": {"layer": [1.0]}})
    file.close()
    lines = (tmp_path / "routing.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "routing.jsonl").write_text("".join(lines[1:]))
    again = UsageFile(tmp_path / "routing.jsonl", kept)
    again.write({"step": 4, "usage": {"layer": [1.0]}})
    again.close()
    steps = [json.loads(line)["step"] for line in (tmp_path / "routing.jsonl").read_text().splitlines()]
    assert steps == [2, 3, 4]
    assert "routing.jsonl is damaged" in caplog.text


@pytest.mark.parametrize(
    "line", ["{", "[]", "null", '{"id": 3, "answer": "x"}', '{"id": "b", "answer": "other", "checksum": 1}', "\x00\xff"]
)
def test_damaged_lines_of_a_journal_are_asked_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: str
) -> None:
    journal = Journal(tmp_path, "answers", "key")
    journal.add({"a": "one", "b": "two", "c": None, "d": {"yes": -0.5}})
    journal.close()
    (path,) = (tmp_path / "partial").glob("*.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[2] = line
    path.write_text("\n".join(lines) + '\n{"id": "e", "ans', encoding="utf-8")
    again = Journal(tmp_path, "answers", "key")
    assert again.answers == {"a": "one", "c": None, "d": {"yes": -0.5}}
    assert "1 damaged lines (first: 3)" in caplog.text
    again.close()
    path.write_text(f"{line}\n" + "\n".join(lines[1:]) + "\n", encoding="utf-8")
    assert Journal(tmp_path, "answers", "key").answers == {}


def test_damaged_answers_of_the_frozen_backbone_are_asked_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = {"trainer__max_steps": 1, "cache_dir": str(tmp_path / "cache")}
    train(config(**short), tmp_path / "a")
    (path,) = (tmp_path / "cache" / "frozen").glob("*.json")
    whole = path.read_bytes()
    content = json.loads(whole)
    first = next(iter(content["answers"]))
    changed = {**content, "answers": {**content["answers"], first: "another answer"}}
    fewer = {**content, "answers": {k: v for k, v in content["answers"].items() if k != first}}
    for bad in (b"", cut(whole), b"[]", b"null", b"\xff", json.dumps(changed).encode(), json.dumps(fewer).encode()):
        path.write_bytes(bad)
        caplog.clear()
        assert _known(path, []) is None, bad
        assert f"cache_dir: {path} is damaged" in caplog.text
    train(config(**short), tmp_path / "b")
    assert json.loads(path.read_bytes()) == content


def test_cache_that_cannot_be_written_is_told_before_the_first_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    train(config(trainer__max_steps=1, cache_dir=str(tmp_path / "file")), tmp_path / "run")
    messages = [record.message for record in caplog.records if "cache_dir" in record.message]
    assert len(messages) == 1
    assert "the frozen backbone's answers are not kept" in messages[0]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "finished"


def test_predictions_cut_at_a_line_are_refused(run: Path, tmp_path: Path) -> None:
    for name in ("predictions.jsonl", "results.json"):
        shutil.copy(run / name, tmp_path / name)
    path = tmp_path / "predictions.jsonl"
    assert len(read_predictions(path)) == 12
    lines = path.read_text().splitlines(keepends=True)
    for left in (11, 4, 1):
        path.write_text("".join(lines[:left]))
        with pytest.raises(PredictionError, match=rf"predictions.jsonl: {12 - left} of 12 rows"):
            read_predictions(path)
    (tmp_path / "results.json").unlink()
    assert len(read_predictions(path)) == 1
