"""`verify` names what rows, tables and the manifest hide; training refuses a split that cannot be trusted."""

from __future__ import annotations

import json
import shutil

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lime.data.layout import is_blank
from lime.data.rows import DataError, MMTDataset
from lime.data.tools.prepare import prepare
from lime.data.tools.verify import verify
from tests.data import tiny

IMAGES, VIDEOS, TEXTS = "image_test_caltech101", "video_test_action_sequence", "glue_test_sst2"
BLANK = [
    "",
    "  ",
    "\t\n",
    "\u00a0",
    "\u3000",
    "\u200b\u200d",
    "\ufeff",
    "\u2800\u2800",
    "\u3164",
    "\u00ad",
    "\u0007",
    "\u2066 \u2069",
]
SEEN = ["a", "0", ".", "😀", "é", "क", "\u200bx", "-", "✓"]  # fmt: skip


def found(root):
    return [(fault.kind, fault.split, fault.row) for fault in verify(root, workers=1).faults]


def arrow(root, split):
    return next((root / "MMT_47" / split).glob("*.arrow"))


def test_blank_is_what_nobody_can_see():
    assert all(is_blank(text) for text in BLANK)
    assert not any(is_blank(text) for text in SEEN)


@pytest.mark.parametrize("blank", BLANK)
@pytest.mark.parametrize("column", ["question", "answer"])
def test_a_text_of_blanks_is_named_by_both(tmp_path, blank, column):
    content = tiny.splits()
    content[TEXTS][1][column] = blank
    root = tiny.write_root(tmp_path, content)
    assert found(root) == [(f"empty_{column}", TEXTS, 1)]
    with pytest.raises(DataError, match=rf"row {TEXTS}/1: its {column} is empty or blank"):
        MMTDataset(root)


def test_an_answer_that_can_never_be_given_is_named(tmp_path):
    content = tiny.splits()
    content[TEXTS][0]["answer"] = "Positive."  # the same as "positive" to the scorer
    content[TEXTS][1]["answer"] = "neutral"
    content[VIDEOS][2]["answer"] = "G"
    content[IMAGES][3]["answer"] = "anything"
    root = tiny.write_root(tmp_path, content)
    assert sorted(found(root)) == [("answer_not_allowed", TEXTS, 1), ("answer_not_allowed", VIDEOS, 2)]
    (root / "manifest.json").write_text(json.dumps({"allowed_answers": {IMAGES: ["red", "blue"]}}))
    assert ("answer_not_allowed", IMAGES, 3) in found(root)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "\xff",
        '{"allowed_answers": []}',
        '{"allowed_answers": {"x": "red"}}',
        '{"rows": []}',
        '{"prepared": 3}',
    ],
)
def test_a_bad_manifest_is_a_fault(tmp_path, content):
    root = tiny.write_root(tmp_path, tiny.splits())
    (root / "manifest.json").write_bytes(content.encode("latin-1"))
    faults = verify(root, workers=1).faults
    assert [(fault.kind, fault.file) for fault in faults] == [("bad_manifest", "manifest.json")]
    assert str(faults[0]).startswith("bad_manifest: manifest.json: ")
    if "rows" not in content and "prepared" not in content:
        with pytest.raises(DataError, match=r"manifest\.json"):
            MMTDataset(root)


def test_rows_are_held_against_the_manifest(tmp_path):
    root = tiny.write_root(tmp_path / "root", tiny.splits())
    prepare(root)
    assert verify(root, workers=1).ok
    # Another split's table in its place: as many rows, the same columns
    kept = arrow(root, IMAGES).read_bytes()
    shutil.copy(arrow(root, TEXTS), arrow(root, IMAGES))
    assert ("other_rows", IMAGES, None) in found(root)
    arrow(root, IMAGES).write_bytes(kept)
    # Fewer rows
    content = tiny.splits()[TEXTS][:-1]
    shutil.rmtree(root / "MMT_47" / TEXTS)
    datasets.Dataset.from_list(content).save_to_disk(str(root / "MMT_47" / TEXTS))
    report = verify(root, workers=1)
    assert [(fault.kind, fault.split) for fault in report.faults] == [("other_rows", TEXTS)]
    assert "3 rows, the manifest says 4" in str(report.faults[0])
    shutil.rmtree(root / "MMT_47" / VIDEOS)
    assert ("other_rows", VIDEOS, None) in found(root)


@pytest.mark.parametrize("cut", ["end", "batch", "half"])
def test_an_arrow_file_that_was_cut_is_named_by_both(tmp_path, cut):
    """Arrow itself reads a file that ends between two batches."""
    root = tiny.write_root(tmp_path, tiny.splits())
    file = arrow(root, "train")
    table = pa.Table.from_pylist(tiny.splits()["train"])
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=3):
            writer.write_batch(batch)
            place = sink.tell()
            if cut == "batch":
                break
    size = {"end": file.stat().st_size - 8, "batch": place, "half": file.stat().st_size // 2}[cut]
    file.write_bytes(file.read_bytes()[:size])
    assert found(root) == [("unreadable_split", "train", None)]
    with pytest.raises(ValueError, match=r"train: damaged or incomplete .*; fetch it again$"):
        MMTDataset(root)


def test_a_table_of_another_schema_is_named(tmp_path):
    root = tiny.write_root(tmp_path, tiny.splits())
    table = pa.table({"id": [1, 2], "text": ["a", "b"]})
    with pa.OSFile(str(arrow(root, TEXTS)), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert [(kind, split) for kind, split, _ in found(root)] in (
        [("unreadable_split", TEXTS)], [("missing_column", TEXTS)],
    )  # fmt: skip
    with pytest.raises(ValueError, match=TEXTS):
        MMTDataset(root)


def _shards(root, names):
    (root / "data").mkdir(parents=True)
    rows = tiny.splits()[TEXTS]
    for number, name in enumerate(names):
        own = [{**row, "question": f"{row['question']} {number}"} for row in rows]
        pq.write_table(pa.Table.from_pylist(own), root / "data" / name)


@pytest.mark.parametrize(
    "names",
    [
        [f"{TEXTS}.parquet", f"{TEXTS}-00000-of-00001.parquet"],
        [f"{TEXTS}-00000-of-00002.parquet", f"{TEXTS}-00000-of-00002-0123456789abcdef.parquet"],
        [f"{TEXTS}-00000-of-00001.parquet", f"{TEXTS}-00001-of-00002.parquet"],
    ],
)
def test_a_shard_that_is_there_twice_is_refused_in_training_as_well(tmp_path, names):
    _shards(tmp_path, names)
    for read in (MMTDataset, verify):
        with pytest.raises(ValueError, match=rf"split '{TEXTS}'.*(is there twice .*|two sets); remove one"):
            read(tmp_path)


def test_a_copy_of_a_shard_under_another_number_is_refused(tmp_path):
    names = [f"{TEXTS}-0000{n}-of-00002.parquet" for n in range(2)]
    _shards(tmp_path, names)
    assert len(MMTDataset(tmp_path).tests[TEXTS]) == 8
    shutil.copy(tmp_path / "data" / names[0], tmp_path / "data" / names[1])
    with pytest.raises(ValueError, match=f"a shard is there twice \\({names[0]} and {names[1]}\\); remove one"):
        MMTDataset(tmp_path)
    root = tiny.write_root(tmp_path / "arrow", tiny.splits())
    state = root / "MMT_47" / "train" / "state.json"
    content = json.loads(state.read_text())
    content["_data_files"] *= 2
    state.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="split 'train': a shard is there twice"):
        MMTDataset(root)
    assert ("unreadable_split", "train", None) in found(root)


def test_nested_columns_are_named_by_both(tmp_path):
    for number, nested in enumerate(({"bytes": b"x", "path": "a.png"}, ["a", "b"], 3, b"\xff\xfe")):
        root = tmp_path / str(number)
        (root / "data").mkdir(parents=True)
        rows = [{**row, "question": nested} for row in tiny.splits()[TEXTS]]
        pq.write_table(pa.Table.from_pylist(rows), root / "data" / f"{TEXTS}.parquet")
        assert {kind for kind, _, _ in found(root)} & {"missing_value", "not_utf8", "duplicate", "missing_column"}
        with pytest.raises(ValueError, match=TEXTS):
            MMTDataset(root)
