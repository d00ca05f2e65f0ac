"""The made root goes through every command that the published one goes through."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from lime.data.rows import MMTDataset
from lime.data.tools.prepare import prepare
from lime.data.tools.sample import write_sample
from lime.data.tools.verify import verify
from tests.data import tiny
from tests.models.checkpoints import checkpoint

SCRIPT = Path(__file__).parents[3] / "scripts" / "data.py"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("sample") / "root", images=12, clips=6, texts=12)


@pytest.fixture(scope="module")
def prepared(made: Path) -> Path:
    prepare(made)
    return made


def test_it_is_prepared_and_without_fault(prepared: Path) -> None:
    report = verify(prepared, workers=1)
    assert report.ok
    assert report.rows["train"] == 25
    assert report.media == 18
    assert report.speed.processes == 1
    assert 0 < report.speed.share <= 1
    train = MMTDataset(prepared).train
    assert [sum(row.source_type == kind for row in train) for kind in ("text", "image", "video")] == [10, 10, 5]


def test_the_same_arguments_give_the_same_rows(prepared: Path, tmp_path: Path) -> None:
    again = write_sample(tmp_path / "again", images=12, clips=6, texts=12)
    assert MMTDataset(again).rows_fingerprint == MMTDataset(prepared).rows_fingerprint


def test_what_it_cannot_make_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="is there already"):
        write_sample(tmp_path)
    with pytest.raises(ValueError, match="clips: expected at least 6, got 1"):
        write_sample(tmp_path / "new", clips=1)
    with pytest.raises(ValueError, match="side: expected an even number"):
        write_sample(tmp_path / "new", side=33)
    assert not list(tmp_path.iterdir())


def command(*arguments: object) -> int:
    return int(runpy.run_path(str(SCRIPT))["main"]([str(argument) for argument in arguments]))


@pytest.mark.parametrize("model", ["qwen2_vl", "smolvlm"])
def test_tokens_are_counted_for_any_model(model: str, prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the package's families, and of others through their own processor."""
    ours = model == "qwen2_vl"
    choice = "qwen2vl" if ours else "hf"
    path = tiny.checkpoint(model) if ours else checkpoint(model)
    assert command("stats", prepared, f"model={choice}", f"model.path={path}") == 0
    lines = {line.split("  ")[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines["glue_test_sst2"][1] == "2"
    image = lines["all tests (image)"]
    rows, tokens, visual = (int(cell.replace(",", "")) for cell in image[3:6])
    assert rows == 2
    assert 0 < visual < tokens


def test_the_budget_of_the_published_runs_counts(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fewer tokens than the checkpoint's own budget gives a picture that is cut into tiles."""
    seen = []
    for budget in ("checkpoint", "published"):
        path = tiny.checkpoint("llava_onevision")
        command("stats", prepared, "model=llava_onevision", f"model.path={path}", f"model.budget={budget}")
        line = next(one for one in capsys.readouterr().out.splitlines() if one.startswith("all tests (image)"))
        seen.append(int(line.split()[5].replace(",", "")))
    assert seen[1] < seen[0]


def test_a_model_that_is_not_there_says_what_to_fetch(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("stats", prepared, "model=qwen2vl") == 2
    assert "hf download Qwen/Qwen2-VL-7B-Instruct --local-dir FOLDER" in capsys.readouterr().err
