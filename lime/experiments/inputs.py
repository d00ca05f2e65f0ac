"""What a run was made from, as it lies there now: data and backbone, read again where a file changed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from pathlib import Path

from lime.config.schema import TrainConfig
from lime.models.fingerprint import checkpoint_fingerprint, processing_fingerprint
from lime.runs.record import Record


def same_inputs(config: TrainConfig, record: Record) -> bool:
    """Whether the run's data and backbone are still those of the record."""
    known = (record.environment or {}).get("backbone") or {}
    now = backbone_fingerprints(config)
    same = all(known.get(key) == value for key, value in now.items())
    return same and record.identity.data == data_fingerprint(config)


def backbone_fingerprints(config: TrainConfig) -> dict[str, str]:
    """Fingerprints of the backbone as it lies on this machine; empty for one that the hub has yet to give."""
    folder = Path(config.model.location).expanduser()
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        if str(folder).count("/") != 1 or folder.is_absolute():
            return {}
        cached = try_to_load_from_cache(config.model.location, "config.json", revision=config.model.revision)
        if not isinstance(cached, str):
            return {}
        folder = Path(cached).parent
    if not (folder / "config.json").is_file():
        return {}
    return _fingerprints_of(folder, _state_of(folder))


@functools.cache
def _fingerprints_of(folder: Path, state: str) -> dict[str, str]:
    """``state`` makes a changed folder be read again."""
    return {"fingerprint": checkpoint_fingerprint(folder), "processing": processing_fingerprint(folder)}


def data_fingerprint(config: TrainConfig) -> str:
    """Fingerprint of the run's data, read again where a file changed. The embedded benchmark is generated first."""
    root = Path(str(config.data.root))
    if config.data.name == "mmt47_mini":
        from lime.embedded.benchmark import ensure

        mini = config.data.mini
        ensure(
            root,
            seed=mini.seed,
            train_per_task=mini.train_per_task,
            test_per_task=mini.test_per_task,
            workers=mini.workers,
        )
    return _fingerprint(config.data.name, root, config.data.test_fraction, _state_of(root))


@functools.cache
def _fingerprint(name: str, root: Path, test_fraction: float, state: str) -> str:
    """``state`` makes changed data be read again."""
    from lime.data.config import DataConfig
    from lime.data.datasets import open_dataset

    return open_dataset(DataConfig(name=name, root=str(root), test_fraction=test_fraction)).fingerprint


def _state_of(folder: Path) -> str:
    """Names, sizes and times of all files below a folder, in one hash."""
    total = hashlib.sha256()
    for place, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            with contextlib.suppress(OSError):  # a broken link: reading it will tell
                state = path.stat()
                total.update(f"{path}\0{state.st_size}\0{state.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return total.hexdigest()
