"""Runs write into folders of their own; what a user keeps there is neither replaced nor removed."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from lime.config.sweeps import Plan, PlannedRun
from lime.experiments.resume import ResumingSweep
from lime.runs.folders import FILES, claim_run_folder
from lime.runs.lock import LOCK_FILE, OWNER_FILE, run_lock
from lime.system.ownership import MARKER, kind_of
from tests.end_to_end.command import Command
from tests.end_to_end.conftest import command as command
from tests.training.parts import config


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", FILES)
def test_a_folder_with_a_file_of_a_runs_name_is_refused_by_it(tmp_path: Path, name: str):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("precious")
    (tmp_path / ".bashrc.old").write_text("precious")
    before = tree(tmp_path)
    for kind in ("run", "evaluation"):
        with pytest.raises(FileExistsError, match=name):
            claim_run_folder(tmp_path, kind)
    assert tree(tmp_path) == before


def test_other_files_do_not_stop_a_run(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    claim_run_folder(tmp_path, "run")
    claim_run_folder(tmp_path, "run")
    assert kind_of(tmp_path) == "run"


def test_an_evaluation_does_not_write_into_a_run_that_has_results(tmp_path: Path):
    claim_run_folder(tmp_path, "run")
    claim_run_folder(tmp_path, "evaluation")  # the run came to nothing
    claim_run_folder(tmp_path, "run")
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(FileExistsError, match="folder of a run"):
        claim_run_folder(tmp_path, "evaluation")


def test_runs_of_versions_without_marks_go_on(tmp_path: Path):
    (tmp_path / "status.json").write_text(json.dumps({"status": "finished", "started": "2026-01-01"}))
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(FileExistsError):
        claim_run_folder(tmp_path, "run")
    claim_run_folder(tmp_path, "evaluation")
    (tmp_path / ".lime-made.json").unlink()
    (tmp_path / "record.json").write_text("{}")
    claim_run_folder(tmp_path, "run")


def test_a_sweep_clears_no_folder_of_somebody_else(tmp_path: Path):
    """hydra.sweep.subdir may lead to any folder."""
    folder = tmp_path / "sweep" / "mine"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="checkpoints"):
        ResumingSweep().run(lambda: None, config(), folder, [])
    assert (folder / "checkpoints" / "thesis.txt").read_text() == "precious"


def test_a_plan_does_not_replace_another_file(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    plan = Plan(tmp_path, ("a=1",), (PlannedRun("x", {"a": 1}),))
    plan.write()
    plan.write()
    (tmp_path / "sweep.json").write_text('{"mine": 1}')
    with pytest.raises(FileExistsError, match=r"sweep\.json"):
        plan.write()
    assert (tmp_path / "sweep.json").read_text() == '{"mine": 1}'


@pytest.mark.parametrize("name", [*FILES, "train.log", LOCK_FILE, OWNER_FILE, MARKER, "checkpoints/step-1.ckpt"])
def test_a_link_of_a_stranger_leads_nowhere(tmp_path: Path, name: str):
    outside, folder = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    (outside / "thesis.txt").write_text("precious")
    claim_run_folder(folder, "run")
    link = folder / name
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(outside if name in ("adapter", "checkpoints", "partial", "wandb") else outside / "thesis.txt")
    before = tree(outside)
    for enter in (lambda: claim_run_folder(folder, "run"), lambda: run_lock(folder).__enter__()):
        with pytest.raises(FileExistsError, match=f"{re.escape(str(link))} is a link that leads out"):
            enter()
    assert tree(outside) == before


def test_links_that_stay_inside_and_those_of_the_user_are_no_matter(tmp_path: Path):
    folder = tmp_path / "run"
    claim_run_folder(folder, "run")
    (folder / "wandb" / "run-1").mkdir(parents=True)
    (folder / "wandb" / "latest-run").symlink_to("run-1")
    (folder / "data").symlink_to(tmp_path)
    with run_lock(folder):
        claim_run_folder(folder, "run")


def test_a_command_in_a_folder_with_links_writes_nothing_elsewhere(command: Command, tmp_path: Path):
    outside, folder = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    (outside / "thesis.txt").write_text("precious")
    (outside / "checkpoints").mkdir()
    claim_run_folder(folder, "run")
    for name in ("train.log", "metrics.csv", "status.json", OWNER_FILE):
        (folder / name).symlink_to(outside / "thesis.txt")
    (folder / "checkpoints").symlink_to(outside / "checkpoints")
    before = tree(outside)
    outcome = command("train.py", "evaluation.mode=none")
    assert outcome.code == 2, outcome.said
    assert "is a link that leads out of the folder of the run" in outcome.said
    assert tree(outside) == before
    assert not list((outside / "checkpoints").iterdir())
