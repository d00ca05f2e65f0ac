"""Which data to read and what to do with rows that cannot be used. Imports no framework."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lime.data.files import BOUNDS, Bounds

DATASETS = ("mmt47_mini", "mmt47")
VIDEO_BACKENDS = ("pyav", "decord")
ON_BAD_ROW = {"on_missing_media": ("error", "skip"), "on_overlong": ("error", "drop")}


@dataclass
class MiniConfig:
    """How the embedded benchmark is generated (`data.name=mmt47_mini`; the folder is generated once and
    then read).
    """

    seed: int = 0
    train_per_task: int = 140
    test_per_task: int = 60
    workers: int = 2


@dataclass
class FrameCacheConfig:
    """Resized video frames kept on disk, for later epochs and runs. `dir` null: off. `size_mb` bounds it (MiB)."""

    dir: str | None = None
    size_mb: int = 8192


@dataclass
class DataConfig:
    """A data root in the published layout, the part of it to use, and what to do with unusable rows.

    `rows_per_split` (test) and `train_rows` take a fixed, scattered part, chosen by a hash of the row, so
    independent of seed and file order. `validation_fraction` of the training rows is held out by the same
    hash. `max_length` counts prompt, visual placeholders and answer. `on_missing_media=skip` leaves out rows
    whose media are missing or damaged, `on_overlong=drop` rows that are too long; both are counted and
    logged. `cache_mb` bounds the resized media kept in memory, `frame_cache` keeps those of clips on disk. With
    `num_workers` 0 the batches are made ahead by a thread, else by so many processes, each `prefetch` batches ahead.
    `max_pixels` (of a picture, or of one frame of a clip) and `max_seconds` (of a clip) bound what one file may cost;
    what exceeds them counts as damaged.
    """

    name: str = "mmt47_mini"
    root: str | None = None
    rows_per_split: int | None = None
    train_rows: int | None = None
    validation_fraction: float = 0.05
    max_length: int = 2048
    system_prompt: str | None = None
    on_missing_media: str = "error"
    on_overlong: str = "error"
    video_backend: str = "pyav"
    max_pixels: int = BOUNDS.pixels
    max_seconds: float = BOUNDS.seconds
    num_workers: int = 0
    prefetch: int = 2
    cache_mb: int = 512
    frame_cache: FrameCacheConfig = field(default_factory=FrameCacheConfig)
    mini: MiniConfig = field(default_factory=MiniConfig)

    @property
    def bounds(self) -> Bounds:
        """What one media file may cost."""
        return Bounds(self.max_pixels, self.max_seconds)

    def errors(self) -> list[str]:
        """Everything wrong with this configuration, one sentence each, beginning with the full key."""
        found: list[str] = []
        if self.name not in DATASETS:
            found.append(f"data.name: expected one of {', '.join(DATASETS)}, got {self.name!r}")
        if not self.root:
            found.append("data.root: expected the folder that holds (for mmt47_mini: will hold) the data, got nothing")
        for key, allowed in ON_BAD_ROW.items():
            if getattr(self, key) not in allowed:
                found.append(f"data.{key}: expected one of {', '.join(allowed)}, got {getattr(self, key)!r}")
        if self.video_backend not in VIDEO_BACKENDS:
            found.append(f"data.video_backend: expected one of {', '.join(VIDEO_BACKENDS)}, got {self.video_backend!r}")
        if not 0.0 <= self.validation_fraction < 1.0:
            found.append(f"data.validation_fraction: expected a number in [0, 1), got {self.validation_fraction}")
        if self.max_length < 8:
            found.append(f"data.max_length: expected at least 8 tokens, got {self.max_length}")
        if self.max_pixels < 1:
            found.append(f"data.max_pixels: expected at least 1, got {self.max_pixels}")
        if not (math.isfinite(self.max_seconds) and self.max_seconds > 0):
            found.append(f"data.max_seconds: expected a number above 0, got {self.max_seconds}")
        for key in ("num_workers", "cache_mb"):
            if getattr(self, key) < 0:
                found.append(f"data.{key}: expected 0 or more, got {getattr(self, key)}")
        if self.prefetch < 1:
            found.append(f"data.prefetch: expected at least 1, got {self.prefetch}")
        if self.frame_cache.size_mb < 1:
            found.append(
                f"data.frame_cache.size_mb: expected at least 1, got {self.frame_cache.size_mb}; "
                "data.frame_cache.dir=null turns the cache off"
            )
        for key in ("rows_per_split", "train_rows"):
            value = getattr(self, key)
            if value is not None and value < 1:
                found.append(f"data.{key}: expected at least 1 or null, got {value}")
        for key in ("train_per_task", "test_per_task", "workers"):
            if getattr(self.mini, key) < 1:
                found.append(f"data.mini.{key}: expected at least 1, got {getattr(self.mini, key)}")
        return found
