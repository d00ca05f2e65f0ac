"""Where MMT-47 comes from: its folders on the hub, and the data sets it is made of with their terms (sources.yaml)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

_CONTENT = yaml.safe_load(Path(__file__).with_name("sources.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Source:
    """One part to fetch from the hub: `patterns` of its files."""

    name: str
    repository: str
    patterns: list[str]


@dataclass(frozen=True)
class Constituent:
    """A data set that MMT-47 took rows from."""

    name: str
    tasks: list[str]
    terms: str


SOURCES = {name: Source(name, **values) for name, values in _CONTENT["sources"].items()}
CONSTITUENTS = [Constituent(**values) for values in _CONTENT["constituents"]]


def licences() -> str:
    """The list a person accepts before anything is fetched."""
    width = max(len(one.name) for one in CONSTITUENTS)
    lines = [f"  {one.name.ljust(width)}  {one.terms}" for one in CONSTITUENTS]
    pages = "\n".join(
        f"  https://huggingface.co/datasets/{name}" for name in dict.fromkeys(s.repository for s in SOURCES.values())
    )
    return (
        "MMT-47 is made of these data sets, each under its own terms (as far as they are known here; the data set "
        "cards and each source's own page are decisive):\n" + "\n".join(lines) + "\nData set cards:\n" + pages
    )
