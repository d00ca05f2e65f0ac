"""Where an adapter comes from: a folder, or the hub, at a commit where one is named."""

from __future__ import annotations

import re
from pathlib import Path

_HUB = re.compile(r"([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)(?:@([\w.-]+(?:/[\w.-]+)*))?")
_OF_RUNS = ("outputs", "multirun")


def hub_name(text: str) -> tuple[str, str | None] | None:
    """(ORG/NAME, revision or None) of ``ORG/NAME[@REVISION]``; None for a path.

    A path is what is there, what starts with a folder that is there, and ``RUN/adapter``, the place of a run's adapter
    (an adapter of that name on the hub is asked for with its revision).
    """
    found = _HUB.fullmatch(text)
    if found is None or Path(text).exists() or Path(found[1]).exists() or found[1] in _OF_RUNS:
        return None
    if found[2] == "adapter" and found[3] is None:
        return None
    return f"{found[1]}/{found[2]}", found[3]
