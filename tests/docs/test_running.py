"""Commands of the documentation, run as they stand there at reduced sizes: those of blocks that name this test."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lime.processors.config import ModelConfig
from tests.docs.pages import PAGES, ROOT, blocks
from tests.end_to_end.command import Program

THIS = "tests/docs/test_running.py::test_commands_of_a_page"
HERE = {page.relative_to(ROOT).as_posix(): [b for b in blocks(page) if THIS in b.values] for page in PAGES}
SWEEP = ["name=num_experts", "lime.num_experts=1,4", "seed=42"]
"""Of +experiment=num_experts: two points, one of them the baseline that a page names."""
SHORTER = {
    "sample": ["--images", "6", "--clips", "6", "--texts", "6"], "export.py": ["--licence", "mit"],
}  # fmt: skip
"""Options added to a script's command, by its name or that of its subcommand."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (Path(ModelConfig().location) / "model.safetensors").is_file(), reason="the embedded backbone is not there"
    ),
]

Call = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all commands run, with a picture."""
    folder = tmp_path_factory.mktemp("docs")
    Image.new("RGB", (32, 32), (200, 120, 40)).save(folder / "cat.jpg")
    return folder


@pytest.fixture
def call(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs a program in the module's folder."""
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return Program(folder, monkeypatch, capfd).must


@pytest.fixture
def trained(folder: Path, call: Call) -> Path:
    """The run that a page calls RUN."""
    if not (folder / "RUN").is_dir():
        call("train.py", *shorter("train.py", [f"hydra.run.dir={folder / 'RUN'}"], folder))
    return folder / "RUN"


def shorter(script: str, arguments: list[str], folder: Path) -> list[str]:
    """The arguments with those that make the command short."""
    for name in (script.rpartition("/")[2], *arguments[:1]):
        arguments = [*arguments, *SHORTER.get(name, [])]
    if script not in ("train.py", "eval.py"):
        return arguments
    short = ["trainer.num_threads=1", "trainer.preflight=false", "callbacks.progress=false", "trainer.max_steps=2"]
    short += ["debug=fast", "data.mini.train_per_task=4", "data.mini.test_per_task=2", "data.mini.workers=1"]
    short += [f"data.root={folder / 'data'}", "evaluation.splits=[sst2,caltech101]"]
    short = [f"cache_dir={folder / 'cache'}"] + (short if script == "train.py" else [])
    if "-m" in arguments:
        swept = SWEEP if "+experiment=num_experts" in arguments else []
        keys = {text.partition("=")[0] for text in swept}
        arguments = [text for text in arguments if text.partition("=")[0] not in keys] + swept
        arguments = [text if text in swept else cut(text) for text in arguments]
    given = {text.partition("=")[0] for text in arguments}
    return arguments + [text for text in short if text.partition("=")[0] not in given]


def cut(text: str) -> str:
    """The first two values of a swept number of experts, the first of any other key."""
    key, equals, values = text.partition("=")
    return key + equals + ",".join(values.split(",")[: 2 if key == "lime.num_experts" else 1]) if equals else text


def test_there_is_something_to_run() -> None:
    assert sum(len(block.commands) for of_page in HERE.values() for block in of_page) > 20


@pytest.mark.parametrize("page", [page for page, found in HERE.items() if found])
def test_commands_of_a_page(page: str, call: Call, folder: Path, trained: Path) -> None:
    for command in [command for block in HERE[page] for command in block.commands]:
        points = sorted(str(path.parent) for path in folder.glob("multirun/num_experts/*/record.json"))
        places = dict(zip(("RUN_A", "RUN_B"), points, strict=False))
        places |= {
            "RUN": str(trained),
            "FOLDER": "sample",
            "SHARED": "shared",
            "/tmp/pictures": "pictures",
            "20000": "20",
        }
        words = shlex.split(command)
        for name, value in places.items():
            words = [re.sub(rf"(?<![A-Z_]){name}(?![A-Z_])", value, word) for word in words]
        if words[0] == "make":
            said = subprocess.run(["make", "--dry-run", words[1]], cwd=ROOT, capture_output=True, text=True, check=True)
            words = ["python", "train.py"] if " train.py" in said.stdout else words
        if words[0] != "python" or words[1].startswith(("examples/", "-m")):
            continue  # fetching, entering folders; programs with a test of their own
        call(words[1], *shorter(words[1], words[2:], folder))


def test_results(folder: Path) -> None:
    """What the commands above leave, where all pages ran."""
    if not (folder / "shared").is_dir():
        pytest.skip("docs/start.md was not run here")
    for place in (
        "RUN/report.html",
        "shared/README.md",
        "outputs/tables/num_experts.md",
        "outputs/figures/num_experts.png",
    ):
        assert (folder / place).is_file(), place
