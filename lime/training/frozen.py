"""Answers of the frozen backbone, kept on disk: a sweep over methods asks for them once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lime.atomic import write_json
from lime.data.config import DataConfig
from lime.data.rows import Row
from lime.evaluation.config import EvaluationConfig
from lime.models.config import ModelConfig
from lime.models.loading import Backbone
from lime.training import processes
from lime.training.inference import Progress, answer_rows
from lime.training.journal import Journal

log = logging.getLogger(__name__)

VERSION = 1  # raise when the way of answering changes
_INPUT_KEYS = ("max_length", "system_prompt", "video_backend", "on_missing_media", "on_overlong")


@dataclass(frozen=True)
class FrozenCache:
    """Where the frozen backbone's answers are kept, and what they depend on.

    Attributes:
        decisive: all that decides them: backbone, data, rows, processing and options.
        key: hash of it.
        path: the file; None without a cache.
    """

    decisive: dict[str, Any]
    key: str
    path: Path | None

    @property
    def known(self) -> bool:
        return self.path is not None and self.path.is_file()


def frozen_cache(
    backbone: Backbone,
    rows: Sequence[Row],
    allowed: Mapping[str, Sequence[str] | None],
    *,
    model_config: ModelConfig,
    data_config: DataConfig,
    data_fingerprint: str,
    config: EvaluationConfig,
    cache_dir: Path | None,
) -> FrozenCache:
    """The place of these answers."""
    device = next(backbone.model.parameters()).device.type
    decisive = {
        "version": VERSION,
        "backbone": backbone.fingerprint,
        "data": data_fingerprint,
        "rows": hashlib.sha256("\n".join(row.id for row in rows).encode()).hexdigest(),
        "allowed": {split: answers for split, answers in allowed.items() if answers},
        "model": {k: v for k, v in dataclasses.asdict(model_config).items() if k not in ("name", "path", "revision")},
        "input": {key: getattr(data_config, key) for key in _INPUT_KEYS},
        "normalisation": config.likelihood_normalisation,
        "max_new_tokens": config.max_new_tokens,
        "device": device,
    }
    key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    path = cache_dir / "frozen" / f"{backbone.name}-{key[:20]}.json" if cache_dir is not None else None
    return FrozenCache(decisive, key, path)


def frozen_answers(
    backbone: Backbone,
    collator: Any,
    rows: Sequence[Row],
    allowed: Mapping[str, Sequence[str] | None],
    config: EvaluationConfig,
    cache: FrozenCache,
    *,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> list[str | None]:
    """The frozen backbone's answer to each row, by likelihood over the allowed answers where a task has a closed set.

    Read from ``cache`` when it has them. In ``folder``, the run's, answers are kept as they come.
    """
    key, path = cache.key, cache.path
    there = processes.from_main(cache.known)
    if path is not None and there:
        known = json.loads(path.read_text(encoding="utf-8"))["answers"]
        log.info("frozen backbone: %d answers from %s", len(known), path)
        return [known[row.id] for row in rows]
    model: nn.Module = backbone.model
    journal = Journal(folder, "frozen", f"{key} {config.batch_size}") if folder is not None else None
    answers = answer_rows(model, collator, rows, allowed, config, mode="likelihood", progress=progress, journal=journal)
    if journal is not None:
        journal.close()
    if path is not None and processes.is_main():
        by_row = {row.id: answer for row, answer in zip(rows, answers, strict=True)}
        write_json(path, {**cache.decisive, "answers": by_row})
    return answers
