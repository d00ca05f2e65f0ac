"""The folder of a run: marked as the program's own before anything in it is written, replaced or removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from lime.system.ownership import claim, is_own, kind_of, mark

FILES = (
    "record.json", "status.json", "config.yaml", "environment.json", "preflight.json", "metrics.csv", "routing.jsonl",
    "predictions.jsonl", "results.json", "results.csv", "results.md", "authors_scorer.json", "adapter", "checkpoints",
    "partial", "wandb",
)  # fmt: skip
"""What a run writes into its folder, the log and the lock apart."""
RESULTS = ("adapter", "checkpoints", "results.json", "predictions.jsonl")
"""What a run that came to nothing does not have; an evaluation may take its folder, and the other way round."""


def claim_run_folder(folder: Path, kind: Literal["run", "evaluation"]) -> None:
    """Mark a run's folder, made where it is absent.

    Raises:
        FileExistsError: it holds files of a run's names that no run wrote, or is the folder of something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failed = kind_of(folder) in ("run", "evaluation") and not any((folder / name).exists() for name in RESULTS)
    claim(folder, kind, FILES, earlier=failed or (kind_of(folder) is None and _ran_here(folder, kind)))


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
