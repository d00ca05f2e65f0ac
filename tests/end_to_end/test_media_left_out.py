"""train.py, eval.py and `data.py verify` on a root with media that cannot be read: the same rows, named or left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from lime.data.tools.verify import verify
from tests.data import tiny
from tests.end_to_end.command import Command

IMAGES, VIDEOS = "image_test_caltech101", "video_test_action_sequence"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A root with two faulty training rows and one faulty row of each visual test split."""
    root = tiny.write_root(tmp_path / "root", tiny.splits(train=12, test=3))
    media = root / "media"
    (media / "train_0.png").write_bytes(b"\x89PNG")
    data = (media / "train_1.mp4").read_bytes()
    (media / "train_1.mp4").write_bytes(data[: len(data) // 2])
    Image.new("1", (9000, 6000)).save(media / "test_1.png")
    (media / "test_2.mp4").write_text("#EXTM3U\nother.ts\n")
    return root


@pytest.mark.slow
def test_rows_left_out_are_those_that_verify_names_and_stand_in_the_results(
    command: Command, broken: Path, tmp_path: Path
) -> None:
    base = [
        f"model.path={tiny.checkpoint('llava_onevision')}", "data=mmt47", "data.num_workers=0", f"data.root={broken}",
        "data.validation_fraction=0.0", "trainer.max_steps=1", "trainer.batch_size=4", "evaluation.max_new_tokens=3",
        "cache_dir=null",
    ]  # fmt: skip
    faults = verify(broken, workers=1).faults
    assert [(fault.split, fault.kind) for fault in faults] == [
        ("train", "damaged"), ("train", "damaged"), (IMAGES, "too_large"), (VIDEOS, "wrong_type"),
    ]  # fmt: skip
    refused = command("train.py", *base)
    assert refused.code == 2
    assert "Traceback" not in refused.said
    assert "media/train_" in refused.said
    assert "(row train/" in refused.said
    done = command("train.py", *base, "data.on_missing_media=skip", out="run")
    assert done.code == 0, done.said
    line = rf"Rows left out, media missing or unreadable: 4 \(train 2, .*{IMAGES} 1, {VIDEOS} 1\)\."
    assert re.search(line, (tmp_path / "run/results.md").read_text())
    again = command(
        "eval.py", f"adapter={tmp_path / 'run/adapter'}", *base[:4], "data.on_missing_media=skip", out="again"
    )
    assert again.code == 0, again.said
    assert re.search(rf"unreadable: 2 \({IMAGES} 1, {VIDEOS} 1\)\.", (tmp_path / "again/results.md").read_text())
