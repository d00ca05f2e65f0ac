"""Every command of the documentation has a test or says what it needs, and can be said: options, keys, files."""

from __future__ import annotations

import ast
import importlib.machinery
import re
import shlex
import shutil
import subprocess
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from lime.command import COMMANDS
from lime.config.overrides import check, register
from lime.config.schema import EvalConfig, TrainConfig
from lime.config.scripts import with_run
from lime.jobs.command_line import read_line
from tests.docs.pages import PAGES, ROOT, Block, blocks, inline

RUN_WHOLE = {"tests/test_recipes.py": "CONTRIBUTING.md", "tests/end_to_end/test_data_page.py": "data.md"}
"""Tests that run the commands of a page from the page itself, beside test_running.py, which runs those of any."""
BLOCKS = [block for page in PAGES for block in blocks(page)]
SAID: dict[str, Block | str] = {
    command: place
    for place, commands in [
        *((page.name, inline(page)) for page in PAGES),
        *((block, block.commands) for block in BLOCKS),
    ]
    for command in commands
    if "…" not in command and not command.startswith("lime COMMAND")
}
"""Every command of the documentation, and a place where it stands."""
WHOLE = {
    command
    for block in BLOCKS
    for value in block.values
    if value.startswith("tests/docs/test_running.py") or RUN_WHOLE.get(value.partition("::")[0]) == block.page.name
    for command in block.commands
}
"""Those that are run as they stand on the page."""
PLACES = {
    "CHECKPOINT": str(ROOT / "lime/embedded/checkpoints/tiny_qwen2vl"), "NAME": "qwen2vl_2b", "COMMIT": "0123abc",
}  # fmt: skip
"""What stands for something else, beside folders."""
OF_OTHERS = ("git", "cd", "source", "wandb", "hf", "pre-commit")
SCHEDULED = re.compile(r"launcher=(slurm|ray)|hydra\.launcher\..*")
"""What needs a scheduler to be composed; tests/end_to_end/test_cluster.py has one."""
OF_A_RECIPE = re.compile("my_backbone|lora_xs")


class Parsed(BaseException):
    """The arguments were understood."""


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_it_is_tested_or_says_what_it_needs(block: Block) -> None:
    needs = import_module("tests.docs.test_site").hooks().NEEDS
    assert block.kind, f"{block}: put <!-- tested by: tests/FILE.py::TEST --> or <!-- needs: … --> before the block"
    assert block.values, block
    for value in block.values:
        if block.kind == "needs":
            assert value in needs, f"{block}: needs {value}; known are {', '.join(needs)}"
            continue
        file, _, name = value.partition("::")
        if file == ".ci/run":
            assert set(block.commands) & set((ROOT / file).read_text("utf-8").splitlines()), block
            continue
        assert (ROOT / file).is_file(), f"{block}: no {file}"
        names = {node.name for node in ast.parse((ROOT / file).read_text("utf-8")).body if hasattr(node, "name")}
        assert name in names, f"{block}: {file} has no {name}"


def test_there_are_commands_on_the_pages() -> None:
    assert len(BLOCKS) > 30
    assert len(SAID) > 100
    assert {"README.md", "docs/start.md", "docs/data.md", "docs/gpu.md"} <= {
        block.page.relative_to(ROOT).as_posix() for block in BLOCKS
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with the folders and files that commands name."""
    folder = tmp_path_factory.mktemp("said")
    shutil.copytree(ROOT / "examples/adapter", folder / "RUN/adapter")
    for name in ("FOLDER", "pets", "mine/peft"):
        (folder / name).mkdir(parents=True)
    (folder / "RUN/predictions.jsonl").touch()
    return folder


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(c, marks=[] if isinstance(SAID[c], Block) else [pytest.mark.slow])
        for c in sorted(SAID.keys() - WHOLE)
    ],
)
def test_it_can_be_said(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if OF_A_RECIPE.search(command):
        pytest.skip("names what a recipe makes; the recipe is run whole")
    monkeypatch.chdir(folder)
    written = command
    for name, value in PLACES.items():
        written = re.sub(rf"(?<![\w/]){name}\b", value, written)
    words = [word for word in shlex.split(written) if not SCHEDULED.fullmatch(word)]
    if words[0] == "lime":
        words[:2] = ["python", COMMANDS[words[1]][0]]
        if len(words) == 2:
            return
    understood(words, str(SAID[command]))


def understood(words: list[str], place: str) -> None:
    """Fail where the program that the words call would refuse them."""
    program, *arguments = words
    if program == "make":
        done = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{place}: {done.stderr}"
    elif program in ("torchrun", "srun"):
        position = next(index for index, word in enumerate(arguments) if word.endswith(".py"))
        composes("train", arguments[position + 1 :])
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
        assert set(re.findall(r"lime-moe\[(\w+)\]", " ".join(arguments))) <= set(extras), place
    elif Path(program).name == "python":
        python(arguments, place)
    else:
        assert program in (*OF_OTHERS, "lime", "eval"), f"{place}: {program}: a program that no test knows"


def python(arguments: list[str], place: str) -> None:
    """The same for a command of Python."""
    first, *rest = arguments
    if first == "-c":
        compile(rest[0], place, "exec")
    elif first == "-m":
        # setuptools' finder, when it is asked for pip, changes what distutils is for the rest of the process
        assert importlib.machinery.PathFinder.find_spec(rest[0]), place
        assert all((ROOT / word).exists() for word in rest if word.startswith("tests/")), place
    elif first in ("train.py", "eval.py"):
        composes(first.removesuffix(".py"), rest)
    elif first in ("scripts/count_parameters.py", "scripts/preflight.py"):
        composes("train", [word for word in rest if not word.startswith("--")])
    elif first.startswith("scripts/"):
        options = parses(first, rest)
        if isinstance(getattr(options, "overrides", None), list) and options.overrides:
            composes("train", ["-m", *options.overrides])
    else:
        assert (ROOT / first).is_file(), f"{place}: no {first}"


def composes(program: str, arguments: list[str]) -> None:
    """Compose and check the configuration, as train.py and eval.py do before they import a model library."""
    schema: type = TrainConfig if program == "train" else EvalConfig
    register(schema, ROOT / "experiments" if program == "train" else None)
    line = read_line(arguments if program == "train" else with_run(arguments), schema, ROOT / "conf", program)
    if not line.informs:
        check(line.overrides, line.folder, line.name, schema, line.extra, multirun=line.several)


def parses(script: str, arguments: list[str]) -> Any:
    """What the script's own parser makes of the arguments; the script ends there."""
    module = import_module(script.removesuffix(".py").replace("/", "."))
    found: list[Any] = []

    def stopped(name: str, at: int = 1) -> Any:
        holder = module if name == "parse_mixed" else __import__("argparse").ArgumentParser
        original = getattr(holder, name)

        def parse(*given: Any, **named: Any) -> Any:
            found.append(original(*given, **named))
            if len(found) == at:
                raise Parsed
            return found[-1]

        return mock.patch.object(holder, name, parse)

    names = ["parse_mixed"] if hasattr(module, "parse_mixed") else ["parse_args", "parse_intermixed_args"]
    calls = 2 if script.endswith("benchmark.py") else 1
    patches = [stopped(name, calls) for name in names]
    for patch in patches:
        patch.start()
    try:
        with pytest.raises((Parsed, SystemExit)) as stop:
            module.main(arguments)
    finally:
        for patch in patches:
            patch.stop()
    assert isinstance(stop.value, Parsed) or not stop.value.code, f"{script} {' '.join(arguments)}: refused"
    return found[-1] if found else None
