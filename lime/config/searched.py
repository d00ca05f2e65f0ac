"""Settings that a search chose on a validation part, read into a configuration: ``${searched:FILE,${method}}``.

``scripts/collect.py select`` writes such a file from the records of a search.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

SEARCHED = "searched"
SEARCH_SCHEMA = "lime-search/1"
ROOT = Path(__file__).resolve().parents[2]


class SearchError(ValueError):
    """No choice for a method, or no file of choices; the message says how to make it."""


def searched(file: str, name: str) -> float:
    """The value chosen for ``name`` in a file of choices, relative to the project's folder.

    Raises:
        SearchError: where there is none.
    """
    path = ROOT / file
    search = f"{path.stem}_search"
    how = (
        f"search first: python train.py -m +experiment={search}; python scripts/collect.py multirun/{search} "
        f"--select {file}. Or set optim.peft_lr and optim.moe_lr"
    )
    if not path.is_file():
        raise SearchError(f"{file}: no such file; {how}")
    choices = read_choices(path)
    if name not in choices["chosen"]:
        raise SearchError(f"{file}: no rate for {name}; it has {', '.join(choices['chosen'])}; {how}")
    return float(choices["chosen"][name])


def read_choices(path: Path) -> dict[str, Any]:
    """A file of choices: ``chosen`` by name, and how they came about.

    Raises:
        SearchError: a damaged file.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise SearchError(f"{path}: not valid YAML ({error})") from error
    if not isinstance(content, dict) or content.get("schema") != SEARCH_SCHEMA or "chosen" not in content:
        raise SearchError(f"{path}: expected schema {SEARCH_SCHEMA} and a mapping 'chosen'; select again")
    return content
