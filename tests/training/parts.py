"""A data root and configurations for runs of a few steps on checkpoints made on the spot."""

from __future__ import annotations

import csv
import functools
import tempfile
from pathlib import Path
from typing import Any

from lime.config.check import build
from lime.config.schema import TrainConfig
from tests.data import tiny

NAMES = {"llava_onevision": "tiny_llava_onevision", "qwen2_vl": "tiny_qwen2vl"}


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="lime-training-")


@functools.cache
def data_root() -> Path:
    """24 training rows of three modalities and three test splits of 4 rows; treat it as read-only."""
    return tiny.write_root(Path(_scratch().name) / "data", tiny.splits(train=24, test=4))


def values(family: str = "llava_onevision", **changes: Any) -> dict[str, Any]:
    """A configuration of a short run as nested values; ``changes`` are dotted keys with ``__`` for the dot."""
    config: dict[str, Any] = {
        "seed": 1,
        "cache_dir": None,
        "model": {"name": NAMES[family], "family": family, "path": str(tiny.checkpoint(family)), "dtype": "float32"},
        "data": {"name": "mmt47", "root": str(data_root()), "validation_fraction": 0.0},
        "trainer": {"batch_size": 4, "max_epochs": 2, "log_every_n_steps": 1, "accelerator": "cpu", "preflight": False},
        "optim": {"moe_lr": 1e-2, "peft_lr": 1e-2},
        "evaluation": {"max_new_tokens": 4},
        "callbacks": {"progress": False, "checkpoint": False},
    }
    for key, value in changes.items():
        *sections, name = key.split("__")
        section = config
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return config


def config(family: str = "llava_onevision", **changes: Any) -> TrainConfig:
    return build(TrainConfig, values(family, **changes))


def tiny_overrides() -> list[str]:
    """Of the command line: a checkpoint made on the spot, the data root, batches of 8 rows."""
    return [
        f"model.path={tiny.checkpoint('llava_onevision')}", "data=mmt47", "data.num_workers=0",
        f"data.root={data_root()}", "data.validation_fraction=0.0", "trainer.batch_size=8", "cache_dir=null",
    ]  # fmt: skip


def metrics(folder: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv without what depends on the clock and the machine."""
    unstable = {"seconds", "samples_per_second", "tokens_per_second", "peak_memory_mb"}
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k not in unstable} for row in csv.DictReader(file)]
