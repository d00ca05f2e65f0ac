"""The command line of eval.py takes a run, and its help shows what it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lime.config.scripts import with_run
from tests.config.line import ROOT, line

OF_DEVELOPERS = ("draw_method", "pretrain_tiny")
SCRIPTS = [f"scripts/{path.name}" for path in sorted(ROOT.glob("scripts/*.py")) if path.stem not in OF_DEVELOPERS]


def test_a_run_stands_for_its_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for run in ("runs/a", "runs/lr=1, b"):
        (tmp_path / run / "adapter").mkdir(parents=True)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/run.yaml").write_text("")
    assert with_run(["runs/a", "seed=1"]) == ["adapter=runs/a/adapter", "seed=1"]
    assert with_run(["adapter=runs/a"]) == ["adapter=runs/a/adapter"]
    assert with_run(["adapter=runs/a/adapter"]) == ["adapter=runs/a/adapter"]
    assert with_run(["saved"]) == ["adapter=saved"]
    assert with_run(["runs/lr=1, b"]) == ["adapter='runs/lr=1, b/adapter'"]
    kept = ["--config-dir", "saved", "adapter=ORG/NAME", "evaluation.mode=likelihood", "-m", "~model", "~nobody/run"]
    assert with_run(kept) == kept
    assert with_run(["runs/nowhere"]) == ["adapter=runs/nowhere"]  # told as a folder that is not there


def test_help_shows_what_eval_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = line("--help", program="eval").said
    assert "python eval.py RUN" in said
    assert "\nmodel: " in said
    assert ", llava_onevision_0_5b, " in said
    assert "evaluation.mode" not in said.split("== Keys")[0].split("== Groups")[1]
    for group in ("trainer", "launcher", "method", "peft", "optim"):
        assert f"\n{group}:" not in said


@pytest.mark.parametrize("command", ["train.py --help", "scripts/data.py tasks"])
def test_a_reader_that_has_seen_enough_is_no_error(command: str) -> None:
    running = subprocess.Popen(
        [sys.executable, *command.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    assert running.stderr.read() == ""
    assert running.wait() == 0


@pytest.mark.parametrize("program", ["train.py", "eval.py", *SCRIPTS])
def test_without_the_environment_it_says_how_to_get_it(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(ROOT / program)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 2
    assert "is not installed for" in done.stderr
    assert "make setup" in done.stderr
    assert "Traceback" not in done.stderr
