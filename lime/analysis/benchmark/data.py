"""Rows per second of the data path, from files to padded batches, by modality, workers and cache."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from lime.analysis.benchmark.options import option
from lime.analysis.benchmark.record import Column, record
from lime.analysis.benchmark.timing import Spread, interleaved
from lime.data.collate import Collator
from lime.data.config import MiniConfig
from lime.data.media.frame_cache import FrameCache
from lime.data.rows import MMTDataset, Row
from lime.data.sampler import LengthBucketSampler, ResumableLoader
from lime.embedded.benchmark import ensure
from lime.processors.config import EMBEDDED, ModelConfig
from lime.processors.families import load_processor

MODALITIES = ("text", "image", "video")
CACHES = ("none", "disk", "memory")
CACHED = {"text": ("none",), "image": ("none", "memory"), "video": CACHES}
"""Where rows of a kind are kept."""


@dataclass(frozen=True)
class Options:
    """What to measure. One repetition is one pass over the rows with nothing else to do."""

    model: str = option("tiny_llava_onevision", "embedded backbone whose processor reads the rows", tuple(EMBEDDED))
    root: str = option("", "folder of a data set in the published layout; absent: the embedded one")
    modalities: tuple[str, ...] = option(MODALITIES, "kinds of rows", MODALITIES)
    workers: tuple[int, ...] = option((0, 1, 2), "worker processes; 0: a thread of the training process")
    caches: tuple[str, ...] = option(
        CACHES, "what earlier passes left: nothing, resized frames on disk (clips alone), or all in memory", CACHES
    )
    rows: int = option(320, "rows of each kind")
    batch: int = option(32, "rows of a batch")
    repetitions: int = option(5, "interleaved repetitions")


COLUMNS = (
    Column("modality", "rows of"),
    Column("workers", "workers"),
    Column("cache", "kept from earlier passes"),
    Column("rows_per_second", "rows/s", ",.0f"),
)


def run(options: Options) -> dict[str, Any]:
    """Measure and return the record."""
    root = Path(options.root or "data/mmt47_mini")
    if not options.root:
        mini = MiniConfig()
        ensure(root, train_per_task=mini.train_per_task, test_per_task=mini.test_per_task, workers=mini.workers)
    family = EMBEDDED[options.model]
    processor = load_processor(ModelConfig(options.model, family).location, family)
    dataset = MMTDataset(root)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for modality in options.modalities:
            taken = [row for row in dataset.train if row.source_type == modality][: options.rows]
            if not taken:
                raise ValueError(f"--modalities: {dataset.root} has no training row of kind {modality!r}")
            subjects: dict[tuple[int, str], Callable[[], Any]] = {}
            for workers, cache in product(options.workers, options.caches):
                if cache in CACHED[modality]:
                    frames = FrameCache(Path(folder) / "frames", 1024) if cache == "disk" else None
                    in_memory = 2048 if cache == "memory" else 0
                    collator = Collator(processor, family, root, cache_mb=in_memory, frame_cache=frames)
                    subjects[workers, cache] = _epoch(collator, taken, workers, options.batch)
            seconds = interleaved(subjects, options.repetitions, warmup=3 if "memory" in options.caches else 1)
            for (workers, cache), times in seconds.items():
                rate = Spread.of([len(taken) / one for one in times])
                rows.append({"modality": modality, "workers": workers, "cache": cache, "rows_per_second": rate})
    notes = (f"{options.rows} rows of each kind in batches of {options.batch}; medians (quartiles) over passes.",)
    return record("data", options, COLUMNS, rows, notes=notes)


def _epoch(collator: Collator, rows: Sequence[Row], workers: int, batch: int) -> Callable[[], int]:
    """One pass over the rows as in training, with processes that stay."""
    sampler = LengthBucketSampler(collator.lengths(rows), batch)
    loader = ResumableLoader(
        rows, sampler, collate_fn=collator.training_batch, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: sum(1 for _ in loader)
