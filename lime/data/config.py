"""Which data to read and what to do with rows that cannot be used. Imports no framework."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection
from dataclasses import dataclass, field

from lime.data.files import BOUNDS, Bounds
from lime.system.checks import not_one_of

OWN = "own"
"""Rows with a table of tasks of their own."""
DATASETS = ("mmt47_mini", "mmt47", OWN)
TRAIN_ON = ("last", "all")
VIDEO_BACKENDS = ("pyav", "decord")
ON_BAD_ROW = {"on_missing_media": ("error", "skip"), "on_overlong": ("error", "drop")}
_COUNTS = ("train_per_task", "test_per_task", "workers")


@dataclass
class MiniConfig:
    """How the embedded benchmark is generated (`data.name=mmt47_mini`; the folder is generated once and then read).

    Attributes:
        seed: seed of its rows.
        train_per_task: training rows of each task.
        test_per_task: test rows of each task.
        workers: processes that generate it.
    """

    seed: int = 0
    train_per_task: int = 140
    test_per_task: int = 60
    workers: int = 2


@dataclass
class FrameCacheConfig:
    """Resized video frames kept on disk, for later epochs and runs.

    Attributes:
        dir: their folder; null for none.
        size_mb: most that it holds (MiB).
    """

    dir: str | None = None
    size_mb: int = 8192


@dataclass
class DataConfig:
    """A data root in the published layout, the part of it to use, and what to do with unusable rows.

    Attributes:
        name: data set: `mmt47_mini`, the embedded benchmark, `mmt47`, the published rows, or `own`, a folder of one's
            own (docs/data.md).
        root: folder that holds the data (for `mmt47_mini`: will hold them).
        rows_per_split: test rows of each split, scattered, chosen by a hash of the row, so independent of seed and file
            order; null for all.
        train_rows: training rows, chosen in the same way; null for all.
        tasks: training rows to take: names of test splits, tasks (`sst2`), categories (`glue`) or modalities (`video`);
            null for all. Where the data do not say of which task each row is, modalities only.
        weights: how often rows are drawn, by the same names, the narrowest first: `{glue: 2.0}` draws each row of GLUE
            twice as often as others; 0 leaves rows out; 1 for those without a name here.
        temperature: evens out tasks (modalities, where tasks are not known): n rows of one are drawn as often as
            n^(1/temperature) would be; 1 leaves them in proportion.
        validation_fraction: share of the training rows held out by the same hash.
        test_fraction: of `own` data without test files: share of the rows held out as test rows; 0 for none.
        least_steps: fewest optimiser steps of a training: where the rows give fewer, each epoch repeats them; null for
            no such bound.
        train_on: of rows of several turns: the `last` answer or `all` of them.
        max_length: longest row in tokens: prompt, visual placeholders and answer.
        system_prompt: text of a system turn before every question; null for none.
        on_missing_media: what becomes of rows whose media are missing or damaged: an `error`, or `skip`, which counts
            and logs them.
        on_overlong: what becomes of rows above max_length: an `error`, or `drop`, which counts and logs them.
        video_backend: decoder of clips, `pyav` or `decord`; both give the same frames.
        max_pixels: pixels of a picture, or of one frame of a clip, above which a file counts as damaged.
        max_seconds: length of a clip above which it counts as damaged.
        num_workers: processes that make batches ahead; with 0 a thread does.
        prefetch: batches that each of them makes ahead.
        cache_mb: most memory that resized media take (MiB).
        frame_cache: resized frames of clips on disk.
        mini: how the embedded benchmark is generated.
    """

    name: str = "mmt47_mini"
    root: str | None = None
    rows_per_split: int | None = None
    train_rows: int | None = None
    tasks: list[str] | str | None = None
    weights: dict[str, float] | None = None
    temperature: float = 1.0
    validation_fraction: float = 0.05
    test_fraction: float = 0.2
    least_steps: int | None = None
    train_on: str = "last"
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
        words = {"name": DATASETS, **ON_BAD_ROW, "video_backend": VIDEO_BACKENDS, "train_on": TRAIN_ON}
        problems = not_one_of(self, "data", words)
        if not self.root:
            text = "expected the folder that holds (for mmt47_mini: will hold) the data, got nothing"
            problems.append(f"data.root: {text}")
        for key in ("validation_fraction", "test_fraction"):
            if not 0.0 <= getattr(self, key) < 1.0:
                problems.append(f"data.{key}: expected a number in [0, 1), got {getattr(self, key)}")
        if self.name != OWN and (self.test_fraction, self.train_on) != (0.2, "last"):
            problems.append(f"data.test_fraction, data.train_on: for data=own alone, but data.name is {self.name}")
        if not (math.isfinite(self.max_seconds) and self.max_seconds > 0):
            problems.append(f"data.max_seconds: expected a number above 0, got {self.max_seconds}")
        problems += self._mixing_errors()
        for key, value, least, text in (
            ("max_length", self.max_length, 8, "at least 8 tokens"),
            ("max_pixels", self.max_pixels, 1, "at least 1"),
            ("num_workers", self.num_workers, 0, "0 or more"),
            ("cache_mb", self.cache_mb, 0, "0 or more"),
            ("prefetch", self.prefetch, 1, "at least 1"),
            ("rows_per_split", self.rows_per_split, 1, "at least 1 or null"),
            ("train_rows", self.train_rows, 1, "at least 1 or null"),
            ("least_steps", self.least_steps, 1, "at least 1 or null"),
            *((f"mini.{key}", getattr(self.mini, key), 1, "at least 1") for key in _COUNTS),
        ):
            if value is not None and value < least:
                problems.append(f"data.{key}: expected {text}, got {value}")
        if self.frame_cache.size_mb < 1:
            problems.append(
                f"data.frame_cache.size_mb: expected at least 1, got {self.frame_cache.size_mb}; "
                "data.frame_cache.dir=null turns the cache off"
            )
        return problems

    def name_errors(self, known: Collection[str]) -> list[str]:
        """Names in `tasks` and `weights` that are none of these; of `own` data they are known when those are opened."""
        problems: list[str] = []
        if self.name == OWN:
            return problems
        for key, names in (("tasks", self.tasks or ()), ("weights", self.weights or ())):
            for name in (names,) if isinstance(names, str) else names:
                if name not in known:
                    near = difflib.get_close_matches(name, known, n=1)
                    hint = f"; did you mean {near[0]}?" if near else "; `python scripts/data.py tasks` lists them"
                    problems.append(f"data.{key}: {name}: no task, category or modality{hint}")
        return problems

    def _mixing_errors(self) -> list[str]:
        problems = []
        if self.tasks is not None and not self.tasks:
            problems.append("data.tasks: expected null (all) or at least one name, got none")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            problems.append(f"data.temperature: expected a number above 0, got {self.temperature}")
        for name, weight in (self.weights or {}).items():
            if not (math.isfinite(weight) and weight >= 0):
                problems.append(f"data.weights.{name}: expected 0 or more, got {weight}")
        return problems
