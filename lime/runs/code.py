"""The version of the code, as far as it can change the result of a run."""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
DECIDES_NOTHING = ("analysis", "config", "experiments", "integrations", "loggers", "runs")
"""Subpackages that only compose, show or compare. The configuration counts by itself, see lime.config.identity."""


@functools.cache
def code_version(package: Path = PACKAGE) -> str:
    """Hash of the package's sources and embedded checkpoints.

    Comments, docstrings and layout do not count. It differs between Python versions whose syntax trees differ.
    """
    total = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        part = path.relative_to(package)
        if part.parts[0] in DECIDES_NOTHING or not path.is_file():
            continue
        if path.suffix == ".py":
            content = _without_docstrings(path.read_text(encoding="utf-8")).encode()
        elif "checkpoints" in part.parts:
            content = path.read_bytes()
        else:
            continue
        total.update(str(part).encode() + b"\0" + hashlib.sha256(content).digest())
    return total.hexdigest()[:16]


def _without_docstrings(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return ast.dump(tree)
