"""The folder of a run: marked as the program's own before anything in it is written, replaced or removed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

from lime.system.ownership import claim, is_own, kind_of, mark

FILES = (
    "record.json", "status.json", "config.yaml", "environment.json", "preflight.json", "metrics.csv", "routing.jsonl",
    "predictions.jsonl", "results.json", "results.csv", "results.md", "tasks.yaml", "authors_scorer.json", "adapter",
    "checkpoints", "partial", "wandb", "tensorboard",
)  # fmt: skip
"""What a run writes into its folder, the log and the lock apart."""
RESERVE = ".lime-reserve"
_SERVING = (".lime-*", ".hydra", "*.log", "checkpoints.before")
"""Lock, owner, reserve and mark; Hydra's folder; the log; what a sweep put aside."""
RESULTS = ("adapter", "checkpoints", "results.json", "predictions.jsonl")
"""What a run that came to nothing does not have; an evaluation may take its folder, and the other way round."""


def claim_run_folder(folder: Path, kind: Literal["run", "evaluation"]) -> None:
    """Mark a run's folder, made where it is absent.

    Raises:
        FileExistsError: it holds files of a run's names that no run wrote, or links in their place, or is the folder of
            something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder)
    failed = kind_of(folder) in ("run", "evaluation") and not any((folder / name).exists() for name in RESULTS)
    claim(folder, kind, FILES, earlier=failed or (kind_of(folder) is None and _ran_here(folder, kind)))


def refuse_links(folder: Path) -> None:
    """Raise FileExistsError where a link in place of what a run writes leads out of the folder: a folder of a stranger
    decides nothing about files elsewhere."""
    inside = folder.resolve()
    for path in (path for name in (*FILES, *_SERVING) for path in folder.glob(name)):
        below = [Path(at, name) for at, folders, files in os.walk(path) for name in (*folders, *files)]
        for link in (one for one in (path, *below) if one.is_symlink()):
            if not link.resolve().is_relative_to(inside):
                raise FileExistsError(
                    f"{link} is a link that leads out of the folder of the run, where nothing is written; remove the "
                    "link, or take another folder"
                )


def sign_configuration(folder: Path, kind: Literal["run", "evaluation"]) -> None:
    """Sign ``config.yaml`` of a run's folder as written by a run of this user."""
    mark(folder, kind, files=["config.yaml"])


def is_own_run_folder(folder: Path) -> bool:
    """Whether a run of this user wrote the folder's ``config.yaml``, and nobody changed it."""
    return any(is_own(folder, kind) for kind in ("run", "evaluation"))


def _ran_here(folder: Path, kind: str) -> bool:
    """Whether a version that left no marks ran here: it left its status, and only training a record."""
    try:
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    ours = isinstance(status, dict) and {"status", "started"} <= status.keys()
    return ours and (folder / "record.json").is_file() == (kind == "run")
