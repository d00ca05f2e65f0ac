"""Names of the hub, served from its cache without a network: the commit that was loaded is recorded, another is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lime.config.check import build
from lime.config.schema import EvalConfig
from lime.integrations.hub import export_adapter
from lime.jobs.evaluate import evaluate
from lime.jobs.train import train
from lime.models.loading import load_backbone, load_processor_alone
from lime.processors.config import ModelConfig
from lime.runs.adapter import adapter_folder
from tests.data import tiny
from tests.training.parts import config, values

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/a-model"


def put(cache: Path, name: str, source: Path) -> None:
    """`source` as the hub's client leaves the main branch of a repository in its cache."""
    folder = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(source, folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    put(folder, NAME, tiny.checkpoint("qwen2_vl"))
    return folder


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_the_commit_that_was_loaded_is_known(cache: Path, revision: str | None) -> None:
    backbone = load_backbone(ModelConfig(name="x", family="qwen2_vl", path=NAME, revision=revision))
    assert backbone.revision == COMMIT
    assert load_processor_alone(ModelConfig(name="x", family="qwen2_vl", path=NAME))[0] == "qwen2_vl"


def test_another_commit_is_not_taken_for_it(cache: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"hf download {NAME} --revision {'f' * 40} --local-dir FOLDER"):
        load_backbone(ModelConfig(name="x", family="qwen2_vl", path=NAME, revision="f" * 40))


def test_an_adapter_comes_back_by_its_name(cache: Path, tmp_path: Path) -> None:
    """Trained on a model of the hub, exported, put on the hub, evaluated by name: the same answers."""
    model = {"name": "x", "family": "qwen2_vl", "path": NAME, "dtype": "float32", "revision": COMMIT}
    train(config("qwen2_vl", model=model, trainer__max_steps=1), tmp_path / "run")
    shared = export_adapter(tmp_path / "run", tmp_path / "shared")
    assert f"`{NAME}`, revision {COMMIT}" in (shared / "README.md").read_text()
    put(cache, "someone/an-adapter", shared)
    assert adapter_folder("someone/an-adapter").name == COMMIT
    settings = build(EvalConfig, {"data": values()["data"], "model": model, "adapter": f"someone/an-adapter@{COMMIT}"})
    evaluate(settings, tmp_path / "again")
    first, again = ((tmp_path / name / "predictions.jsonl").read_bytes() for name in ("run", "again"))
    assert first == again
