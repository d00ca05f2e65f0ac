"""verify, training, evaluation and reports say the same of every file: readable, refused, or left out."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lime.data.config import DataConfig
from lime.data.datamodule import MMTDataModule
from lime.data.media import MediaError
from lime.data.tools.verify import verify
from lime.processors.families import load_processor
from lime.report.media import pictures
from tests.data import clips, tiny

SPLITS = {"image": "image_test_caltech101", "video": "video_test_action_sequence"}
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F")


def _good_pictures(folder):
    rng = np.random.default_rng(0)
    source = Image.fromarray(rng.integers(0, 255, (36, 52, 3), dtype=np.uint8))
    for suffix in ("jpg", "png", "gif", "bmp", "tif", "webp", "ppm", "tga", "ico", "jp2", "pcx", "dds", "qoi", "avif"):
        source.save(folder / f"good_{suffix}.{suffix}")
    for mode in MODES:
        made = Image.new(mode, (40, 30)) if mode != "P" else source.convert("P")
        made.save(folder / f"mode_{mode.replace(';', '_')}.{'tif' if mode not in ('P', 'LA') else 'png'}")
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for suffix in ("jpg", "tif"):
            source.save(folder / f"turned_{orientation}.{suffix}", exif=exif)
    shutil.copy(folder / "good_png.png", folder / "a b:c%d.png")
    source.save(folder / "named_as_another.jpg", format="PNG")


def _bad_pictures(folder):
    rng = np.random.default_rng(1)
    for path in sorted(folder.glob("good_*")):
        data = path.read_bytes()
        path.with_name(f"cut_{path.name}").write_bytes(data[: len(data) // 2])
        changed = bytearray(data)
        for place in rng.integers(0, min(len(data), 200), 6):
            changed[place] = int(rng.integers(256))
        path.with_name(f"changed_{path.name}").write_bytes(changed)
    Image.fromarray(np.full((8, 8), 7, np.float32)).save(folder / "float7.tif")
    Image.fromarray(np.full((8, 8), -7, np.int32)).save(folder / "negative.tif")
    Image.new("1", (9000, 6000)).save(folder / "bomb.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no picture")
    (folder / "a.blp").write_bytes(b"BLP2" + b"\xff" * 40)
    (folder / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    (folder / "link_out.png").symlink_to(folder.parent.parent / "outside.png")
    Image.new("RGB", (8, 8)).save(folder.parent.parent / "outside.png")
    (folder / "link_in.png").symlink_to("good_png.png")
    (folder / "loop.png").symlink_to("loop.png")


def _clips(folder):
    for name, write in clips.WHOLE.items():
        write(folder / name)
    for name in (
        "plain.mp4",
        "plain.mkv",
        "vp9.webm",
        "b_frames.avi",
        "windows.wmv",
        "flash.flv",
        "clip.gif",
        "programme.mpg",
    ):
        data = (folder / name).read_bytes()
        (folder / f"cut_{name}").write_bytes(data[: len(data) // 2])
    shutil.copy(folder / "plain.mp4", folder / "clip:1.mp4")
    Image.new("RGB", (40, 30)).save(folder / "picture.mp4", format="PNG")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\ntransport.ts\n#EXT-X-ENDLIST\n")
    (folder / "list2.mp4").write_text("ffconcat version 1.0\nfile transport.ts\n")
    (folder / "codec.mp4").write_bytes((folder / "plain.mp4").read_bytes().replace(b"avc1", b"zzz9"))
    clips.encode(folder / "long.mp4", tiny.moving_square(5), times=[0, 2_000_000, 4_000_000, 6_000_000, 8_000_000])
    (folder / "folder.mp4").mkdir()


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A root with one row for each of many files, and some for files that are not there."""
    root = tmp_path_factory.mktemp("agreement") / "root"
    for kind in SPLITS:
        (root / kind).mkdir(parents=True)
    _good_pictures(root / "image")
    _bad_pictures(root / "image")
    _clips(root / "video")
    (root / "data").mkdir()
    rows = []
    for kind, split in SPLITS.items():
        names = sorted(f"{kind}/{path.name}" for path in (root / kind).iterdir())
        names += [f"{kind}/gone.x", f"{kind}/{'n' * 300}", f"{kind}/a\0b", f"{kind}/good_png.png/x"]
        own = [tiny.row(kind, name, f"what is {number}?", "A") for number, name in enumerate(names)]
        pq.write_table(pa.Table.from_pylist(own), root / "data" / f"{split}-00000-of-00001.parquet")
        rows += own
    pq.write_table(pa.Table.from_pylist(rows), root / "data" / "train-00000-of-00001.parquet")
    return root


def _module(root, family, **options):
    config = DataConfig(name="mmt47", root=str(root), validation_fraction=0.0, max_length=8192, **options)
    processor = load_processor(tiny.checkpoint(family), family)
    return MMTDataModule(config, batch_size=4, eval_batch_size=4, seed=0, processor=processor, family=family)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_reader_says_the_same_of_every_file(everything, family):
    report = verify(everything, workers=1)
    faulty = {f"{fault.split}/{fault.row}": fault for fault in report.faults}
    assert len(faulty) == len(report.faults), "one fault a row"
    # Training and evaluation, leaving out
    skipping = _module(everything, family, on_missing_media="skip")
    skipping.setup()
    left_out = set(skipping.left_out.missing_media["train"])
    for split in SPLITS.values():
        skipping.test_rows(split)
        left_out |= set(skipping.left_out.missing_media[split])
    assert left_out == set(faulty)
    # One file at a time, as an error
    strict = _module(everything, family)
    readable = 0
    for rows in (strict.dataset.train, *strict.dataset.tests.values()):
        for row in rows:
            shown, note = pictures(everything, row.media_path, row.source_type)
            if row.id not in faulty:
                assert bool(strict.collator.media(row)) == (row.source_type != "text"), row
                assert len(strict.collator.lengths([row])) == 1
                assert shown, (row, note)
                assert not note
                readable += 1
                continue
            with pytest.raises(MediaError) as caught:
                strict.collator.media(row)
            assert (caught.value.kind, caught.value.problem) == (faulty[row.id].kind, faulty[row.id].problem)
            assert f"(row {row.id})" in str(caught.value)
            assert not shown
            assert note
    kinds = {fault.kind for fault in report.faults}
    assert kinds == {"missing", "empty", "unreadable", "outside_root", "wrong_type", "damaged", "too_large"}
    assert readable > 150
    assert len(faulty) > 80
    assert {note.file for note in report.notes} == {"video/sizes.h264", "video/sizes.ts"}
    with pytest.raises(MediaError, match=r"\(row train/\d+\): .* \(\d+ of \d+ rows of train lack their media"):
        strict.setup()


def test_a_picture_that_the_processor_refuses_is_named_and_can_be_left_out(tmp_path):
    content = tiny.splits()
    root = tiny.write_root(tmp_path, content)
    Image.new("RGB", (2000, 4)).save(root / "media" / "train_0.png")
    Image.new("RGB", (2000, 4)).save(root / "media" / "test_1.png")
    strict = _module(root, "qwen2_vl")
    with pytest.raises(
        MediaError, match=r"train_0\.png \(row train/\d+\): the model's processor refuses it \(.*aspect"
    ):
        strict.setup()
    skipping = _module(root, "qwen2_vl", on_missing_media="skip")
    skipping.setup()
    skipping.test_rows(SPLITS["image"])
    assert {part: len(ids) for part, ids in skipping.left_out.missing_media.items()} == {
        "train": 1, "validation": 0, SPLITS["image"]: 1,
    }  # fmt: skip
    report = verify(root, workers=1)
    assert report.ok
    assert {note.file for note in report.notes} == {"media/train_0.png", "media/test_1.png"}
    assert all("refuse this shape" in note.problem for note in report.notes)


def test_too_little_shared_memory_is_said_before_training(root, monkeypatch):
    monkeypatch.setattr("lime.data.shared_memory.room", lambda: 100_000)
    data = _module(root, "llava_onevision", num_workers=2)
    data.setup()
    with pytest.raises(ValueError, match=r"data\.num_workers=2: batches .*MB of shared memory, /dev/shm has 0 MB left"):
        data.train_dataloader()
    monkeypatch.setattr("lime.data.shared_memory.room", lambda: 10**12)
    assert len(data.train_dataloader()) > 0
    monkeypatch.setattr("lime.data.shared_memory.room", lambda: 0)
    alone = _module(root, "llava_onevision", num_workers=0)
    assert len(alone.train_dataloader()) > 0, "no process, no shared memory"
