"""A folder of pictures and a CSV of two columns become an adapter, a table and an answer, by the page's commands."""

from __future__ import annotations

import csv
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.end_to_end.command import ROOT, Command
from tests.end_to_end.test_data_page import commands
from tests.processes import run

SHAPES = ("circle", "square")


def draw(path: Path, shape: str, rng: np.random.Generator) -> None:
    """A dark shape somewhere on a light ground."""
    image = Image.new("RGB", (48, 48), tuple(rng.integers(150, 250, 3).tolist()))
    left, top, side = rng.integers(4, 16), rng.integers(4, 16), rng.integers(18, 26)
    box = [int(left), int(top), int(left + side), int(top + side)]
    pen = ImageDraw.Draw(image)
    (pen.ellipse if shape == "circle" else pen.rectangle)(box, fill=tuple(rng.integers(0, 90, 3).tolist()))
    image.save(path)


def write_pets(root: Path, count: int = 40) -> None:
    """What a person may have: pictures, and a table of two columns."""
    root.mkdir()
    rng = np.random.default_rng(0)
    with (root / "labels.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["picture", "label"])
        for number in range(count):
            shape = SHAPES[number % 2]
            draw(root / f"{number:02d}.png", shape, rng)
            table.writerow([f"{number:02d}.png", shape])


@pytest.mark.slow
def test_every_command_of_the_section(tmp_path: Path) -> None:
    write_pets(tmp_path / "pets")
    draw(tmp_path / "new.png", "square", np.random.default_rng(1))
    said = {}
    for command in commands(own=True):
        python, script, *arguments = shlex.split(re.sub(r"\bRUN\b", "run", command))
        assert python == "python", command
        arguments += ["trainer.accelerator=cpu"] if script == "train.py" else []
        ran = run([sys.executable, str(ROOT / script), *arguments], tmp_path)
        assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
        said[script] = ran.stdout + ran.stderr
    assert "0 faults" in said["scripts/data.py"]
    assert "which was inferred" in said["train.py"]
    assert said["scripts/ask.py"].strip() == "square"
    folder = tmp_path / "run"
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert "All tasks" in (folder / "results.md").read_text(encoding="utf-8")
    answers = [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    answers = [answer for answer in answers if "split" in answer]
    assert {answer["split"] for answer in answers} == {"test"}
    assert len(answers) == 8
    assert sum(answer["correct"] for answer in answers) > 4, "more than the majority answer"


@pytest.mark.slow
def test_without_test_rows_nothing_is_evaluated(command: Command, tmp_path: Path) -> None:
    write_pets(tmp_path / "pets", 8)
    options = ["data.test_fraction=0", "data.least_steps=null", "trainer.max_steps=1", "trainer.preflight=false"]
    outcome = command("train.py", "data=own", "data.root=pets", "trainer.accelerator=cpu", *options)
    assert outcome.code == 0, outcome.said
    assert "pets has no test rows: nothing is evaluated" in outcome.said
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "out" / "results.json").exists()
