"""What mkdocs is told beside mkdocs.yml: which files of the repository the site has, and where they lie.

The site has the repository's own layout (README.md, docs/method.md, …), so a relative link leads to the same place on
the site as on a code host. Files that pages link to, and pictures, come along.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
AT_THE_TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
COMMANDS_PAGE = "docs/api/commands.md"
MARK = re.compile(r"<!-- needs: ([\w, ]+) -->\n")
NEEDS = {
    "gpu": "a GPU",
    "weights": "a checkpoint that is not part of the package",
    "network": "a network",
    "login": "a login",
    "cluster": "several machines, or a cluster's scheduler",
}
LINK = re.compile(r"\]\(([^)#:\s]+)[^)]*\)")


def on_files(files: Files, config: Any) -> Files:
    """The pages, what lies in docs/, the files elsewhere that pages link to, and the theme's own.

    A page that the navigation does not name comes at its end.
    """
    ours = [file for file in files if file.src_dir == config.docs_dir]
    places = {*AT_THE_TOP, *(f"docs/{file.src_uri}" for file in ours if file.src_uri != "theme/hooks.py")}
    for page in [place for place in places if place.endswith(".md")]:
        for target in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
            path = ((ROOT / page).parent / target).resolve()
            if path.is_file() and path.is_relative_to(ROOT):
                places.add(path.relative_to(ROOT).as_posix())
    named = str(config.nav)
    config.nav += [place for place in sorted(places) if re.fullmatch(r"docs/\w+\.md", place) and place not in named]
    own = [File(place, str(ROOT), config.site_dir, config.use_directory_urls) for place in sorted(places)]
    return Files([*(file for file in files if file not in ours), *own])


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Commands that no test runs get a line that says what they need; the page of commands gets its commands."""
    if page.file.src_uri.startswith("docs/tables/"):
        page.meta["search"] = {"exclude": True}  # numbers
    if page.file.src_uri == COMMANDS_PAGE:
        markdown += commands()
    return MARK.sub(lambda mark: f'<p class="needs">Not run by a test: needs {needed(mark[1])}.</p>\n\n', markdown)


def needed(names: str) -> str:
    """What a mark says, in words."""
    return " and ".join(NEEDS[name.strip()] for name in names.split(","))


def commands() -> str:
    """What `lime COMMAND --help` prints, of every command that is a script."""
    sys.path.insert(0, str(ROOT))
    listed: dict[str, tuple[str, str]] = import_module("lime.command").COMMANDS
    parts = []
    for name, (file, what) in listed.items():
        parts.append(f"\n## lime {name}\n\n`python {file}`: {what}.\n")
        if file.startswith("scripts/"):
            parts.append(f"```text\n{help_of(name, file)}```\n")
        else:
            parts.append("Takes every key of [Every option](../configuration.md); `--help` shows the groups.\n")
    return "\n".join(parts)


def help_of(name: str, file: str) -> str:
    """The help that a script prints."""
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
        mock.patch.object(sys, "argv", [f"lime {name}"]),
        mock.patch.dict(os.environ, COLUMNS="100"),
    ):
        import_module(file.removesuffix(".py").replace("/", ".")).main(["--help"])
    return printed.getvalue()
