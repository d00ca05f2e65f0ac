"""Names of test splits."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from lime.config.identity import config_hash
from lime.data.tasks import CATEGORIES, TASKS, known_split_names, split_names
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
        (["sst2", "nothing"], ["glue_test_sst2", "nothing"]),
    ],
)
def test_splits_are_named_by_split_task_or_category(chosen: list[str] | str | None, splits: list[str] | None) -> None:
    assert split_names(chosen) == splits


def test_every_name_means_one_thing() -> None:
    names = known_split_names()
    assert len(set(names)) == len(names) == 2 * len(TASKS) + len(CATEGORIES)
    for name in names:
        assert EvaluationConfig(splits=[name]).errors(names) == EvaluationConfig(splits=name).errors(names) == []
    assert split_names(list(CATEGORIES)) == list(TASKS)


def test_the_same_splits_are_the_same_run() -> None:
    chosen = (["sst2", "qqp"], ["glue_test_qqp", "glue_test_sst2"], ["qqp", "sst2"])
    assert len({config_hash({"evaluation": {"splits": names}}) for names in chosen}) == 1
    assert config_hash({"evaluation": {"splits": "sst2"}}) != config_hash({"evaluation": {"splits": "qqp"}})
    assert config_hash({"evaluation": {"splits": None}}) == config_hash({"evaluation": {"splits": None}})


def test_a_command_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert runpy.run_path(str(SCRIPT))["main"](["tasks"]) == 0
    printed = capsys.readouterr().out
    for split, task in TASKS.items():
        assert any(line.split()[:3] == [task.category, task.name, split] for line in printed.splitlines())
