"""The task table, and data roots in every layout; each thing wrong with one is an error that names it."""

from __future__ import annotations

import json
import re
from collections import Counter

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lime.data.rows import DataError, MMTDataset, Row, content_hash
from lime.data.tasks import ANSWER_TYPES, CATEGORIES, MODALITIES, TASKS
from tests.data import tiny


def test_forty_seven_tasks_in_seven_categories():
    counts = Counter(task.category for task in TASKS.values())
    assert [counts[c] for c in CATEGORIES] == [8, 6, 8, 6, 5, 7, 7]
    assert all(task.split == split and task.split.endswith(f"_test_{task.name}") for split, task in TASKS.items())
    assert {task.modality for task in TASKS.values()} == set(MODALITIES)
    assert {task.answer_type for task in TASKS.values()} <= set(ANSWER_TYPES)
    assert [t.name for t in TASKS.values() if t.metric == "correlation"] == ["stsb"]
    assert sum(t.modality == "video" for t in TASKS.values()) == 19


def test_the_table_agrees_with_the_published_splits(real_root):
    published = json.loads((real_root.parent / "published.json").read_text())
    assert {k: v["n"] for k, v in published["test_splits"].items()} == {k: t.published_rows for k, t in TASKS.items()}
    assert set(CATEGORIES) == set(published["table2"]["lora"]) - {"trainable_params_millions"}


def test_real_rows_open_and_the_absent_splits_are_listed(real_root):
    data = MMTDataset(real_root)
    assert len(data.train) == 1044
    assert len(data.tests) == 7
    assert len(data.absent) == 40
    assert set(data.tests) | set(data.absent) == set(TASKS)
    first = data.tests["text_test_boolq"][0]
    assert first.id == "text_test_boolq/0"
    assert first.answer == "B"
    assert all((real_root / row.media_path).is_file() for row in data.train if row.source_type == "image")


@pytest.mark.parametrize("place", ["", "MMT_47"])
def test_arrow_and_parquet_give_the_same_rows(tmp_path, place):
    content = tiny.splits()
    arrow, parquet = tmp_path / "arrow", tmp_path / "parquet"
    datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in content.items()}).save_to_disk(
        str(arrow / place if place else arrow)
    )
    folder = parquet / place / "data" if place else parquet / "data"
    folder.mkdir(parents=True)
    for name, rows in content.items():
        table = pa.Table.from_pylist(rows)
        half = len(rows) // 2
        for part, piece in enumerate((table[:half], table[half:])):
            pq.write_table(piece, folder / f"{name}-0000{part}-of-00002.parquet")
    a, b = MMTDataset(arrow), MMTDataset(parquet)
    assert list(a.train) == list(b.train)
    assert {k: list(v) for k, v in a.tests.items()} == {k: list(v) for k, v in b.tests.items()}
    assert a.fingerprint == b.fingerprint
    (folder / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="'train' has 1 of 2 parquet shards"):
        MMTDataset(parquet)


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "state"])
def test_a_damaged_split_is_named(tmp_path, kind, damage):
    content = tiny.splits()
    if kind == "arrow":
        datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in content.items()}).save_to_disk(str(tmp_path))
        place = tmp_path / "train"
        file = place / "state.json" if damage == "state" else next(place.glob("*.arrow"))
    else:
        for name, rows in content.items():
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}-00000-of-00001.parquet")
        place = file = tmp_path / "train-00000-of-00001.parquet"
    new = {
        "cut": file.read_bytes()[: file.stat().st_size // 2],
        "empty": b"",
        "noise": bytes(range(256)),
        "state": b"{",
    }
    file.write_bytes(new[damage])
    with pytest.raises(ValueError, match=f"^{re.escape(str(place))}: damaged or incomplete .*; fetch it again$"):
        MMTDataset(tmp_path)


KINDS = {
    "string": pa.string(),
    "large": pa.large_string(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "large dictionary": pa.dictionary(pa.int8(), pa.large_string()),
    "view": pa.string_view(),
    "null": pa.null(),
}


@pytest.mark.parametrize("order", [list(KINDS), list(reversed(KINDS)), ["null", "null", "dictionary", "null"]])
def test_shards_of_several_arrow_types_are_one_split(tmp_path, order):
    rows = [row | {"source_type": "text", "media_path": None} for row in tiny.splits()["train"]]
    texts = [row | {"media_path": ""} for row in rows]
    pieces, plain = tmp_path / "pieces" / "data", tmp_path / "plain" / "data"
    for folder in (pieces, plain):
        folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(texts * len(order)), plain / "train.parquet")
    for part, kind in enumerate(order):
        columns = {}
        for name in rows[0]:
            values = pa.array([row[name] for row in rows], pa.string())
            columns[name] = pa.nulls(len(rows)) if name == "media_path" else values
            if kind != "null":
                columns[name] = values.cast(KINDS[kind])
        numbered = pa.array([f"{text} {part}" for text in columns["question"].to_pylist()])  # no two shards alike
        columns["question"] = numbered if kind == "null" else numbered.cast(KINDS[kind])
        pq.write_table(pa.table(columns), pieces / f"train-{part:05}-of-{len(order):05}.parquet")
    found = MMTDataset(tmp_path / "pieces").train
    wanted = MMTDataset(tmp_path / "plain").train
    assert len(found) == len(wanted)
    for part in range(len(order)):
        for one, other in zip(found[part * len(rows) :], wanted[: len(rows)], strict=False):
            assert (one.source_type, one.media_path, one.answer) == (other.source_type, "", other.answer)
            assert one.question == f"{other.question} {part}"


def test_shards_of_text_and_numbers_are_refused_by_name(tmp_path):
    rows = tiny.splits()["train"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train-00000-of-00002.parquet")
    odd = [row | {"answer": index} for index, row in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(odd), tmp_path / "train-00001-of-00002.parquet")
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet: its column 'answer' is of type int64"):
        MMTDataset(tmp_path)


@pytest.mark.parametrize("names", [["0000", "0001"], ["MMT_47_part"], ["train-0-of-1"], ["validation", "test", ".."]])
def test_a_parquet_set_with_odd_names_says_what_it_expected(tmp_path, names):
    (tmp_path / ".parquet").write_bytes(b"no split")
    for name in names:
        pq.write_table(pa.Table.from_pylist(tiny.splits()["train"]), tmp_path / f"{name}.parquet")
    with pytest.raises(
        DataError, match=r"Expected files <split>-00000-of-00001\.parquet.*train or image_test"
    ) as error:
        MMTDataset(tmp_path)
    assert all(name in str(error.value) for name in names)


def test_views_keep_ids_and_samples_are_stable(root):
    rows = MMTDataset(root).train
    assert rows[3:6][1].id == "train/4"
    assert [row.index for row in rows.take([5, 2])] == [5, 2]
    few, more = rows.sample(5), rows.sample(10)
    assert {row.id for row in few} < {row.id for row in more}
    assert [row.index for row in few] == sorted(row.index for row in few)
    assert rows.sample(1000) is rows
    assert len({content_hash(row) for row in rows}) == len(rows)


def test_the_fingerprint_follows_the_content(tmp_path):
    content = tiny.splits()
    before = MMTDataset(tiny.write_root(tmp_path / "a", content, media=False)).fingerprint
    content["train"][0]["answer"] = "other"
    assert MMTDataset(tiny.write_root(tmp_path / "b", content, media=False)).fingerprint != before


def test_allowed_answers_come_from_the_manifest_then_the_task(tmp_path):
    root = tiny.write_root(tmp_path, tiny.splits(), media=False)
    assert MMTDataset(root).allowed_answers("glue_test_sst2") == ["positive", "negative"]
    assert MMTDataset(root).allowed_answers("image_test_caltech101") is None
    (root / "manifest.json").write_text(json.dumps({"allowed_answers": {"image_test_caltech101": ["red", "blue"]}}))
    assert MMTDataset(root).allowed_answers("image_test_caltech101") == ["red", "blue"]
    (root / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json: not valid JSON"):
        MMTDataset(root)


def test_a_root_that_is_absent_or_empty_says_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.root: .*nowhere is not a folder"):
        MMTDataset(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"holds no split.*notes\.txt"):
        MMTDataset(tmp_path)


def test_a_missing_column_names_split_column_and_what_was_found(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "answer"} for row in tiny.splits()["glue_test_sst2"]]
    root = tiny.write_root(tmp_path, {**tiny.splits(), "glue_test_sst2": rows}, media=False)
    with pytest.raises(DataError, match="split 'glue_test_sst2' lacks column 'answer'; found 'source_type'"):
        MMTDataset(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "  "}, "row train/1: its answer is empty"),
        ({"question": ""}, "row train/1: its question is empty"),
        ({"source_type": "audio"}, "row train/1: source_type is 'audio'"),
        ({"source_type": "image", "media_path": ""}, "row train/1: a image row without a media_path"),
        ({"source_type": "image", "media_path": "../x.png"}, "row train/1: media_path '../x.png' leaves the data root"),
        ({"answer": None}, "row train/1: answer is None"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, message):
    content = tiny.splits()
    content["train"][1].update(change)
    with pytest.raises(DataError, match=message):
        MMTDataset(tiny.write_root(tmp_path, content, media=False))


def test_splits_of_no_task_are_named_and_left_out(tmp_path, caplog):
    content = {**tiny.splits(), "image_test_unheard_of": tiny.splits()["glue_test_sst2"]}
    data = MMTDataset(tiny.write_root(tmp_path, content, media=False))
    assert data.unknown == ["image_test_unheard_of"]
    assert "image_test_unheard_of" in caplog.text


def test_without_train_it_can_still_be_evaluated(tmp_path):
    content = tiny.splits()
    del content["train"]
    data = MMTDataset(tiny.write_root(tmp_path, content, media=False))
    assert len(data.tests) == 3
    with pytest.raises(DataError, match="no 'train' split"):
        _ = data.train


def test_a_row_is_a_value():
    row = Row("a/0", "a", 0, "text", "", "q", "x")
    assert row == Row("a/0", "a", 0, "text", "", "q", "x")
    with pytest.raises(AttributeError):
        row.answer = "y"
