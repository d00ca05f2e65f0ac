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

from lime.data.config import DataConfig
from lime.data.rows import Row
from lime.distributed import processes
from lime.evaluation.config import EvaluationConfig
from lime.inference.generation import Progress, answer_rows
from lime.inference.journal import Journal
from lime.models.loading import Backbone
from lime.processors.config import ModelConfig
from lime.system.atomic import remove, write_json, write_text

log = logging.getLogger(__name__)

VERSION = 2  # raise when the way of answering changes
_PLACES = ("name", "path", "revision", "recipe")
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
        "processing": backbone.processing,
        "data": data_fingerprint,
        "rows": hashlib.sha256("\n".join(row.id for row in rows).encode()).hexdigest(),
        "allowed": {split: answers for split, answers in allowed.items() if answers},
        "model": {k: v for k, v in dataclasses.asdict(model_config).items() if k not in _PLACES},
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
    *,
    model_config: ModelConfig,
    data_config: DataConfig,
    data_fingerprint: str,
    config: EvaluationConfig,
    cache_dir: Path | None,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> list[str | None]:
    """The frozen backbone's answer to each row, by likelihood over the allowed answers where a task has a closed set.

    Read from ``cache_dir`` when it has them. In ``folder``, the run's, answers are kept as they come.
    """
    cache = frozen_cache(
        backbone,
        rows,
        allowed,
        model_config=model_config,
        data_config=data_config,
        data_fingerprint=data_fingerprint,
        config=config,
        cache_dir=cache_dir,
    )
    key, path = cache.key, cache.path
    known = processes.from_main(_known(path, rows) if path is not None and processes.is_main() else None)
    if known is not None:
        log.info("frozen backbone: %d answers from %s", len(known), path)
        return [known[row.id] for row in rows]
    if path is not None and processes.is_main() and not _writable(path.parent):
        path = None
    model: nn.Module = backbone.model
    journal = Journal(folder, "frozen", f"{key} {config.batch_size}") if folder is not None else None
    answers = answer_rows(model, collator, rows, allowed, config, mode="likelihood", progress=progress, journal=journal)
    if journal is not None:
        journal.close()
    if path is not None and processes.is_main():
        by_row = {row.id: answer for row, answer in zip(rows, answers, strict=True)}
        try:
            write_json(path, {**cache.decisive, "checksum": _checksum(by_row), "answers": by_row})
        except OSError as error:  # they are in memory: the run needs no file
            log.warning("cache_dir: the frozen backbone's answers are not kept (%s)", error)
    return answers


def _known(path: Path, rows: Sequence[Row]) -> dict[str, str | None] | None:
    """The answers in a file of the cache; None where it is absent or not as it was written, which is said."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known: dict[str, str | None] = content["answers"]
        if content["checksum"] == _checksum(known) and all(row.id in known for row in rows):
            return known
        problem = "its answers are not those that were written"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"it cannot be read ({type(error).__name__})"
    log.warning("cache_dir: %s is damaged: %s; the frozen backbone is asked again", path, problem)
    return None


def _checksum(answers: Mapping[str, str | None]) -> str:
    return hashlib.sha256(json.dumps(answers, sort_keys=True).encode()).hexdigest()


def _writable(folder: Path) -> bool:
    """Whether a folder of the cache can be written; said where not, before the first row is asked."""
    try:
        write_text(folder / ".lime-writable", "")
        remove(folder / ".lime-writable")
    except OSError as error:
        log.warning("cache_dir: %s cannot be written (%s): the frozen backbone's answers are not kept", folder, error)
        return False
    return True
