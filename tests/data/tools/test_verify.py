"""`verify` finds every planted fault, names it by file, split and row, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lime.data.media.signatures import describe
from lime.data.rows import MMTDataset
from lime.data.tools.verify import Fault, verify
from tests.data import tiny

SCRIPT = Path(__file__).parents[3] / "scripts" / "data.py"
NOBODY = 65534
IMAGES, VIDEOS, TEXTS = "image_test_caltech101", "video_test_action_sequence", "glue_test_sst2"
COLUMNS = ("source_type", "media_path", "question", "answer")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that any user can read (pytest's own are for their owner alone)."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "root"


@contextmanager
def as_anybody() -> Iterator[None]:
    """Without the superuser's right to read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def write(root: Path, content: dict[str, list[dict]]) -> None:
    """Rows as parquet, in binary columns declared as text, so that they may hold what is not UTF-8."""
    (root / "data").mkdir(parents=True)
    for split, rows in content.items():
        columns = {}
        for name in COLUMNS:
            values = [v.encode() if isinstance(v := row[name], str) else v for row in rows]
            binary = pa.array(values, type=pa.binary())
            columns[name] = pa.Array.from_buffers(pa.string(), len(binary), binary.buffers())
        pq.write_table(pa.table(columns), root / "data" / f"{split}-00000-of-00001.parquet")


def plant(root: Path) -> list[tuple[str, str, int | None, str]]:
    """A data root with 30 faults; (kind, split, row, part of the file's name) of each."""
    media, outside = root / "media", root.parent / "outside"
    content = {
        "train": [tiny.row("text", "", f"is {n} even?", "yes") for n in range(12)],
        IMAGES: [tiny.row("image", f"media/i{n}.png", f"what is {n}?", "red") for n in range(16)],
        VIDEOS: [tiny.row("video", f"media/v{n}.mp4", "what tampering?", "A") for n in range(12)],
        TEXTS: [tiny.row("text", "", f"is {n} good?", "positive") for n in range(3)],
    }
    for n in range(16):
        tiny.write_image(media / f"i{n}.png", 40, 40, seed=n)
    for n in range(12):
        tiny.write_video(media / f"v{n}.mp4", tiny.moving_square(12 + n, 48))
    tiny.write_image(outside / "secret.png")
    planted: list[tuple[str, str, int | None, str]] = []

    def fault(kind: str, split: str, row: int | None, file: str) -> None:
        planted.append((kind, split, row, file))

    def change(kind: str, split: str, index: int, file: str = "", **values: object) -> None:
        content[split][index].update(values)
        fault(kind, split, index, file)

    def cut(path: Path, share: float) -> None:
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    # Pictures
    (media / "i0.png").unlink()
    fault("missing", IMAGES, 0, "i0.png")
    (media / "i1.png").write_bytes(b"")
    fault("empty", IMAGES, 1, "i1.png")
    cut(media / "i2.png", 0.6)
    fault("damaged", IMAGES, 2, "i2.png")
    (media / "i3.png").write_text("this is not a picture")
    fault("wrong_type", IMAGES, 3, "i3.png")
    shutil.copy(media / "v0.mp4", media / "i4.png")
    fault("wrong_type", IMAGES, 4, "i4.png")
    (media / "i5.png").chmod(0o000)
    fault("unreadable", IMAGES, 5, "i5.png")
    change("outside_root", IMAGES, 6, "secret.png", media_path="../outside/secret.png")
    change("outside_root", IMAGES, 7, "secret.png", media_path=str(outside / "secret.png"))
    (media / "i8.png").unlink()
    (media / "i8.png").symlink_to(outside / "secret.png")
    fault("outside_root", IMAGES, 8, "i8.png")
    (media / "i9.png").unlink()
    (media / "i9.png").mkdir()
    fault("wrong_type", IMAGES, 9, "i9.png")
    data = bytearray((media / "i10.png").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (media / "i10.png").write_bytes(data)
    fault("damaged", IMAGES, 10, "i10.png")
    (media / "i11.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    fault("wrong_type", IMAGES, 11, "i11.png")
    change("no_media_path", IMAGES, 12, media_path="")
    change("not_utf8", IMAGES, 13, media_path=b"media/\xff.png")
    change("unknown_source_type", IMAGES, 14, source_type="audio")
    # Clips
    (media / "v0.mp4").unlink()
    fault("missing", VIDEOS, 0, "v0.mp4")
    (media / "v1.mp4").write_bytes(b"")
    fault("empty", VIDEOS, 1, "v1.mp4")
    cut(media / "v2.mp4", 0.5)
    fault("damaged", VIDEOS, 2, "v2.mp4")
    shutil.copy(media / "i15.png", media / "v3.mp4")
    fault("wrong_type", VIDEOS, 3, "v3.mp4")
    (media / "v4.mp4").chmod(0o000)
    fault("unreadable", VIDEOS, 4, "v4.mp4")
    (media / "v5.mp4").write_text("<!DOCTYPE html><title>Not found</title>")
    fault("wrong_type", VIDEOS, 5, "v5.mp4")
    change("missing_value", VIDEOS, 6, source_type=None)
    content[VIDEOS][7] = dict(content[VIDEOS][8])
    fault("duplicate", VIDEOS, 8, "v8.mp4")
    # Texts
    change("empty_answer", "train", 1, answer="  ")
    change("empty_question", "train", 2, question="")
    change("not_utf8", "train", 3, question=b"caf\xe9?")
    change("not_utf8", "train", 4, answer=b"\xff")
    change("missing_value", "train", 5, answer=None)
    content["train"][7] = dict(content["train"][6])
    fault("duplicate", "train", 7, "train")
    write(root, content)
    table = root / "data" / f"{TEXTS}-00000-of-00001.parquet"
    cut(table, 0.7)
    fault("unreadable_split", TEXTS, None, TEXTS)
    assert len(planted) == 30
    return planted


def names(fault: Fault) -> tuple[str, str, int | None]:
    return fault.kind, fault.split, fault.row


def test_thirty_planted_faults_are_found_and_named(place):
    planted = plant(place)
    with as_anybody():
        report = verify(place, workers=1)
    assert sorted(map(repr, map(names, report.faults))) == sorted(repr(p[:3]) for p in planted)
    found = {names(fault): fault for fault in report.faults}
    for kind, split, row, file in planted:
        fault = found[kind, split, row]
        assert file in fault.file
        assert fault.problem
        assert (split if row is None else f"{split}/{row}") in str(fault)
    assert not report.ok
    counts = report.counts()
    assert counts[IMAGES]["missing"] == counts[VIDEOS]["missing"] == counts["train"]["duplicate"] == 1
    lines = {line.split()[0]: line.split()[1:] for line in report.table().splitlines()[1:]}
    assert lines[IMAGES] == ["16", "1", "11", "0", "3"]
    assert lines["all"] == ["40", "2", "16", "2", "10"]


def test_processes_find_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("lime.data.tools.verify._SERIAL", 0)
    monkeypatch.setattr("lime.data.tools.verify._CHUNK", 5)
    root = tiny.write_root(tmp_path, tiny.splits())
    (root / "media" / "train_2.png").unlink()
    (root / "media" / "test_1.mp4").write_bytes(b"")
    one, two = verify(root, workers=1), verify(root, workers=2)
    assert one == two
    assert [str(fault.kind) for fault in two.faults] == ["missing", "empty"]


def test_a_whole_root_has_no_fault_and_lists_what_is_absent(root):
    report = verify(root, workers=1)
    assert report.ok
    assert report.media == 24
    assert len(report.absent) == 44
    assert report.rows == {"train": 24, IMAGES: 4, VIDEOS: 4, TEXTS: 4}


def test_real_rows_have_no_fault(real_root):
    report = verify(real_root, workers=1)
    assert report.ok, report.faults
    assert sum(report.rows.values()) == 1567


def test_a_file_that_many_rows_share_is_decoded_once_and_named_for_each(tmp_path):
    content = tiny.splits()
    for n, row in enumerate(content[IMAGES]):
        row.update(media_path="media/test_0.png", question=f"question {n}")
    root = tiny.write_root(tmp_path, content)
    (root / "media" / "test_0.png").write_bytes(b"\x89PNG")
    report = verify(root, workers=1)
    assert [names(fault) for fault in report.faults] == [("damaged", IMAGES, n) for n in range(4)]
    assert report.media == 8 + 4 + 1


def test_a_missing_column_is_a_fault_of_its_split(tmp_path):
    content = tiny.splits()
    content[TEXTS] = [{k: v for k, v in row.items() if k != "answer"} for row in content[TEXTS]]
    report = verify(tiny.write_root(tmp_path, content), workers=1)
    assert [names(fault) for fault in report.faults] == [("missing_column", TEXTS, None)]


def test_a_row_that_is_not_utf8_is_named_when_it_is_opened(tmp_path):
    rows = tiny.splits()["glue_test_sst2"]
    write(tmp_path, {TEXTS: [*rows, {**rows[0], "question": b"caf\xe9"}]})
    with pytest.raises(ValueError, match=rf"row {TEXTS}/4: its question is not UTF-8"):
        MMTDataset(tmp_path)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)


def test_the_command_tells_by_its_exit_status(tmp_path):
    root = tiny.write_root(tmp_path / "root", {IMAGES: tiny.splits()[IMAGES]})
    assert run("verify", root).returncode == 0
    (root / "media" / "test_1.png").unlink()
    done = run("verify", root, "--json", tmp_path / "report.json")
    assert done.returncode == 1
    assert f"missing: row {IMAGES}/1: media/test_1.png: no such file" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["counts"] == {IMAGES: {"missing": 1}}
    nowhere = run("verify", tmp_path / "nowhere")
    assert nowhere.returncode == 2
    assert "is not a folder" in nowhere.stderr
    assert "Traceback" not in nowhere.stderr


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"RIFF0000WEBPVP8 ", "a WebP picture"),
        (b"RIFF0000AVI LIST", "an AVI video"),
        (b"\0\0\0 ftypisom", "an MP4 video"),
        (b"<html><body>", "an HTML page"),
        (b"hello\n", "text"),
        (bytes(range(200)), None),
        (b"", None),
    ],
)
def test_first_bytes_say_what_a_file_is(head, said):
    assert describe(head) == said
