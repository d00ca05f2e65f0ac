"""The same rows however they are written give the same batches; several pictures and turns, labelled as asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lime.data.collate import IGNORED, Collator, model_inputs
from lime.data.config import DataConfig
from lime.data.conversation import Conversation
from lime.data.datamodule import MMTDataModule
from lime.data.rows import MMTDataset
from tests.data.test_own import opened, pictures, write_csv

QUESTIONS = ("What is shown?", 'Is it "red",\nor blue; which?')
ANSWERS = ("red", "it's blue, I think")
Triple = tuple[str, str, str]


def _columns(rows: list[Triple]) -> list[dict[str, str]]:
    return [dict(zip(("image", "question", "answer"), row, strict=True)) for row in rows]


def _csv(root: Path, rows: list[Triple]) -> None:
    write_csv(root / "train.csv", [["image", "question", "answer"], *map(list, rows)])


def _excel(root: Path, rows: list[Triple]) -> None:
    """As spreadsheets save it: a byte order mark, semicolons, other line ends."""
    cells = [[f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row] for row in rows]
    text = "\r\n".join(["image;question;answer", *(";".join(row) for row in cells), ""])
    (root / "train.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())


def _json(root: Path, rows: list[Triple]) -> None:
    (root / "train.json").write_text(json.dumps(_columns(rows)))


def _lines(root: Path, rows: list[Triple]) -> None:
    (root / "train.jsonl").write_text("\n".join(map(json.dumps, _columns(rows))) + "\n")


def _parquet(root: Path, rows: list[Triple]) -> None:
    for part, piece in enumerate((rows[:4], rows[4:])):
        pq.write_table(pa.Table.from_pylist(_columns(piece)), root / f"train-0000{part}-of-00002.parquet")


def _saved(root: Path, rows: list[Triple]) -> None:
    parts = {"train": datasets.Dataset.from_list(_columns(rows))}
    datasets.DatasetDict(parts).save_to_disk(str(root / "saved"))


def _conversations(root: Path, rows: list[Triple]) -> None:
    content = [
        {"image": i, "conversations": [{"from": "human", "value": f"<image>\n{q}"}, {"from": "gpt", "value": a}]}
        for i, q, a in rows
    ]
    (root / "train.json").write_text(json.dumps(content))


def _messages(root: Path, rows: list[Triple]) -> None:
    content = []
    for number, (image, question, answer) in enumerate(rows):
        parts = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        text = {"role": "user", "content": parts if number % 2 else question}
        record: dict[str, object] = {"messages": [text, {"role": "assistant", "content": answer}]}
        content.append(record if number % 2 else {**record, "images": [image]})
    (root / "train.jsonl").write_text("\n".join(map(json.dumps, content)))


FORMATS = (_csv, _excel, _json, _lines, _parquet, _saved, _conversations, _messages)


def _data(root: Path, write: Callable[[Path, list[Triple]], None]) -> MMTDataset:
    names = pictures(root)
    rows = [(name, QUESTIONS[i % 2], ANSWERS[i % 2]) for i, name in enumerate(names)]
    write(root, rows)
    return opened(root, test_fraction=0.0)


@pytest.mark.parametrize("write", FORMATS[1:], ids=lambda write: write.__name__)
def test_the_same_rows_give_the_same_batches(tmp_path: Path, write: Callable, family: str, processor) -> None:
    a, b = _data(tmp_path / "csv", _csv), _data(tmp_path / "other", write)
    assert list(a.train) == list(b.train)
    assert a.rows_fingerprint == b.rows_fingerprint
    first, second = (Collator(processor, family, data.root).training_batch(list(data.train)) for data in (a, b))
    assert model_inputs(first).keys() == model_inputs(second).keys()
    assert all(torch.equal(first[key], second[key]) for key in model_inputs(first))
    assert {int(n) for n in first["labels"].ne(IGNORED).sum(1)} == {
        len(ids) for ids in Conversation(processor).answers(list(a.train)[:2])
    }


def _chat(root: Path) -> MMTDataset:
    first, second, *_ = pictures(root)
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "<image>\nWhat is this?"},
        {"from": "gpt", "value": "A dark one."},
        {"from": "human", "value": "<image>\nAnd this?"},
        {"from": "gpt", "value": "A red one."},
    ]
    records = [
        {"image": [first, second], "conversations": turns},
        {"conversations": [{"from": "human", "value": "Is <image> a tag?"}, {"from": "gpt", "value": "Yes."}]},
    ]
    (root / "train.json").write_text(json.dumps(records))
    (root / "tasks.yaml").write_text("columns: {conversations: conversations, image: image}\n")
    return opened(root, test_fraction=0.0)


@pytest.mark.parametrize("train_on", ["last", "all"])
def test_several_pictures_and_turns(tmp_path: Path, family: str, processor, train_on: str) -> None:
    row, text_row = _chat(tmp_path).train
    collator = Collator(processor, family, tmp_path, train_on=train_on)
    (batch, prompts), end = (
        (make([row, text_row]) for make in (collator.training_batch, collator.prompt_batch)),
        (collator.conversation.end_token),
    )
    said = [
        processor.tokenizer.decode(ids[labels != IGNORED])
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)
    ]
    assert said == [f"A dark one.{end}A red one.{end}" if train_on == "all" else f"A red one.{end}", f"Yes.{end}"]
    length = int(prompts["attention_mask"][0].sum())
    assert torch.equal(prompts["input_ids"][0, -length:], batch["input_ids"][0, :length])
    assert batch["attention_mask"].sum(1).tolist() == collator.lengths([row, text_row])
    placeholder = collator.conversation.placeholders["image"]
    pictures_of = [medium.tokens for medium in collator.media(row)]
    assert len(pictures_of) == 2
    assert int((batch["input_ids"] == placeholder).sum()) == sum(pictures_of)
    text = processor.tokenizer.decode(collator.conversation.prompts([row])[0])
    parts = ("Be brief.", "What is this?", "A dark one.", "And this?")
    assert [text.count(part) for part in parts] == [1] * 4
    assert sorted(parts, key=text.index) == list(parts)
    assert "You are a helpful assistant" not in text, "its own system turn"


def test_a_template_without_several_turns_names_the_row(tmp_path: Path, processor) -> None:
    data = _chat(tmp_path)
    single = "{% if messages|length > 2 %}{{ raise_exception('one question only') }}{% endif %}"
    processor.chat_template = single + processor.chat_template
    with pytest.raises(ValueError, match=r"row train/0: .* does not take its turns .*one question only"):
        Conversation(processor).prompts(list(data.train))


def test_the_options_of_rows_hold(tmp_path: Path, processor, family: str) -> None:
    names = pictures(tmp_path, 20)
    rows = [[name, "What?", "ab"[i % 2]] for i, name in enumerate(names)]
    for name, part in (("train", rows[:12]), ("val", rows[12:15]), ("test", rows[15:])):
        write_csv(tmp_path / f"{name}.csv", [["image", "question", "answer"], *part])
    (tmp_path / "pictures" / names[13]).unlink()
    options = {"on_missing_media": "skip", "rows_per_split": 3, "train_rows": 8}
    module = MMTDataModule(
        DataConfig(name="own", root=str(tmp_path), **options),
        batch_size=4, eval_batch_size=4, seed=0, processor=processor, family=family,
    )  # fmt: skip
    module.least_rows = 20
    module.setup("fit")
    assert len(module.train_rows) == 24, "eight rows, three times"
    assert [row.id for row in module.val_rows] == ["validation/0", "validation/2"]
    assert module.left_out.counts()["missing_media"] == {"validation": 1}
    assert len(module.test_rows("test")) == 3
