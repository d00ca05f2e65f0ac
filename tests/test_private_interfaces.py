"""docs/internals.md lists every private interface of a library that is used here, as the installed version has it.

A failure names the library, the name and what was expected: read there who uses it and why, fix that place for the new
version, then the list.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "internals.md").read_text(encoding="utf-8") if (ROOT / "docs" / "internals.md").exists() else ""
ROW = re.compile(r"^\| `(?P<name>[^`]+)` \| (?P<form>.+?) \| `(?P<place>[^`]+)` \| .+ \|$")
OPTIONAL = ("triton",)


def rows() -> list[tuple[str, str, str, str]]:
    """Library, name, form and place of each row of the page."""
    found, library = [], ""
    for line in PAGE.splitlines():
        if line.startswith("## "):
            library = line.removeprefix("## ")
        elif match := ROW.match(line):
            found.append((library, match["name"], match["form"], match["place"]))
    return found


def resolved(name: str) -> Any:
    """The object of a dotted name; a part with `()` is called."""
    first, *parts = name.split(".")
    path, thing = first, importlib.import_module(first)
    for part in parts:
        attribute = part.removesuffix("()")
        path = f"{path}.{attribute}"
        if not hasattr(thing, attribute):
            try:
                importlib.import_module(path)
            except ModuleNotFoundError as error:
                raise AttributeError(f"{path} is gone") from error
        thing = getattr(thing, attribute)
        thing = thing() if part.endswith("()") else thing
    return thing


def fault(name: str, form: str) -> str | None:
    """What is different in the installed library, or None."""
    try:
        thing = resolved(name)
    except AttributeError as error:
        return str(error)
    if form.startswith("mentions"):
        text = form.split("`")[1]
        return None if text in inspect.getsource(thing) else f"its source no longer has {text}"
    if form.startswith("`("):
        taken = "(" + ", ".join(inspect.signature(thing).parameters) + ")"
        return None if form == f"`{taken}`" else f"it takes {taken}, expected {form}"
    return None if form != "built in" or callable(thing) else "it cannot be called any more"


@pytest.mark.parametrize(("library", "name", "form", "place"), rows(), ids=[f"{row[1]} {row[2]}" for row in rows()])
def test_the_library_still_has_it(library: str, name: str, form: str, place: str) -> None:
    if name.partition(".")[0] in OPTIONAL:
        pytest.importorskip(name.partition(".")[0])
    different = fault(name, form)
    assert different is None, f"{library}: {name}: {different}; used in {place}, see docs/internals.md"


def test_a_change_is_told() -> None:
    assert fault("torch.nn.Module()._no_such_hooks", "a value") == "torch.nn.Module._no_such_hooks is gone"
    assert fault("torch._no_such_module.function", "a value") == "torch._no_such_module is gone"
    assert fault("json.dumps", "`(obj)`") is not None
    assert fault("json.dumps", "mentions `no_such_word`") == "its source no longer has no_such_word"


def test_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    known = {one.partition(";")[0].strip() for one in asked} | {f"python{project['requires-python']}"}
    assert {library for library, *_ in rows()} <= known


def test_each_is_used_where_the_page_says() -> None:
    for _, name, form, place in rows():
        word = form.split("`")[1] if form.startswith("mentions") else name.rpartition(".")[2]
        owner = name.split(".")[-2].removesuffix("()")  # of a base class whose method is overridden or inherited
        path = ROOT / place
        texts = [
            file.read_text(encoding="utf-8") for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))
        ]
        assert any(re.search(rf"\b({word}|{owner})\b", text) for text in texts), f"{place} does not use {name}"


def private_names() -> set[str]:
    """Names with an underscore that the package takes from others: imported, or an attribute that no class here has."""
    files = [*(ROOT / "lime").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    own = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and _is_stored_on_self(node)}
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(("lime", "__")):
            used |= {alias.name for alias in node.names} | set((node.module or "").split("."))
    return {name for name in used - own if name.startswith("_") and not name.startswith("__")} - PUBLIC


PUBLIC = {"_exit", "_replace"}
"""Documented in spite of the underscore: `os._exit`, and `_replace` of named tuples."""


def _is_stored_on_self(node: ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self"


def test_the_page_lists_all_of_them() -> None:
    missing = sorted(name for name in private_names() if not re.search(rf"\b{name}\b", PAGE))
    assert not missing, f"private names of libraries that docs/internals.md does not list: {', '.join(missing)}"


def test_the_page_lists_private_methods_that_are_overridden() -> None:
    """A library that renames one would no longer call ours."""
    for name in ("tuner.model", "tuner.prompt.layer", "integrations.trainer", "distributed.strategies", "jobs.train"):
        importlib.import_module(f"lime.{name}")
    modules = {name: module for name, module in sys.modules.items() if name.startswith("lime.")}
    defined = [(name, one) for name, module in modules.items() for one in vars(module).values()]
    classes = [one for name, one in defined if isinstance(one, type) and one.__module__ == name]
    missing = {
        f"{one.__qualname__}.{method} of {base.__module__}"
        for one in classes
        for base in one.__mro__[1:]
        for method, function in vars(one).items()
        if not base.__module__.startswith("lime")
        and method.startswith("_")
        and not method.endswith("_")
        and inspect.isfunction(function)
        and method in vars(base)
        and not re.search(rf"\b{method}\b", PAGE)
    }
    assert not missing, missing
