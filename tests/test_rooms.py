"""Lower rooms know nothing of higher ones, and no import leads back to where it began.

Every import below ``lime/`` counts, those for type checkers and those within functions too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]

ROOMS = {
    "system": "files, signals, terminal and limits of the machine",
    "method": "the mathematics, with torch alone",
    "processors": "what turns texts, images and frames into model inputs",
    "tuner": "LiME as a tuner of the peft library",
    "evaluation": "answers, scores and statistics",
    "data": "rows, media, tasks and batches",
    "models": "backbones and how they are loaded",
    "embedded": "the procedural benchmark and the pretrained tiny backbones",
    "config": "what a command line may say, checked",
    "runs": "record, status, lock, folders and checkpoints of a run",
    "distributed": "processes, devices and strategies",
    "inference": "generation, likelihood and the evaluation of a model",
    "training": "module, callbacks and preflight of training",
    "loggers": "where metrics go besides the run's files",
    "integrations": "other people's trainers, hubs and scorers",
    "registration": "makes LiME known to peft, once the package is imported",
    "quickstart": "LiME in a few lines, without this project's data",
    "jobs": "train, evaluate and the command line",
    "experiments": "grids of runs, and tables and figures of their records",
    "analysis": "what is measured on a trained model",
    "report": "a page about one run",
    "command": "the command `lime`, one name for every script",
}
"""From the ground up: a room imports those above it in this list alone. ``import lime`` itself is open to all."""

CIRCLES: list[set[str]] = []
"""Circles that are still there; an entry that is no longer needed fails."""


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "lime").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """The modules of the package that each module names, wherever in its text."""
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in files.items()}
    return {name: {target for node in ast.walk(tree) for target in named(node, files)} for name, tree in trees.items()}


def named(node: ast.AST, files: Mapping[str, Path]) -> Iterable[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: a relative import, which this test does not follow"
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        return
    for name in names:
        name = name if name in files else name.rpartition(".")[0]
        if name in files:
            yield name


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Nodes that reach each other."""
    reached = {}
    for start in graph:
        seen, todo = set[str](), [start]
        while todo:
            for target in graph[todo.pop()] - seen:
                seen.add(target)
                todo.append(target)
        reached[start] = seen
    found = []
    for start in graph:
        circle = {other for other in reached[start] if start in reached[other]}
        if len(circle) > 1 and circle not in found:
            found.append(circle)
    return found


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_room_is_listed() -> None:
    assert {room(name) for name in modules()} - {""} == set(ROOMS)


def test_no_room_knows_a_higher_one() -> None:
    order = list(ROOMS)
    upward = [
        f"{name} imports {target}"
        for name, targets in imports(modules()).items()
        for target in sorted(targets)
        if room(name) and room(target) and order.index(room(target)) > order.index(room(name))
    ]
    assert not upward, upward


def test_no_import_leads_back() -> None:
    found = circles({name: targets - {"lime"} for name, targets in imports(modules()).items()})
    new = [sorted(circle) for circle in found if circle not in CIRCLES]
    assert not new, f"a circle of imports: {new}"
    gone = [sorted(circle) for circle in CIRCLES if circle not in found]
    assert not gone, f"no circle any more; take it from the list: {gone}"


def test_a_circle_and_a_hidden_import_are_seen(tmp_path: Path) -> None:
    texts = {
        "lime.a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lime.b import B\n",
        "lime.b": "def f():\n    import lime.c\n",
        "lime.c": "from lime import a\n",
        "lime.d": "from lime.a import A\n",
    }
    files = {name: tmp_path / f"{name}.py" for name in texts}
    for name, path in files.items():
        path.write_text(texts[name])
    graph = imports(files)
    assert graph == {"lime.a": {"lime.b"}, "lime.b": {"lime.c"}, "lime.c": {"lime.a"}, "lime.d": {"lime.a"}}
    assert circles(graph) == [{"lime.a", "lime.b", "lime.c"}]
