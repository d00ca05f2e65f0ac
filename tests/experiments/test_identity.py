"""What counts as the same run: what can change a number does, what cannot does not; replaced files are noticed."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from lime.config.identity import LATER, config_hash, mini_root
from lime.config.schema import TrainConfig
from lime.data.config import DataConfig
from lime.data.datamodule import MMTDataModule
from lime.data.rows import MMTDataset
from lime.data.tools.prepare import prepare
from lime.inference.evaluation import journal_of
from lime.inference.frozen import answer_frozen
from lime.inference.rows import TestRows
from lime.models.fingerprint import checkpoint_fingerprint, processing_fingerprint
from lime.models.loading import load_backbone
from lime.processors.config import ModelConfig
from lime.runs.record import read_record
from tests.data import tiny
from tests.experiments.test_sweeps import Sweep, said_in
from tests.experiments.test_sweeps import sweep as sweep
from tests.training.parts import data_root, values


def changed(key: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(values())
    *sections, name = key.split(".")
    place = config
    for part in sections:
        place = place.setdefault(part, {})
    place[name] = value
    return config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "other"), ("cache_dir", "x"), ("reuse", "never"), ("data.prefetch", 7), ("data.num_workers", 3),
        ("data.cache_mb", 1), ("data.frame_cache", {"dir": "x", "size_mb": 1}), ("data.mini", {"seed": 4}),
        ("trainer.log_every_n_steps", 3), ("trainer.num_threads", 1), ("trainer.preflight", True),
        ("callbacks.checkpoint", True), ("logger", {"wandb": {"project": "p"}}), ("ckpt_path", None),
        ("ckpt_path", "auto"), ("model.recipe", {"rank": 3}),
    ],
)  # fmt: skip
def test_what_changes_only_names_places_or_time_is_the_same_run(key: str, value: Any) -> None:
    assert config_hash(changed(key, value)) == config_hash(values())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 2), ("data.root", "/other"), ("data.train_rows", 3), ("data.video_backend", "decord"),
        ("trainer.precision", "bf16-mixed"), ("trainer.gradient_clip_val", None), ("evaluation.batch_size", 3),
        ("optim.eps", 1e-7), ("model.path", "/other"), ("lime.num_experts", 3), ("peft.r", 3),
    ],
)  # fmt: skip
def test_what_can_change_a_number_is_another_run(key: str, value: Any) -> None:
    assert config_hash(changed(key, value)) != config_hash(values())


@pytest.mark.parametrize("key", LATER)
def test_an_option_that_came_later_leaves_earlier_records_as_they_are(key: str) -> None:
    now = dataclasses.asdict(TrainConfig())
    before = copy.deepcopy(now)
    *sections, name = key.split(".")
    of_now, of_before = (functools.reduce(dict.__getitem__, sections, each) for each in (now, before))
    del of_before[name]
    assert config_hash(now) == config_hash(before)
    of_now[name] = 0.5
    assert config_hash(now) != config_hash(before)


def test_a_folder_is_one_by_whatever_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    for key in ("data.root", "model.path"):
        names = ("a", "./a", str(tmp_path / "a"), "link")
        assert len({config_hash(changed(key, name)) for name in names}) == 1
        (tmp_path / "b").mkdir(exist_ok=True)
        assert config_hash(changed(key, "b")) != config_hash(changed(key, "a"))


def test_the_checkpoint_that_a_run_starts_from_counts_with_its_content(tmp_path: Path) -> None:
    first, second = tmp_path / "1.ckpt", tmp_path / "2.ckpt"
    first.write_bytes(b"a")
    second.write_bytes(b"a")
    hashes = {config_hash(changed("ckpt_path", path)) for path in ("auto", str(first), str(second))}
    assert len(hashes) == 3
    os.utime(first, ns=(1, 1))
    assert config_hash(changed("ckpt_path", str(first))) not in hashes


def test_variants_of_the_embedded_benchmark_have_folders_of_their_own() -> None:
    assert mini_root(0, 140, 60) == "data/mmt47_mini"
    assert len({mini_root(0, 140, 60), mini_root(1, 140, 60), mini_root(0, 14, 60), mini_root(0, 140, 6)}) == 4
    mini = {"data": {"name": "mmt47_mini", "root": "a", "mini": {"seed": 1}}}
    assert config_hash(mini) == config_hash({"data": {**mini["data"], "root": "b"}})
    assert config_hash(mini) != config_hash({"data": {**mini["data"], "mini": {"seed": 2}}})


def test_every_byte_of_the_weights_counts_and_every_file_of_the_processing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    with weights.open("wb") as file:
        file.truncate(65 * 2**20)
    before, beside = checkpoint_fingerprint(tmp_path), processing_fingerprint(tmp_path)
    with weights.open("r+b") as file:
        file.seek(32 * 2**20)
        file.write(b"x")
    assert checkpoint_fingerprint(tmp_path) != before
    for name in ("tokenizer.json", "preprocessor_config.json", "chat_template.jinja"):
        (tmp_path / name).write_text("{}")
        assert processing_fingerprint(tmp_path) != beside
        beside = processing_fingerprint(tmp_path)


def swap(root: Path) -> None:
    """Give two pictures of a root each other's content, and the times that they had."""
    one, two = sorted(root.rglob("*.png"))[:2]
    times = [path.stat().st_mtime_ns for path in (one, two)]
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    for path, time in zip((one, two), times, strict=True):
        os.utime(path, ns=(time + 1, time + 1))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return Path(shutil.copytree(data_root(), tmp_path / "root"))


def test_replaced_pictures_are_other_data(root: Path) -> None:
    before = MMTDataset(root)
    known = before.fingerprint
    swap(root)
    after = MMTDataset(root)
    assert after.rows_fingerprint == before.rows_fingerprint
    assert after.fingerprint != known


def test_a_prepared_root_is_known_by_its_content_wherever_it_lies(root: Path, tmp_path: Path) -> None:
    prepare(root)
    before = MMTDataset(root).fingerprint
    moved = Path(shutil.copytree(root, tmp_path / "moved", copy_function=shutil.copyfile))  # with new times
    assert MMTDataset(moved).fingerprint == before
    swap(moved)
    assert MMTDataset(moved).fingerprint != before
    swap(moved)
    assert MMTDataset(moved).fingerprint == before
    prepare(moved)
    assert MMTDataset(moved).fingerprint == before
    sorted(moved.rglob("*.png"))[0].unlink()
    assert MMTDataset(moved).fingerprint != before


def test_a_sweep_runs_again_on_replaced_pictures_or_a_replaced_backbone(
    sweep: Sweep, root: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny.checkpoint("llava_onevision"), tmp_path / "model"))
    line = (f"data.root={root}", f"model.path={model}", "seed=1")
    sweep(*line)
    folder = next((tmp_path / "multirun/main").glob("*/record.json")).parent
    first = read_record(folder)
    sweep(*line)
    assert "skipped: finished before" in said_in(folder)
    assert read_record(folder).started == first.started
    swap(root)
    sweep(*line)
    second = read_record(folder)
    assert second.identity.data != first.identity.data
    assert second.identity.threads
    config = model / "generation_config.json"
    config.write_text('{"x": 1}')
    sweep(*line)
    third = read_record(folder)
    assert third.environment is not None
    assert second.environment is not None
    assert third.environment["backbone"] != second.environment["backbone"]


def test_a_sweep_over_data_roots_is_a_run_for_each(sweep: Sweep, root: Path, tmp_path: Path) -> None:
    code, said = sweep(f"data.root={root},{data_root()}")
    assert code == 0
    assert "sweep of 2 runs" in said
    assert "2 finished" in said
    found = [read_record(path) for path in tmp_path.glob("multirun/main/*/record.json")]
    assert {record.config["data"]["root"] for record in found} == {str(root), str(data_root())}
    before = {record.config["data"]["root"]: record.started for record in found}
    code, _ = sweep(f"data.root={root}")
    after = [read_record(path) for path in tmp_path.glob("multirun/main/*/record.json")]
    assert {record.config["data"]["root"]: record.started for record in after} == before


def test_frozen_answers_are_those_of_the_pictures_that_are_there(root: Path, tmp_path: Path) -> None:
    backbone = load_backbone(ModelConfig("tiny_llava_onevision"))

    def ask(cache: Path | None) -> list[str | None]:
        data = DataConfig(name="mmt47", root=str(root), validation_fraction=0.0)
        opened = MMTDataModule(
            data, batch_size=4, eval_batch_size=4, seed=1, processor=backbone.processor, family=backbone.family
        )
        tests = TestRows(opened, ["image_test_caltech101"])
        folder = tmp_path / f"run{len(keys)}"
        journal_of(folder, {"seed": 1}, backbone, opened, tests, tmp_path).close()
        keys.append(next(folder.glob("partial/answers-*")).read_text())
        config = TrainConfig(
            model=ModelConfig("tiny_llava_onevision"), data=data, cache_dir=str(cache) if cache else None
        )
        return answer_frozen(backbone, opened, tests, config, False, folder) or []

    keys: list[str] = []
    cache = tmp_path / "cache"
    before = ask(cache)
    assert ask(cache) == before
    assert len(list((cache / "frozen").iterdir())) == 1
    for path in sorted(root.rglob("*.png")):
        tiny.write_image(path, 64, 48, seed=99)
    assert ask(cache) == ask(None)
    assert len(list((cache / "frozen").iterdir())) == 2
    assert keys[0] == keys[1] != keys[2] == keys[3]
