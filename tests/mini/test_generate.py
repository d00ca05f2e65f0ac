"""The generated data root: layout, balance, determinism, disjoint parts, and what `ensure` does."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import datasets
import pytest

from lime.data.rows import MMTDataset
from lime.data.tasks import TASKS
from lime.embedded.benchmark import __main__ as command
from lime.embedded.benchmark import builder, ensure, generate
from lime.embedded.benchmark.tasks import MINI_TASKS
from tests.mini.conftest import TEST, TRAIN


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): digest(p) for p in sorted(root.rglob("*")) if p.is_file()}


def test_tasks_are_those_of_the_task_table() -> None:
    assert set(MINI_TASKS) == set(TASKS)
    for split, task in MINI_TASKS.items():
        assert (task.name, task.source_type) == (TASKS[split].name, TASKS[split].modality)
        if TASKS[split].labels:
            assert set(task.answers) == set(TASKS[split].labels), split


def test_layout_is_the_published_one(root: Path) -> None:
    loaded = datasets.load_from_disk(str(root / "MMT_47"))
    assert set(loaded) == {"train", *TASKS}
    assert loaded["train"].num_rows == 47 * TRAIN
    for split, rows in loaded.items():
        assert rows.column_names == ["source_type", "media_path", "question", "answer"]
        assert all(str(feature.dtype) == "string" for feature in rows.features.values())
        if split != "train":
            assert rows.num_rows == TEST
            assert set(rows["source_type"]) == {TASKS[split].modality}
    for row in loaded["train"]:
        if row["source_type"] == "text":
            assert row["media_path"] == ""
        else:
            suffix = {"image": ".jpg", "video": ".mp4"}[row["source_type"]]
            assert row["media_path"].startswith("media/")
            assert row["media_path"].endswith(suffix)
            assert (root / row["media_path"]).is_file()


def test_the_loader_of_the_real_data_reads_it(root: Path) -> None:
    opened = MMTDataset(root)
    assert opened.absent == []
    assert len(opened.train) == 47 * TRAIN
    for split, task in MINI_TASKS.items():
        allowed = opened.allowed_answers(split)
        assert allowed == list(task.answers)
        assert {row.answer for row in opened.tests[split]} <= set(allowed)


def test_manifest_says_what_was_generated(root: Path) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    assert (manifest["name"], manifest["format"], manifest["seed"]) == ("mmt47_mini", builder.FORMAT, 3)
    assert manifest["rows"] == {"train": 47 * TRAIN, **dict.fromkeys(MINI_TASKS, TEST)}
    assert manifest["media"] == sum(1 for _ in root.glob("media/*/*"))
    assert set(manifest["allowed_answers"]) == set(TASKS)


def test_the_manifest_says_the_task_of_every_training_row(root: Path, tmp_path: Path) -> None:
    opened = MMTDataset(root)
    tasks = opened.row_tasks["train"]
    assert Counter(tasks) == dict.fromkeys(TASKS, TRAIN)
    drawn = {}
    for split, task in MINI_TASKS.items():
        (tmp_path / "media" / task.name).mkdir(parents=True)
        made = builder._make(builder._Job(split, "train", TRAIN, 3, tmp_path))
        drawn[split] = {(row["media_path"], row["question"], row["answer"]) for row in made.rows}
    for row, split in zip(opened.train, tasks, strict=True):
        assert (row.media_path, row.question, row.answer) in drawn[split]


def test_answers_are_balanced_in_every_part() -> None:
    for task in MINI_TASKS.values():
        if task.source_type != "text":
            continue
        for part, rows in (("train", 50), ("test", 23)):
            made = builder._make(builder._Job(task.split, part, rows, 5, Path("unused")))
            counts = Counter(row["answer"] for row in made.rows)
            assert set(counts) == set(task.answers)
            assert max(counts.values()) - min(counts.values()) <= 1, task.split


def test_answers_on_disk_are_balanced(root: Path) -> None:
    loaded = datasets.load_from_disk(str(root / "MMT_47"))
    for split, task in MINI_TASKS.items():
        counts = Counter(loaded[split]["answer"])
        shares = [counts[answer] for answer in task.answers]
        assert max(shares) - min(shares) <= 1, split


def test_training_rows_are_mixed_across_tasks(root: Path) -> None:
    kinds = datasets.load_from_disk(str(root / "MMT_47"))["train"]["source_type"]
    changes = sum(a != b for a, b in pairwise(kinds))
    assert changes > 0.5 * len(kinds)


def test_same_settings_same_bytes_whatever_the_number_of_processes(root: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", seed=3, train_per_task=TRAIN, test_per_task=TEST, workers=2)
    assert files(tmp_path / "again") == files(root)


def test_another_seed_gives_other_content() -> None:
    for split in ("text_test_boolq", "glue_test_stsb"):
        one, two = (builder._make(builder._Job(split, "test", 12, seed, Path("unused"))) for seed in (0, 1))
        assert one.rows != two.rows


def test_train_and_test_share_no_row(root: Path) -> None:
    loaded = datasets.load_from_disk(str(root / "MMT_47"))

    def key(row: dict[str, str]) -> tuple[str, str]:
        return row["question"], digest(root / row["media_path"]) if row["media_path"] else ""

    train = [key(row) for row in loaded["train"]]
    assert len(set(train)) == len(train)
    test = [key(row) for split in MINI_TASKS for row in loaded[split]]
    assert not set(train) & set(test)
    media = [digest(path) for path in root.glob("media/*/*")]
    assert len(set(media)) == len(media)


def test_text_items_of_the_parts_are_disjoint_at_full_size() -> None:
    for task in MINI_TASKS.values():
        if task.source_type == "text":
            parts = [
                builder._make(builder._Job(task.split, p, n, 0, Path("unused")))
                for p, n in (("train", 240), ("test", 100))
            ]
            train, test = ({row["question"] for row in made.rows} for made in parts)
            assert (len(train), len(test)) == (240, 100), task.split
            assert not train & test, task.split


def test_ensure_generates_once_and_again_when_files_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def build(root: Path, settings: builder.Settings, workers: int) -> None:
        calls.append(settings)
        (root / "MMT_47").mkdir(parents=True)
        (root / "MMT_47" / "dataset_dict.json").write_text("{}")
        (root / "media" / "svhn").mkdir(parents=True)
        (root / "media" / "svhn" / "test_00000.jpg").write_text("x")
        manifest = {"name": "mmt47_mini", "format": builder.FORMAT, "media": 1, **vars(settings)}
        (root / "manifest.json").write_text(json.dumps(manifest))

    monkeypatch.setattr(builder, "_build", build)
    target = tmp_path / "deep" / "data"
    assert ensure(target, train_per_task=2, test_per_task=1) == target
    ensure(target, train_per_task=2, test_per_task=1, workers=7)
    assert len(calls) == 1
    ensure(target, seed=1, train_per_task=2, test_per_task=1)
    assert len(calls) == 2
    (target / "media" / "svhn" / "test_00000.jpg").unlink()
    ensure(target, seed=1, train_per_task=2, test_per_task=1)
    assert len(calls) == 3
    (target / "manifest.json").write_text("not json")
    with pytest.raises(FileExistsError, match="not the embedded benchmark"):
        ensure(target, seed=1, train_per_task=2, test_per_task=1)
    assert [p.name for p in target.parent.iterdir()] == ["data"]


def test_a_failed_generation_leaves_the_old_data_and_no_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "data"
    target.mkdir()
    (target / "manifest.json").write_text(json.dumps({"name": "mmt47_mini", "format": 0}))

    def build(root: Path, settings: builder.Settings, workers: int) -> None:
        root.mkdir()
        raise OSError("disk full")

    monkeypatch.setattr(builder, "_build", build)
    with pytest.raises(OSError, match="disk full"):
        generate(target, train_per_task=1, test_per_task=1)
    assert json.loads((target / "manifest.json").read_text())["format"] == 0
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_foreign_folders_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="name another folder"):
        generate(tmp_path / "data", train_per_task=1, test_per_task=1, workers=1)
    assert (tmp_path / "data" / "thesis.txt").read_text() == "precious"


def test_bad_sizes_are_refused(tmp_path: Path) -> None:
    for wrong in ({"train_per_task": 0}, {"test_per_task": 0}, {"workers": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            generate(tmp_path / "data", **wrong)
    assert not (tmp_path / "data").exists()


def test_more_rows_than_distinct_items_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"text_test_winogrande.*lower test_per_task"):
        builder._make(builder._Job("text_test_winogrande", "test", 5000, 0, Path("unused")))


def test_command_reports_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mini", "--root", str(tmp_path / "data"), "--test-per-task", "0"])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2
    assert "test_per_task: expected at least 1" in capsys.readouterr().err


def test_a_failed_exchange_brings_the_old_data_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "data"
    target.mkdir()
    (target / "manifest.json").write_text(json.dumps({"name": "mmt47_mini", "format": 0}))
    # Nothing was built, so there is nothing to put in its place.
    monkeypatch.setattr(builder, "_build", lambda root, settings, workers: None)
    with pytest.raises(OSError, match="cannot be written to"):
        generate(target, train_per_task=1, test_per_task=1)
    assert json.loads((target / "manifest.json").read_text())["format"] == 0


def test_command_passes_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}
    monkeypatch.setattr(command, "ensure", lambda root, **options: seen.update(root=root, **options))
    arguments = "--seed 4 --train-per-task 9 --test-per-task 8 --workers 3".split()
    monkeypatch.setattr(sys, "argv", ["mini", "--root", str(tmp_path), *arguments])
    command.main()
    sizes = {"seed": 4, "train_per_task": 9, "test_per_task": 8, "workers": 3}
    assert seen == {"root": str(tmp_path), **sizes}
    monkeypatch.setattr(command, "generate", lambda root, **options: seen.update(forced=True))
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--force"])
    command.main()
    assert seen["forced"]


@pytest.mark.parametrize(
    "name", ["thesis.txt", "media/thesis.txt", "media/svhn/my.jpg", "MMT_47/train/thesis.txt", ".hidden/thesis"]
)
def test_what_somebody_put_into_a_root_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    root = tmp_path / "data"
    (root / name).parent.mkdir(parents=True)
    (root / "manifest.json").write_text(json.dumps({"name": "mmt47_mini", "format": 0}))
    (root / name).write_text("precious")
    (tmp_path / ".data.old").mkdir()  # names that this program does not use
    (tmp_path / ".data.building").mkdir()
    monkeypatch.setattr(builder, "_build", lambda root, settings, workers: root.mkdir())
    with pytest.raises(FileExistsError, match=Path(name).name if "hidden" not in name else name):
        ensure(root, train_per_task=1, test_per_task=1, workers=1)
    assert (root / name).read_text() == "precious"
    (root / name).unlink()
    ensure(root, train_per_task=1, test_per_task=1, workers=1)
    assert (tmp_path / ".data.old").is_dir()
    assert (tmp_path / ".data.building").is_dir()


def test_a_root_behind_a_link_is_replaced_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk" / "data").mkdir(parents=True)
    (tmp_path / "disk" / "data" / "manifest.json").write_text(json.dumps({"name": "mmt47_mini", "format": 0}))
    (tmp_path / "data").symlink_to(tmp_path / "disk" / "data")
    monkeypatch.setattr(builder, "_build", lambda root, settings, workers: root.mkdir())
    ensure(tmp_path / "data", train_per_task=1, test_per_task=1, workers=1)
    assert (tmp_path / "data").is_symlink()
    assert not list((tmp_path / "disk" / "data").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "disk"]
