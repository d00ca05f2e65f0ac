"""Where a run was made: versions, commit and hardware."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from lime.system.threads import cores

PACKAGES = (
    "lime-moe", "torch", "transformers", "peft", "lightning", "datasets", "hydra-core", "numpy", "pillow", "av",
    "wandb",
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]


def environment(seed: int) -> dict[str, Any]:
    """Versions, commit and hardware; seed and fingerprints of data and backbone are added by the run."""
    return {
        "seed": seed,
        "python": platform.python_version(),
        "versions": versions(PACKAGES),
        "commit": _commit(),
        "hardware": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": cores(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """The installed version of each package; None where it is absent."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _commit() -> dict[str, Any]:
    """Commit of the working tree and whether it has uncommitted changes; nulls outside a git checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):
        return {"id": None, "dirty": None}
    return {"id": commit, "dirty": bool(changes)}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
