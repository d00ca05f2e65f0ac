"""What identifies a checkpoint folder: its weights, and the files that decide how input is prepared. Imports no
framework."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

_PART = 16 * 2**20
_PROCESSING = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")


def checkpoint_fingerprint(folder: Path) -> str:
    """SHA-256 over config.json and every byte of the weight files of a checkpoint folder (about 1 GB a second)."""
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    return _digest([folder / "config.json", *weights])


def processing_fingerprint(folder: Path) -> str:
    """SHA-256 over the other files that decide an answer: tokenizer, processor, chat template, generation settings."""
    files = {path for pattern in _PROCESSING for path in folder.glob(pattern) if path.is_file()}
    return _digest(sorted(path for path in files if path.name != "config.json" and ".index." not in path.name))


def _digest(paths: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        total.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as stream:
            while part := stream.read(_PART):
                total.update(part)
    return total.hexdigest()
