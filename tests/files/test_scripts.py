"""The scripts that write a folder themselves refuse a user's, by name, and leave it as it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lime.jobs.train import train
from scripts import export, random_checkpoint
from tests.training.parts import config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(config(trainer__max_steps=1, evaluation__mode="none"), folder)
    return folder


def exported(run: Path, folder: Path, *more: str) -> int:
    return export.main([str(run), str(folder), *more])


def checkpoint(run: Path, folder: Path, *more: str) -> int:
    return random_checkpoint.main(["qwen2vl_2b", str(folder), "--layers", "1", "--small-vocabulary", *more])


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("write", [exported, checkpoint])
@pytest.mark.parametrize("kind", ["files", "hidden", "weights", "link", "run", "file"])
def test_a_users_folder_is_refused_by_name(
    write: Callable[..., int], kind: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    if kind == "run":
        shutil.copytree(run, mine)
    else:
        mine.mkdir()
        name = {"hidden": ".bashrc.old", "weights": "model.safetensors"}.get(kind, "thesis.txt")
        (mine / name).write_text("precious")
    target = {"link": tmp_path / "link", "file": mine / "thesis.txt"}.get(kind, mine)
    if kind == "link":
        target.symlink_to(mine)
    before = content(mine)
    assert write(run, target) == 2
    error = capsys.readouterr().err
    assert "mine" in error
    assert "take another folder" in error or "is a file" in error
    assert content(mine) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == (["link", "mine"] if kind == "link" else ["mine"])


def test_an_export_onto_its_own_run_is_refused_even_with_overwrite(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(run)
    for folder in (run, run / "adapter", run / "adapter" / "more", run.parent):
        assert exported(run, folder, "--overwrite") == 2
    assert "the run's own adapter" in capsys.readouterr().err
    assert content(run) == before


def test_one_s_own_export_is_replaced_and_overwrite_replaces_anything(run: Path, tmp_path: Path) -> None:
    assert exported(run, tmp_path / "out") == 0
    assert exported(run, tmp_path / "out") == 0
    (tmp_path / "out" / "NOTES.md").write_text("mine")
    assert exported(run, tmp_path / "out") == 2
    assert exported(run, tmp_path / "out", "--overwrite") == 0
    assert not (tmp_path / "out" / "NOTES.md").exists()
