"""CONTRIBUTING.md is true: its map, its checks, and its recipes, each run as it stands there in a copy of the tree."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lime.processors.config import ModelConfig
from tests import processes
from tests.test_rooms import ROOMS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FENCED = re.compile(r"```(?P<language>\w+)\n(?P<content>.*?)```", re.DOTALL)
SHORT = [
    "data.mini.train_per_task=4", "data.mini.test_per_task=2", "data.mini.workers=1", "data.root=data",
    "cache_dir=cache", "trainer.num_threads=1", "trainer.preflight=false", "trainer.max_steps=2",
    "callbacks.progress=false", "callbacks.checkpoint=false", "evaluation.baseline_frozen=false",
]  # fmt: skip
"""Options of every training run here."""


def recipes() -> dict[str, str]:
    """The text of each recipe, by its title."""
    parts = PAGE.partition("\n## Recipes\n")[2].split("\n### ")[1:]
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in parts}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project without its tests, to write into."""
    folder = tmp_path_factory.mktemp("recipes") / "project"
    for name in ("lime", "conf", "experiments", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "eval.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def run(command: str, folder: Path) -> str:
    """What a command of a recipe printed."""
    program, *arguments = shlex.split(command)
    assert program == "python", f"{command}: expected a command of python"
    if arguments[0] == "train.py":
        given = {argument.partition("=")[0] for argument in arguments}
        own_data = "data=mmt47" in arguments
        arguments += [
            option
            for option in SHORT
            if option.partition("=")[0] not in given and not (own_data and option.startswith("data."))
        ]
    environment = {**os.environ, "PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    if arguments[0] == "-c":
        done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    else:
        script = str(folder / arguments[0])
        done = processes.run([sys.executable, script, *arguments[1:]], folder, environment, preloaded="libraries")
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout


def test_the_map_has_every_room_in_its_order() -> None:
    assert re.findall(r"^\| `lime/(\w+)(?:\.py)?` \|", PAGE, re.MULTILINE) == list(ROOMS)


def test_places_that_it_names_are_there() -> None:
    text = PAGE.partition("\n## Recipes\n")[0]
    named = re.findall(r"\b(?:lime|tests|docs|conf|experiments|scripts|examples)/[\w./]*", text)
    assert len(named) > 25
    assert not [place for place in named if not (ROOT / place.rstrip(".")).exists()]


def test_a_commit_is_checked_as_ci_checks() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lint = re.findall(r"-m (.*)", makefile.partition("\nlint:")[2].partition("\n\n")[0])
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert all(repository["repo"] == "local" for repository in config["repos"]), "a hook would be fetched"
    assert [re.sub("python -m | --force-exclude", "", hook["entry"]) for hook in hooks] == [
        line.removesuffix(" .") for line in lint
    ]


def test_every_target_is_a_line_of_make_help() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (named,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE) == named.split()
    assert set(re.findall(r"^make ([a-z-]+)", PAGE, re.MULTILINE)) <= set(named.split())


def test_there_is_one_for_everything_that_is_usually_added() -> None:
    assert list(recipes()) == ["A PEFT type", "A mixture", "A backbone", "An experiment", "A metric", "A task"]
    for title, text in recipes().items():
        languages = {match["language"] for match in FENCED.finditer(text)}
        assert languages <= {"python", "yaml", "bash"}, title
        assert "bash" in languages, title


@pytest.mark.slow
@pytest.mark.skipif(
    not (Path(ModelConfig().location) / "model.safetensors").is_file(), reason="the embedded backbone is not there"
)
@pytest.mark.parametrize("title", recipes())
def test_a_recipe_does_what_it_says(title: str, copy: Path) -> None:
    for block in FENCED.finditer(recipes()[title]):
        if block["language"] == "bash":
            for command in block["content"].replace("\\\n", " ").splitlines():
                run(command, copy)
            continue
        name, _, content = block["content"].partition("\n")
        name = name.removeprefix("# ")
        if name.endswith(AT_ITS_END):
            path = copy / name.removesuffix(AT_ITS_END)
            path.write_text(path.read_text(encoding="utf-8") + content, encoding="utf-8")
            continue
        assert re.fullmatch(r"[\w./]+\.(py|yaml)", name), (
            f"{title}: the first line of a file is a comment with its name"
        )
        path = copy / name
        assert not path.exists(), f"{title}: {name} is there already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block["content"], encoding="utf-8")
    for place in RESULTS.get(title, ()):
        assert (copy / place).is_file(), f"{title}: no {place}"


AT_ITS_END = ", at its end"
RESULTS = {
    "A PEFT type": ("outputs/type/adapter/adapter_model.safetensors",),
    "A mixture": ("outputs/mixture/results.json",),
    "A backbone": ("outputs/backbone/results.json", "outputs/backbone/adapter/adapter_model.safetensors"),
    "An experiment": ("outputs/tables/rank_by_experts.md", "outputs/figures/rank_by_experts.png"),
    "A metric": ("outputs/scored/results.json",),
    "A task": ("outputs/parity/results.json",),
}
"""Files that a recipe leaves."""
