"""The site builds strictly, asks the network for nothing, and its links to files lead to them."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
import typing
from pathlib import Path
from types import ModuleType

import pytest

import lime
from lime.config.schema import EvalConfig, TrainConfig
from tests.docs.pages import PAGES, ROOT

MADE = {"PeftSection", "LimeSection"}
"""Sections that are made of the options of `LimeSettings`."""
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)")
ASSET = re.compile(r"""<(?:script|link|img|iframe|source|video)\b[^>]*?(?:src|href)=["']?(?:https?:)?//""")


def hooks() -> ModuleType:
    """docs/theme/hooks.py"""
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs/theme/hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sections_of(schema: type) -> list[type]:
    """The dataclasses of a configuration's fields, those that may be absent included."""
    hints = typing.get_type_hints(schema).values()
    return [part for hint in hints for part in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(part)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    local = [link for link in LINK.findall(prose) if not link.startswith(("http:", "https:", "mailto:"))]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_the_reference_has_every_public_name_and_section() -> None:
    reference = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs/api").glob("*.md"))
    assert [name for name in lime.__all__ if f"heading: lime.{name}," not in reference] == []
    direct = [kind for schema in (TrainConfig, EvalConfig) for kind in sections_of(schema)]
    sections = {TrainConfig, EvalConfig, *direct, *(part for kind in direct for part in sections_of(kind))}
    assert [name for name in {kind.__name__ for kind in sections} - MADE if f".{name}\n" not in reference] == []


@pytest.mark.slow
def test_it_builds_and_needs_no_network(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 25
    assert {page.name for page in pages if ASSET.search(page.read_text(encoding="utf-8"))} == set()
    reference = (tmp_path / "site/docs/api/adapting.html").read_text(encoding="utf-8")
    assert all(f"lime.{name}" in reference for name in ("apply", "load", "record", "parameter_groups", "LimeSettings"))
    assert "usage: lime ask" in (tmp_path / "site/docs/api/commands.html").read_text(encoding="utf-8")
    assert "Not run by a test: needs a GPU." in (tmp_path / "site/docs/gpu.html").read_text(encoding="utf-8")
