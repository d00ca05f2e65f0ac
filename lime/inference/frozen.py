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

from lime.config.schema import EvalConfig, TrainConfig
from lime.data.datamodule import MMTDataModule
from lime.data.rows import Row
from lime.distributed import processes
from lime.inference.generation import answer_rows
from lime.inference.journal import Journal
from lime.inference.rows import TestRows
from lime.models.loading import Backbone
from lime.system.atomic import remove, write_json, write_text
from lime.system.progress import ProgressDisplay

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


def frozen_cache(
    backbone: Backbone, data: MMTDataModule, tests: TestRows, config: TrainConfig | EvalConfig
) -> FrozenCache:
    """The place of these answers."""
    decisive = {
        "version": VERSION,
        "backbone": backbone.fingerprint,
        "processing": backbone.processing,
        "data": data.dataset.fingerprint,
        "rows": hashlib.sha256("\n".join(row.id for row in tests.rows).encode()).hexdigest(),
        "allowed": {split: answers for split, answers in tests.allowed.items() if answers},
        "model": {k: v for k, v in dataclasses.asdict(config.model).items() if k not in _PLACES},
        "input": {key: getattr(config.data, key) for key in _INPUT_KEYS},
        "normalisation": config.evaluation.likelihood_normalisation,
        "max_new_tokens": config.evaluation.max_new_tokens,
        "device": next(backbone.model.parameters()).device.type,
    }
    key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    path = Path(config.cache_dir) / "frozen" / f"{backbone.name}-{key[:20]}.json" if config.cache_dir else None
    return FrozenCache(decisive, key, path)


def asks_frozen(backbone: Backbone, data: MMTDataModule, tests: TestRows, config: TrainConfig | EvalConfig) -> bool:
    """Whether the frozen backbone will have to answer: it is asked for, and its answers are not known."""
    if not config.evaluation.baseline_frozen:
        return False
    path = frozen_cache(backbone, data, tests, config).path
    return path is None or not path.is_file()


def answer_frozen(
    backbone: Backbone,
    data: MMTDataModule,
    tests: TestRows,
    config: TrainConfig | EvalConfig,
    show_progress: bool,
    folder: Path,
) -> list[str | None] | None:
    """The frozen backbone's answer to each row, by likelihood over the allowed answers where a task has a closed set;
    None where evaluation.baseline_frozen asks for none.

    Read from ``cache_dir`` where it has them. In ``folder``, the run's, answers are kept as they come.
    """
    if not config.evaluation.baseline_frozen:
        return None
    cache = frozen_cache(backbone, data, tests, config)
    path = cache.path if processes.is_main() else None
    known = processes.from_main(_known(path, tests.rows) if path is not None else None)
    if known is not None:
        log.info("frozen backbone: %d answers from %s", len(known), cache.path)
        return [known[row.id] for row in tests.rows]
    if path is not None and not _writable(path.parent):
        path = None
    journal = Journal(folder, "frozen", f"{cache.key} {config.evaluation.batch_size}")
    with ProgressDisplay("frozen backbone", len(tests.rows), show_progress and processes.is_main()) as display:
        answers = answer_rows(
            backbone.model, data.collator, tests.rows, tests.allowed, config.evaluation,
            mode="likelihood", progress=display.advance, journal=journal,
        )  # fmt: skip
    journal.close()
    if path is not None:
        by_row = {row.id: answer for row, answer in zip(tests.rows, answers, strict=True)}
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
