"""The task table: names of test splits, and tables of other tasks."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from lime.config.identity import config_hash
from lime.data import tasks
from lime.data.rows import MMTDataset
from lime.data.tasks import CATEGORIES, MODALITIES, TASKS, TaskTable, mmt47, read_table
from lime.data.tools.verify import verify
from lime.embedded.benchmark import builder, generate
from lime.embedded.benchmark.items import Item, MiniTasks, Part
from lime.evaluation.config import EvaluationConfig

SCRIPT = Path(__file__).parents[2] / "scripts" / "data.py"
GLUE = [split for split, task in TASKS.items() if task.category == "glue"]


@pytest.mark.parametrize(
    ("chosen", "splits"),
    [
        (None, None),
        ("sst2", ["glue_test_sst2"]),
        (["sst2"], ["glue_test_sst2"]),
        (["glue_test_sst2", "sst2"], ["glue_test_sst2"]),
        ("glue", GLUE),
        (["svhn", "glue", "qqp"], ["image_test_svhn", *GLUE]),
        (["text"], [split for split, task in TASKS.items() if task.modality == "text"]),
        (["sst2", "nothing"], ["glue_test_sst2", "nothing"]),
    ],
)
def test_splits_are_named_by_split_task_or_category(chosen: list[str] | str | None, splits: list[str] | None) -> None:
    assert mmt47().splits(chosen) == splits


def test_every_name_means_one_thing() -> None:
    names = mmt47().known_names()
    assert len(set(names)) == len(names) == 2 * len(TASKS) + len(CATEGORIES) + len(MODALITIES)
    for name in names:
        assert EvaluationConfig(splits=[name]).errors(names) == EvaluationConfig(splits=name).errors(names) == []
    assert mmt47().splits(list(CATEGORIES)) == list(TASKS)


@pytest.mark.parametrize(
    ("chosen", "taken", "lacking"),
    [
        (None, ["glue_test_cola", "glue_test_sst2", "text_test_boolq"], []),
        (["glue"], ["glue_test_cola", "glue_test_sst2"], []),
        ("text", ["glue_test_cola", "glue_test_sst2", "text_test_boolq"], []),
        (["video", "glue"], ["glue_test_cola", "glue_test_sst2"], ["video"]),
        (["boolq", "qqp"], ["text_test_boolq"], ["glue_test_qqp"]),
    ],
)
def test_a_category_takes_what_is_there_of_it(
    chosen: list[str] | str | None, taken: list[str], lacking: list[str]
) -> None:
    present = ["glue_test_cola", "glue_test_sst2", "text_test_boolq"]
    assert mmt47().splits_of(chosen, present) == (taken, lacking)


def test_the_same_splits_are_the_same_run() -> None:
    chosen = (["sst2", "qqp"], ["glue_test_qqp", "glue_test_sst2"], ["qqp", "sst2"])
    assert len({config_hash({"evaluation": {"splits": names}}) for names in chosen}) == 1
    assert config_hash({"evaluation": {"splits": "sst2"}}) != config_hash({"evaluation": {"splits": "qqp"}})
    assert config_hash({"evaluation": {"splits": None}}) == config_hash({"evaluation": {"splits": None}})


def test_a_command_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert runpy.run_path(str(SCRIPT))["main"](["tasks"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) <= 80
    assert set(CATEGORIES) <= set(printed)
    for split, task in TASKS.items():
        assert any(line.split()[:2] == [task.name, split] for line in printed)


TOY = "{split: text_test_toy, name: toy, modality: text, category: toys, answer_type: yes_no, answers: [yes, no]}"


def table(folder: Path, *rows: str) -> TaskTable:
    """MMT-47's table with a category `toys` and these rows at its end."""
    text = Path(tasks.__file__).with_name("mmt47.yaml").read_text()
    text = text.replace("categories:\n", "categories:\n  toys: Toys\n", 1) + "".join(f"  - {row}\n" for row in rows)
    (folder / "tasks.yaml").write_text(text)
    return read_table(folder / "tasks.yaml")


def test_a_task_is_one_row_and_its_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toys = MiniTasks("text")

    @toys.task("text_test_toy", ("yes", "no"))
    def draw(rng: np.random.Generator, answer: str, part: Part) -> Item:
        return Item(f"{part} {rng.integers(10**9)}: is it {answer}?")

    monkeypatch.setattr(builder, "MINI_TASKS", toys)
    generate(tmp_path / "root", train_per_task=4, test_per_task=2, workers=1)
    more = table(tmp_path, TOY)
    assert list(more.tasks) == [*TASKS, "text_test_toy"]
    assert more.splits("toy") == more.splits("toys") == ["text_test_toy"]
    data = MMTDataset(tmp_path / "root", more)
    assert sorted(row.answer for row in data.tests["text_test_toy"]) == data.allowed_answers("text_test_toy")[::-1]
    assert verify(tmp_path / "root", workers=1, table=more).ok
    (tmp_path / "root" / "manifest.json").unlink()
    assert MMTDataset(tmp_path / "root", more).allowed_answers("text_test_toy") == ["yes", "no"]
    assert "text_test_toy" in MMTDataset(tmp_path / "root").unknown, "MMT-47's own table is as it was"
    assert mmt47().tasks is TASKS


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("toy", "row 48 of tasks: expected split: …"),
        ("{split: a, modality: text, category: toys}", "answer_type is lacking"),
        (TOY.replace("name", "title"), "title: no such key; expected split, name"),
        (TOY.replace("yes_no", "boolean"), "answer_type: expected one of letter, .*, got 'boolean'"),
        (TOY.replace("toys", "games"), "category: expected one of toys, .*, got 'games'"),
        (TOY.replace("modality: text", "modality: sound"), "modality: expected one of text, image, video, got 'sound'"),
        (TOY.replace("[yes, no]", "yes"), "answers: expected a list of texts, got 'yes'"),
        (TOY.replace("text_test_toy", "glue_test_sst2"), "row 48 of tasks: the split has a row already"),
        (TOY.replace("name: toy", "name: macro"), "name: macro is the mean of all tasks; expected another name"),
        (TOY.replace("}", ", published_rows: many}"), "published_rows: expected a number, got 'many'"),
        ("{", "not valid YAML"),
    ],
)
def test_a_wrong_row_is_named_with_its_file(tmp_path: Path, row: str, said: str) -> None:
    with pytest.raises(ValueError, match=rf"tasks\.yaml: .*{said}"):
        table(tmp_path, row)
