"""The record of a run beside its results: status, environment and configuration.

Written so that a crash leaves whole files.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import yaml

PACKAGES = (
    "lime-moe", "torch", "transformers", "peft", "lightning", "datasets", "hydra-core", "numpy", "pillow", "av",
    "wandb",
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that readers see the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def write_config(path: Path, config: dict[str, Any]) -> None:
    """The resolved configuration as YAML, in the order of the schema."""
    path.write_text(yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def plain(value: Any) -> Any:
    """Tuples as lists, all the way down."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def environment(seed: int) -> dict[str, Any]:
    """Versions, commit and hardware; seed and fingerprints of data and backbone are added by the run."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "seed": seed,
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
        "hardware": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


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


class RunStatus:
    """``status.json`` of a run: ``running``, then ``finished``, ``interrupted`` or ``failed`` with the error."""

    def __init__(self, folder: Path):
        self._path = folder / "status.json"
        self._started = time.time()

    def __enter__(self) -> RunStatus:
        self._write("running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._write("finished")
            return
        said = "".join(traceback.format_exception(kind, error, trace))
        status = "interrupted" if issubclass(kind, (KeyboardInterrupt, SystemExit)) else "failed"
        self._write(status, {"type": kind.__name__, "message": str(error), "traceback": said})

    def _write(self, status: str, error: dict[str, str] | None = None) -> None:
        now = time.time()
        content: dict[str, Any] = {"status": status, "started": _iso(self._started)}
        if status != "running":
            content |= {"ended": _iso(now), "seconds": round(now - self._started, 3)}
        write_json(self._path, content | ({"error": error} if error else {}))


def _iso(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="seconds")
