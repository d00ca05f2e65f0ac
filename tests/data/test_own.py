"""A folder of one's own: its tables and what is what in them, said or inferred; each thing wrong is named."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from lime.data.config import DataConfig
from lime.data.datasets import open_dataset
from lime.data.own.folder import Folder, is_own
from lime.data.own.unpack import unpack
from lime.data.rows import DataError, MMTDataset
from lime.data.tools.verify import verify
from scripts import data as data_script


def pictures(root: Path, count: int = 12) -> list[str]:
    """Small pictures in a folder; their names."""
    (root / "pictures").mkdir(parents=True)
    names = [f"{i:02d}.png" for i in range(count)]
    for i, name in enumerate(names):
        Image.new("RGB", (32 + i, 32), (20 * i % 256, 0, 0)).save(root / "pictures" / name)
    return names


def write_csv(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def opened(root: Path, **options: Any) -> MMTDataset:
    return open_dataset(DataConfig(name="own", root=str(root), **options))


def texts(root: Path, rows: int = 8, name: str = "train.csv") -> None:
    """Text rows with two answers."""
    write_csv(
        root / name, [["question", "answer"], *([f"Is {n} in {name}?", "yes" if n % 2 else "no"] for n in range(rows))]
    )


def test_two_columns_are_a_task(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = pictures(tmp_path, 40)
    cells = [[name, "cat" if i % 2 else "dog"] for i, name in enumerate(names)]
    write_csv(tmp_path / "labels.csv", [["picture", "label"], *cells])
    with caplog.at_level(logging.INFO):
        data = opened(tmp_path)
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 32, "test": 8}
    row = data.train[0]
    assert (row.source_type, row.media_path) == ("image", "pictures/01.png")
    assert row.question == "Which of these is it: cat, dog?"
    assert data.table.tasks["test"].answer_type == "label"
    assert data.allowed_answers("test") == ["cat", "dog"]
    assert not {r.media_path for r in data.train} & {r.media_path for r in data.tests["test"]}
    assert "columns: {image: picture, answer: label}" in caplog.text
    assert "scripts/data.py infer" in caplog.text
    every = opened(tmp_path, test_fraction=0.0)
    assert (len(every.train), every.tests, every.absent) == (40, {}, ["test"])


def test_what_was_inferred_can_be_written_down(tmp_path: Path) -> None:
    names = pictures(tmp_path, 20)
    write_csv(tmp_path / "labels.csv", [["file_name", "text"], *([name, "ab"[i % 2]] for i, name in enumerate(names))])
    before, folder = opened(tmp_path), Folder(tmp_path)
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(folder.written))
    assert not Folder(tmp_path).inferred
    assert opened(tmp_path).fingerprint == before.fingerprint


def test_files_tasks_and_questions_are_as_they_are_said(tmp_path: Path) -> None:
    names = pictures(tmp_path)
    rows = [["file", "kind", "label"], *([name, ("pets", "cars")[i % 2], "abc"[i % 3]] for i, name in enumerate(names))]
    for part, file in (((0, 6), "a-1.csv"), ((6, 8), "a-2.csv"), ((8, 10), "b.csv"), ((10, 12), "c.csv")):
        write_csv(tmp_path / file, [rows[0], *rows[1 + part[0] : 1 + part[1]]])
    spec = {
        "files": {"train": "a-*.csv", "validation": "b.csv", "test": ["c.csv"]},
        "columns": {"image": "file", "answer": "label", "task": "kind"},
        "question": {"pets": "Which pet?", "cars": "Which car?"},
        "folder": "pictures",
        "categories": {"photos": "Photographs"},
        "tasks": [
            {"split": "pets", "category": "photos", "answers": ["a", "b", "c"]},
            {"split": "cars", "name": "cars!", "category": "photos", "answer_type": "text", "metric": "token_f1"},
        ],
    }
    (tmp_path / "tasks.yaml").write_text(json.dumps(spec))
    data = opened(tmp_path)
    assert {split: len(part) for split, part in data.splits.items()} == {
        "train": 8, "validation": 2, "pets": 1, "cars": 1
    }  # fmt: skip
    assert data.validation is not None
    assert [row.question for row in data.validation] == ["Which pet?", "Which car?"]
    assert [row.id for rows in data.tests.values() for row in rows] == ["pets/0", "cars/0"]
    assert data.table.tasks["cars"].metric == "token_f1"
    assert data.table.tasks["cars"].name == "cars!"
    assert data.table.tasks["pets"].answer_type == "label"
    assert data.table.tasks["pets"].modality == "image"
    assert data.table.categories == {"photos": "Photographs"}


def test_test_rows_are_held_out_by_what_they_ask(tmp_path: Path) -> None:
    texts(tmp_path, 60)
    first = opened(tmp_path)
    lines = (tmp_path / "train.csv").read_text().splitlines()
    (tmp_path / "train.csv").write_text("\n".join([lines[0], *reversed(lines[1:]), lines[1]]))  # other order, one twice
    again = opened(tmp_path)
    asked = [{row.question for row in data.tests["test"]} for data in (first, again)]
    assert asked[0] == asked[1]
    assert len(asked[0]) == 12
    assert not asked[1] & {row.question for row in again.train}


def test_one_missing_picture_does_not_hide_the_folder_of_the_others(tmp_path: Path) -> None:
    names = pictures(tmp_path, 8)
    write_csv(tmp_path / "train.csv", [["image", "label"], *([name, "ab"[i % 2]] for i, name in enumerate(names))])
    (tmp_path / "pictures" / names[2]).unlink()
    assert {row.media_path for row in opened(tmp_path, test_fraction=0.0).train} == {f"pictures/{n}" for n in names}
    assert [(fault.kind, fault.row) for fault in verify(tmp_path, workers=1).faults] == [("missing", 2)]


def test_free_answers_stay_free(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [["prompt", "response"], *([f"What is {n}?", f"It is {n}."] for n in range(20))])
    task = opened(tmp_path).table.tasks["test"]
    assert (task.modality, task.answer_type, task.labels, task.metric) == ("text", "text", None, "accuracy")


def test_the_fingerprint_covers_rows_mapping_and_media(tmp_path: Path) -> None:
    names = pictures(tmp_path, 8)
    table = [
        ["image", "question", "answer"],
        *([f"pictures/{name}", "What?", "ab"[i % 2]] for i, name in enumerate(names)),
    ]
    write_csv(tmp_path / "train.csv", table)
    seen = {opened(tmp_path).fingerprint}
    (tmp_path / "tasks.yaml").write_text("tasks: [{split: test, answer_type: text}]\n")
    seen.add(opened(tmp_path).fingerprint)
    (tmp_path / "tasks.yaml").write_text("question: Why?\ncolumns: {image: image, answer: answer}\n")
    seen.add(opened(tmp_path).fingerprint)
    Image.new("RGB", (90, 90)).save(tmp_path / "pictures" / names[0])
    seen.add(opened(tmp_path).fingerprint)
    write_csv(tmp_path / "train.csv", [*table[:-1], [*table[-1][:-1], "a"]])
    seen.add(opened(tmp_path).fingerprint)
    assert len(seen) == 5
    assert opened(tmp_path).fingerprint in seen


def _file(name: str, content: str | bytes) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda root: (root / name).write_bytes(data) and None


def _spec(text: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        texts(root)
        (root / "tasks.yaml").write_text(text)

    return write


CHAT = '{"messages": [%s]}\n{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
USER, BOT = '{"role": "user", "content": "a"}', '{"role": "assistant", "content": "b"}'
HEAD = "image,question,answer\n"
WRONG: list[tuple[Callable[[Path], None], str]] = [
    (lambda root: None, r"holds no table of rows: expected a \.csv"),
    (_file("train.csv", ""), r"train\.csv: holds no row"),
    (_file("train.csv", "a,a\n1,2\n"), r"train\.csv: two columns are named 'a'"),
    (_file("train.csv", "question,answer\nx,y,z\n"), r"train\.csv: line 2: 3 values, 2 columns in the first line"),
    (_file("train.csv", 'question,answer\n"x,y\n'), r"train\.csv: line \d: not valid CSV"),
    (_file("train.csv", b"question,answer\nx,y\n\xff,z\n"), r"train\.csv: line 3: not UTF-8 text"),
    (_file("train.csv", "question,answer\nx,\n"), r"train\.csv: row train/0: its answer is empty or blank"),
    (_file("train.csv", "question,answer\nx,y\n \u200b,y\n"), r"train\.csv: row train/1: its question is empty"),
    (_file("train.csv", "a,b,c\n1,2,3\n"), r"which column is the answer\? It has 'a', 'b', 'c'"),
    (_file("train.csv", "id,text,note\n1,2,3\n"), ""),
    (_file("train.csv", "id,text\n1,2\n"), r"which column is the answer\? It has 'id', 'text'"),
    (_file("train.json", "{"), r"train\.json: not valid JSON"),
    (_file("train.json", "[1]"), r"train\.json: entry 0: expected an object"),
    (_file("train.jsonl", '{"question": "a", "answer": "b"}\n\n{'), r"train\.jsonl: line 3: not valid JSON"),
    (_file("train.jsonl", '{"question": "a", "answer": null}'), r"row train/0: its answer is absent"),
    (_file("train.jsonl", '{"question": "a", "answer": ["b"]}'), r"row train/0: its answer is .* expected text"),
    (_file("train.jsonl", '{"question": "\\ud800", "answer": "b"}'), r"row train/0: its question is not UTF-8"),
    (_file("train.parquet", b"PAR1"), r"train\.parquet: damaged or incomplete"),
    (_file("train.csv", HEAD + "../a.png,x,y\n"), r"row train/0: its image '\.\./a\.png' leaves the folder"),
    (_file("train.csv", HEAD + "https://a/b.png,x,y\n"), r"row train/0: its image .* is an address"),
    (_file("train.csv", HEAD + ",x,y\n"), r"row train/0: its image is empty or blank; expected a path"),
    (_file("train.csv", HEAD + "a.png,<image> or <image>,y\n"), r"row train/0: 2 marks .* for 1 media"),
    (_file("train.jsonl", CHAT % USER), r"row train/0: its messages is user; expected user and assistant in turn"),
    (_file("train.jsonl", CHAT % f"{USER}, {USER}, {BOT}"), r"row train/0: its messages is user, user, assistant"),
    (_file("train.jsonl", CHAT % f'{{"role": "x", "content": "a"}}, {BOT}'), r"turn 1 of its messages is of 'x'"),
    (_file("train.jsonl", CHAT % f"3, {BOT}"), r"turn 1 of its messages is '3'; expected \{role, content\}"),
    (_file("train.jsonl", CHAT % f'{{"role": "user", "content": [{{"type": "text"}}]}}, {BOT}'), r"content is absent"),
    (_file("train.jsonl", CHAT % f'{{"role": "user", "content": [{{"type": []}}]}}, {BOT}'), r"a part of type \[\]"),
    (_file("train.jsonl", "{}\n{}\n"), r"train\.jsonl: its rows hold nothing; expected objects"),
    (_file("train.csv", "question,answer,task\nx,y,\nz,y,train\n"), r"train\.csv: its column 'task' names no task"),
    (_file("one.csv", "question,answer\nx,y\n"), ""),
    (_spec("colums: {}"), r"tasks\.yaml: colums: no such key; expected files, columns"),
    (_spec("columns: {answr: answer}"), r"tasks\.yaml: columns: answr: no such role"),
    (_spec("columns: {question: question}"), r"tasks\.yaml: columns: answer is lacking"),
    (_spec("columns: {question: question, answer: a}"), r"train\.csv: no column 'a' for answer; found 'question'"),
    (_spec("files: {train: ../x.csv}"), r"tasks\.yaml: files: train: '\.\./x\.csv' leaves the folder"),
    (_spec("files: {train: x-*.csv}"), r"tasks\.yaml: files: train: no file in .* fits 'x-\*\.csv'"),
    (_spec("files: {train: x.csv}"), r"x\.csv: no such file"),
    (_spec("folder: nowhere"), r"tasks\.yaml: folder: expected a folder inside"),
    (_spec("question: []"), r"tasks\.yaml: question: expected a text"),
    (_spec("tasks: [{split: a, answer_type: x}]"), r"tasks\.yaml: row 1 of tasks: answer_type: expected one of"),
    (_spec("tasks: [{split: train}]"), r"tasks\.yaml: tasks: split: expected a name of its own"),
    (_spec("a: ["), r"tasks\.yaml: not valid YAML"),
    (_spec("files: {train: train.csv, x: train.csv}\ntasks: [{split: a}, {split: b}]"), r"rows of 'x' in .* task"),
    (_spec("files: {train: '*.csv', x: train.csv}"), r"files: train\.csv is both in train and in x; name it once"),
    (_spec("files: {x: train.csv, validation: train.csv}"), r"files: train\.csv is both in x and in validation"),
    (_spec("files: {train: [train.csv, 't*.csv']}"), r"tasks\.yaml: files: train\.csv is in train twice"),
    (_spec("files: {train: a.csv, train: train.csv}"), r"not valid YAML \(train is there twice in .*line 1"),
    (_spec("question: What?\nquestion: Who?"), r"not valid YAML \(question is there twice in .*line 2"),
    (_spec("question: {pts: What?}\ntasks: [{split: pets}]"), r"question: pts: no such task; expected pets"),
    (_spec("tasks: [{split: a, answers: [[b], c]}]"), r"tasks\.yaml: tasks: answers: expected a list of texts, got"),
    (_spec("categories: {b: B, c: C}\ntasks: [{split: a}]"), r"row 1 of tasks: category is lacking"),
    (_file("train.json", '[{"question": "a", "answer": NaN}]'), r"row train/0: its answer is nan, which is no value"),
]  # fmt: skip


@pytest.mark.parametrize(("write", "message"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_what_is_wrong_is_named(tmp_path: Path, write: Callable[[Path], None], message: str) -> None:
    write(tmp_path)
    if not message:
        assert len(opened(tmp_path, test_fraction=0.0).train) == 1
        return
    with pytest.raises(ValueError, match=message) as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


def test_tasks_may_be_numbers(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "answer": "ab"[n % 2], "task": [0, 1, True, 0.5][n % 4]} for n in range(40)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    assert list(opened(tmp_path).table.tasks) == ["0", "1", "true", "0.5"]


def test_an_empty_spec_says_nothing(tmp_path: Path) -> None:
    _spec("# nothing yet\n")(tmp_path)
    assert Folder(tmp_path).inferred.keys() >= {"files", "columns", "tasks"}


def test_the_only_category_is_that_of_every_task(tmp_path: Path) -> None:
    _spec("categories: {animals: Animals}\n")(tmp_path)
    assert opened(tmp_path).table.tasks["test"].category == "animals"


def test_numbers_in_json_stay_as_they_are_written(tmp_path: Path) -> None:
    written = ["1.50", "1e3", "12", "12345678901234567890.125"]
    for name, text in {
        "train.json": f'[{", ".join(f"""{{"question": "a{i}", "answer": {one}}}""" for i, one in enumerate(written))}]',
        "train.jsonl": "\n".join(f'{{"question": "a{i}", "answer": {one}}}' for i, one in enumerate(written)),
    }.items():
        (tmp_path / name).write_text(text)
        assert [row.answer for row in opened(tmp_path, test_fraction=0.0).train] == written
        (tmp_path / name).unlink()


def test_a_name_with_brackets_is_a_file(tmp_path: Path) -> None:
    texts(tmp_path, name="train [1].csv")
    folder = Folder(tmp_path)
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(folder.written))
    assert len(Folder(tmp_path).rows) == 8


def test_a_table_without_a_line_of_names_is_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "labels.csv", [[name, "ab"[i % 2]] for i, name in enumerate(pictures(tmp_path))])
    with pytest.raises(DataError, match=r"labels\.csv: line 1: holds a file's name, '00\.png', and so is a row"):
        opened(tmp_path)


def test_pictures_in_a_column_of_another_name_are_not_lost(tmp_path: Path) -> None:
    rows = [[name, "ab"[i % 2]] for i, name in enumerate(pictures(tmp_path))]
    write_csv(tmp_path / "train.csv", [["image", "label"], *rows])
    write_csv(tmp_path / "test.csv", [["picture", "label"], *rows[:4]])
    with pytest.raises(DataError, match=r"test\.csv: its column 'picture' looks like images"):
        opened(tmp_path)
    write_csv(tmp_path / "test.csv", [["text", "label"], ["a", "b"]])
    assert [row.source_type for row in opened(tmp_path).tests["test"]] == ["text"]


def test_what_several_tasks_ask_alike_is_on_one_side(tmp_path: Path) -> None:
    rows = [[f"Is {n} even?", "no" if n % 2 else "yes", task] for n in range(40) for task in ("a", "b")]
    extra = [[f"Is {n} odd?", "yes" if n % 2 else "no", "b"] for n in range(40)]
    write_csv(tmp_path / "train.csv", [["question", "answer", "task"], *rows, *extra])
    data = opened(tmp_path)
    asked = {row.question for rows in data.tests.values() for row in rows}
    assert asked
    assert not asked & {row.question for row in data.train}


def test_two_files_of_unclear_use_are_asked_about(tmp_path: Path) -> None:
    texts(tmp_path, name="a.csv")
    texts(tmp_path, name="b.csv")
    with pytest.raises(DataError, match=r"a\.csv, b\.csv: training rows or test rows\? Write it in .*tasks\.yaml"):
        opened(tmp_path)


def test_verify_names_every_fault(tmp_path: Path) -> None:
    names = pictures(tmp_path, 6)
    (tmp_path / "pictures" / names[1]).write_bytes(b"\x89PNG damaged")
    cells = [[f"pictures/{name}", "What?", "ab"[i % 2]] for i, name in enumerate(names)]
    table = [
        *cells,
        cells[0],
        ["pictures/none.png", "What?", "a"],
        ["pictures/00.png", " ", "a"],
        [cells[2][0], "?", "c"],
    ]
    write_csv(tmp_path / "train.csv", [["image", "question", "answer"], *table])
    (tmp_path / "tasks.yaml").write_text("tasks: [{split: test, answers: [a, b]}]\n")
    report = verify(tmp_path, workers=1)
    found = {(fault.kind, fault.row) for fault in report.faults}
    assert found == {
        ("damaged", 1), ("duplicate", 6), ("missing", 7), ("empty_question", 8), ("answer_not_allowed", 9)
    }  # fmt: skip
    assert report.rows == {"train": 10}


def test_pictures_inside_a_table_are_unpacked(tmp_path: Path) -> None:
    names = pictures(tmp_path / "elsewhere", 4)
    data = [(tmp_path / "elsewhere" / "pictures" / name).read_bytes() for name in names]
    rows = [{"image": {"bytes": one, "path": None}, "label": "ab"[i % 2]} for i, one in enumerate(data)]
    root = tmp_path / "root"
    root.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), root / "train.parquet")
    with pytest.raises(DataError, match=r"row train/0: its image holds the picture itself; `data.py unpack`"):
        opened(root, test_fraction=0.0)
    assert unpack(root)[0] == 4
    assert [(root / row.media_path).read_bytes() for row in opened(root, test_fraction=0.0).train] == data
    assert verify(root, workers=1).ok
    with pytest.raises(FileExistsError, match="unpacked is there already; move it away"):
        unpack(root)


def test_pictures_that_are_bytes_alone_are_unpacked(tmp_path: Path) -> None:
    names = pictures(tmp_path / "elsewhere", 4)
    data = [(tmp_path / "elsewhere" / "pictures" / name).read_bytes() for name in names]
    root = tmp_path / "root"
    root.mkdir()
    for part in (0, 1):
        rows = [{"image": one, "label": "ab"[i % 2]} for i, one in enumerate(data[2 * part : 2 * part + 2])]
        pq.write_table(pa.Table.from_pylist(rows), root / f"part-{part}.parquet")
    (root / "tasks.yaml").write_text("files: {train: part-*.parquet}\n")
    with pytest.raises(DataError, match=r"row train/0: its image holds bytes; `data.py unpack`"):
        opened(root, test_fraction=0.0)
    count, text = unpack(root)
    assert count == 4
    (root / "tasks.yaml").write_text(text)
    assert [(root / row.media_path).read_bytes() for row in opened(root, test_fraction=0.0).train] == data


def test_nothing_is_inferred_from_rows_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = pictures(tmp_path)
    rows = [[f"/elsewhere/{name}", "ab"[i % 2]] for i, name in enumerate(names)]
    write_csv(tmp_path / "labels.csv", [["image", "label"], *rows])
    assert data_script.main(["infer", str(tmp_path)]) == 2
    assert "row train/0: its image '/elsewhere/00.png' leaves the folder" in capsys.readouterr().err
    assert not (tmp_path / "tasks.yaml").exists()
    write_csv(tmp_path / "labels.csv", [["image", "label"], *([name, "a"] for name in names), *rows])
    assert data_script.main(["infer", str(tmp_path)]) == 0
    assert "12 of 24 rows cannot be used; `verify` names them" in capsys.readouterr().out
    assert "modality: image" in (tmp_path / "tasks.yaml").read_text()


def test_options_of_ones_own_data_are_for_it_alone() -> None:
    assert not DataConfig(name="own", root="x", test_fraction=0.3, train_on="all", least_steps=5).errors()
    for wrong in ({"test_fraction": 1.0}, {"train_on": "first"}, {"least_steps": 0}):
        (problem,) = DataConfig(name="own", root="x", **wrong).errors()  # type: ignore[arg-type]
        assert problem.startswith(f"data.{next(iter(wrong))}: expected")
    assert "for data=own alone" in DataConfig(root="x", train_on="all").errors()[0]


def test_a_published_root_is_not_taken_for_one_of_ones_own(tmp_path: Path) -> None:
    texts(tmp_path)
    assert is_own(tmp_path)
    (tmp_path / "train.csv").unlink()
    assert not is_own(tmp_path)
    (tmp_path / "data").mkdir()
    texts(tmp_path / "data")
    assert is_own(tmp_path)
    assert verify(tmp_path).rows == {"train": 8}
    assert not is_own(tmp_path / "nowhere")
