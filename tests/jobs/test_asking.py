"""A question of one's own gets the answer that an evaluation would give it, with the experts that acted on it."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import lime
from lime.config.check import build
from lime.config.schema import EvalConfig
from lime.data.tasks import TASKS
from lime.jobs.asking import AdaptedRun
from lime.jobs.evaluate import evaluate
from lime.jobs.train import train
from tests.end_to_end.command import ROOT
from tests.training.parts import config, data_root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asking") / "run"
    train(config(trainer__max_steps=3, evaluation__batch_size=1), folder)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> AdaptedRun:
    return lime.open_run(folder)


def ask(*arguments: object) -> int:
    """The exit code of `lime ask`."""
    main = runpy.run_path(str(ROOT / "scripts" / "ask.py"))["main"]
    return main([str(argument) for argument in arguments])


def test_it_answers_as_the_evaluation_did(run: AdaptedRun, folder: Path, tmp_path: Path) -> None:
    """Every test row of every modality, adapted and frozen, to the letter."""
    settings = dataclasses.asdict(config(evaluation__batch_size=1, evaluation__baseline_frozen=False))
    evaluate(build(EvalConfig, {key: settings[key] for key in ("model", "data", "evaluation")}), tmp_path / "frozen")
    lines = (tmp_path / "frozen" / "predictions.jsonl").read_text().splitlines()
    frozen = {row["id"]: row["raw"] for row in map(json.loads, lines)}
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    kinds = [TASKS[row["split"]].modality for row in rows]
    assert set(kinds) == {"text", "image", "video"}
    for row, kind in zip(rows, kinds, strict=True):
        media = {} if kind == "text" else {kind: data_root() / row["media_path"]}
        assert run.ask(row["question"], **media) == row["raw"], row
        assert run.ask(row["question"], **media, frozen=True) == frozen[row["id"]]


def test_experts_of_each_answer_token(run: AdaptedRun) -> None:
    routing = run.routing("what is it?", "a red bus")
    assert "".join(token.token for token in routing[:-1]).strip() == "a red bus"
    assert len(routing[0].weights_E) == run.model.peft_config["default"].num_experts
    for token in routing:
        assert sum(token.weights_E) == pytest.approx(1.0, abs=1e-4)
    assert routing[0].weights_E != routing[1].weights_E


def test_the_command_prints_both_answers_and_the_experts(
    folder: Path, run: AdaptedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = sorted((data_root() / "media").glob("*.png"))[0]
    assert ask(folder, "what is it?", "--image", picture, "--frozen", "--show-routing") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"frozen:  {run.ask('what is it?', image=picture, frozen=True)}"
    assert said[1] == f"adapted: {run.ask('what is it?', image=picture)}"
    assert all("expert 0:" in line or "expert 1:" in line for line in said[2:])
    assert len(said) > 2


def test_pictures_of_one_name_are_told_apart(run: AdaptedRun, tmp_path: Path) -> None:
    """A file in another folder, and one that was replaced."""
    from PIL import Image

    seen = []
    for folder, shade in (("a", 0), ("b", 255), ("a", 128)):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), (shade, shade, shade)).save(tmp_path / folder / "picture.png")
        row = run._row("what is it?", tmp_path / folder / "picture.png", None)
        seen.append(run._collator.prompt_batch([row])["pixel_values"].float().mean().item())
    assert seen[0] < seen[2] < seen[1]


@pytest.mark.slow
def test_a_command_leaves_out_what_answering_does_not_use(folder: Path, run: AdaptedRun) -> None:
    """In a process of its own it imports no more, and its answer is the same."""
    picture = sorted((data_root() / "media").glob("*.png"))[0]
    command = [sys.executable, "-X", "importtime", ROOT / "scripts" / "ask.py", folder, "what is it?"]
    done = subprocess.run(
        [*command, "--image", picture, "--frozen", "--show-routing"],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    frozen, adapted, *experts = done.stdout.splitlines()
    assert frozen == f"frozen:  {run.ask('what is it?', image=picture, frozen=True)}"
    assert adapted == f"adapted: {run.ask('what is it?', image=picture)}"
    assert all("expert 0:" in line or "expert 1:" in line for line in experts)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert {"torch", "transformers", "peft"} <= imported
    heavy = {"lightning", "datasets", "wandb", "torchmetrics", "sklearn", "pandas", "matplotlib"}
    assert not imported & {*heavy, "scipy.stats", "scipy.optimize", "transformers.trainer"}


def test_questions_one_after_another(
    folder: Path, run: AdaptedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = sorted((data_root() / "media").glob("*.png"))[0]
    monkeypatch.setattr(
        sys, "stdin", io.StringIO(f"hello?\nimage {picture}\nwhat is it?\nimage nowhere.png\ntext\n \nhello?\n")
    )
    assert ask(folder, "--interactive") == 0
    said = [line for line in capsys.readouterr().out.replace("> ", "").splitlines() if line]
    assert said[0] == run.ask("hello?") == said[-1]
    assert said[1] == run.ask("what is it?", image=picture)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--image", "nowhere.png", "what?"], "nowhere.png: no such file; expected a picture"),
        (["--image", __file__, "what?"], "test_asking.py"),
        (["--image", __file__, "--video", __file__, "what?"], "a picture or a clip, not both"),
        (["what?", "evaluation.max_new_tokens=none"], "evaluation.max_new_tokens"),
        (["what?", "model=tiny_qwen2vl"], "was trained on"),
    ],
)
def test_what_cannot_be_asked_is_said(
    arguments: list[str], expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(folder, *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert expected in said
    assert "Traceback" not in said


def test_a_run_without_experts_says_so(tmp_path: Path) -> None:
    train(config(method="lora", lime__enabled=False, trainer__max_steps=1, evaluation__mode="none"), tmp_path / "run")
    run = lime.open_run(tmp_path / "run")
    assert isinstance(run.ask("what is it?"), str)
    with pytest.raises(ValueError, match="has no experts"):
        run.routing("what is it?", "a bus")


def test_every_command_has_its_script_and_the_list_is_quick_to_make() -> None:
    from lime.command import COMMANDS

    assert all((ROOT / place).is_file() for place, _ in COMMANDS.values())
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lime.command"], capture_output=True, text=True, check=True
    )
    assert all(f"lime {name} " in done.stdout for name in COMMANDS)
    assert not any(f" {heavy}\n" in done.stderr for heavy in ("torch", "transformers", "peft", "hydra", "numpy"))
    wrong = subprocess.run([sys.executable, "-m", "lime.command", "trian"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("lime: no command 'trian'")


def test_runs_of_a_folder_are_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(ROOT / "scripts" / "runs.py"))["main"]
    assert main([str(folder.parent)]) == 0
    said = capsys.readouterr().out
    score = json.loads((folder / "results.json").read_text())["macro"]["score"]["value"]
    assert "finished" in said
    assert f"{score:.1f} (" in said
    assert main([str(folder.parent / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err
