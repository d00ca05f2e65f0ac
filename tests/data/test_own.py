"""A folder of one's own: its tables and what is what in them, said or inferred; each thing wrong is named."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from lime.data.config import DataConfig
from lime.data.datasets import open_dataset
from lime.data.rows import DataError, MMTDataset


def pictures(root: Path, count: int = 12) -> list[str]:
    """Small pictures in a folder."""
    (root / "pictures").mkdir(parents=True)
    names = [f"{i:02d}.png" for i in range(count)]
    for i, name in enumerate(names):
        Image.new("RGB", (32 + i, 32), (20 * i, 0, 0)).save(root / "pictures" / name)
    return names


def write_csv(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def opened(root: Path, **options: object) -> MMTDataset:
    return open_dataset(DataConfig(name="own", root=str(root), **options))  # type: ignore[arg-type]


def test_two_columns_are_a_task(tmp_path: Path) -> None:
    names = pictures(tmp_path, 40)
    write_csv(
        tmp_path / "labels.csv", [["picture", "label"], *([n, "cat" if i % 2 else "dog"] for i, n in enumerate(names))]
    )
    data = opened(tmp_path)
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 32, "test": 8}
    row = data.train[0]
    assert (row.source_type, row.media_path) == ("image", "pictures/01.png")
    assert row.question == "Which of these is it: cat, dog?"
    assert data.table.tasks["test"].answer_type == "label"
    assert data.allowed_answers("test") == ["cat", "dog"]
    assert not {r.media_path for r in data.train} & {r.media_path for r in data.tests["test"]}
    assert len(opened(tmp_path, test_fraction=0.0).train) == 40


def test_a_missing_column_lists_what_is_there(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [["a", "b"], ["What?", "yes"]])
    (tmp_path / "tasks.yaml").write_text("columns: {question: a, answer: c}\n")
    with pytest.raises(DataError, match=r"train\.csv: no column 'c' for answer; found 'a', 'b'"):
        opened(tmp_path)
