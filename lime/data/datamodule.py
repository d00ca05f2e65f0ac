"""From a data root to loaders: training and validation rows, test rows per split, and what was left out and why."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader
from transformers import ProcessorMixin

from lime.data.collate import OverlongError, model_inputs, overlong_message
from lime.data.collate_processor import ProcessorCollator
from lime.data.collators import make_collator
from lime.data.config import DataConfig
from lime.data.datasets import open_dataset
from lime.data.media import MediaError, media_file
from lime.data.mixing import Mixture, chosen_rows, mixture_of, rows_of_an_epoch
from lime.data.rows import DataError, Row, Rows, content_hash
from lime.data.sampler import LengthBucketSampler, ResumableLoader
from lime.data.shared_memory import check_room
from lime.processors.text import TextProcessor
from lime.system import interrupts

log = logging.getLogger(__name__)

_SHOWN = 5


@dataclass
class LeftOut:
    """Ids of the rows left out of each part ("train", "validation" or a test split), by reason."""

    missing_media: dict[str, list[str]] = field(default_factory=dict)
    overlong: dict[str, list[str]] = field(default_factory=dict)

    def counts(self) -> dict[str, dict[str, int]]:
        """{reason: {part: number of rows}}, only where there are any."""
        return {
            reason: {part: len(ids) for part, ids in parts.items() if ids}
            for reason, parts in (("missing_media", self.missing_media), ("overlong", self.overlong))
        }


class MMTDataModule(LightningDataModule):
    """The data of a run.

    `dataset` the opened root; `collator` what turns rows into batches, for training and evaluation alike;
    `left_out` the rows that could not be used. `setup` prepares the training and validation rows;
    `test_rows(split)` gives the usable rows of a test split.

    `least_rows`: training rows are repeated until an epoch has so many.

    `mixture` says what an epoch draws of the training rows where not each once, `epoch_rows` how many of each task (of
    each modality, where tasks are not known).

    `one_modality`: training batches are of one modality each, and of the same one in all processes at a step.

    Training batches hold rows of like length (visual tokens counted) in a seeded order; its state is part of
    the checkpoint, so a resumed run sees exactly the rows that an uninterrupted one would. Validation rows
    are a part of the training rows, chosen by a hash of question and media: never test rows, the same for
    every seed.

    With `on_missing_media="error"` missing files are errors at once and damaged ones when they are first
    read; with "skip" every file is read once beforehand, so that the count is known before training begins.
    """

    def __init__(
        self,
        data: DataConfig,
        *,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        processor: ProcessorMixin | TextProcessor,
        family: str,
    ) -> None:
        super().__init__()
        self.config, self.seed = data, seed
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.dataset = open_dataset(data)
        self.collator = make_collator(data, processor, family)
        self.one_modality = False
        self.least_rows = 0
        self.left_out = LeftOut()
        self.train_rows: list[Row] = []
        self.val_rows: list[Row] = []
        self.train_lengths: list[int] = []
        self.mixture: Mixture | None = None
        self.epoch_rows: dict[str, int] = {}
        self._val_lengths: list[int] = []
        self._test_rows: dict[str, list[Row]] = {}
        self._loader: ResumableLoader | None = None
        self._resume: dict[str, Any] | None = None

    def setup(self, stage: str | None = None) -> None:
        """Splits off the validation rows, and checks media and lengths of both parts. Does its work once."""
        if self.train_rows or stage not in (None, "fit", "validate"):
            return
        train, held_out = self._split(chosen_rows(self.dataset, self.dataset.train, self.config.tasks))
        self.train_rows, self.train_lengths = self._usable("train", train)
        self.val_rows, self._val_lengths = self._usable("validation", held_out)
        if not self.train_rows:
            raise DataError(f"{self.dataset.root}: no usable training row; left out: {self.left_out.counts()}")
        log.info("%d training rows, %d validation rows", len(self.train_rows), len(self.val_rows))
        if (times := -(-self.least_rows // len(self.train_rows))) > 1:
            log.info("each epoch repeats the training rows %d times (data.least_steps)", times)
            self.train_rows, self.train_lengths = self.train_rows * times, self.train_lengths * times
        self.mixture = mixture_of(self.dataset, self.train_rows, self.config.weights, self.config.temperature)
        self.epoch_rows = rows_of_an_epoch(self.dataset, self.train_rows, self.mixture)
        if self.mixture is not None:
            log.info("an epoch draws %s", ", ".join(f"{n} of {name}" for name, n in self.epoch_rows.items()))

    def test_rows(self, split: str) -> list[Row]:
        """The usable rows of a test split. DataError for a split that is not there."""
        if split not in self._test_rows:
            if split not in self.dataset.tests:
                present = ", ".join(self.dataset.tests) or "none"
                raise DataError(f"{self.dataset.root}: no test split {split!r}; present: {present}")
            rows = self.dataset.tests[split].sample(self.config.rows_per_split)
            self._test_rows[split] = self._usable(split, rows)[0]
        return self._test_rows[split]

    def train_dataloader(self) -> ResumableLoader:
        """Length-bucketed training batches; goes on where a loaded checkpoint stood."""
        self.setup("fit")
        sampler = self.sampler()
        if self.config.num_workers:  # the heaviest batch: its rows have the most tokens, visual ones included
            order = sorted(range(len(self.train_rows)), key=lambda i: -self.train_lengths[i])[: self.batch_size]
            kind = self.train_rows[order[0]].source_type
            rows = [row for i in order if (row := self.train_rows[i]).source_type == kind]
            check_room(self.collator.training_batch(rows), self.config.num_workers, self.config.prefetch)
        loader = ResumableLoader(self.train_rows, sampler, ahead=self.config.prefetch, **self._options())
        loader.limit = self._train_limit
        if self._resume is not None:
            loader.load_state_dict(self._resume)
            self._resume = None
        self._loader = loader
        return loader

    def sampler(self) -> LengthBucketSampler:
        """The order of the training rows in this process."""
        rank, replicas = 0, 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, replicas = torch.distributed.get_rank(), torch.distributed.get_world_size()
        kinds = [row.source_type for row in self.train_rows] if self.one_modality else None
        return LengthBucketSampler(
            self.train_lengths,
            self.batch_size,
            self.seed,
            rank=rank,
            replicas=replicas,
            kinds=kinds,
            mixture=self.mixture,
        )

    def sample_batches(self, rows: int = 100) -> Iterator[dict[str, Any]]:
        """Arguments of a model for so many training rows, evenly spaced: the same in every process and every run."""
        self.setup("fit")
        known, count = self.train_rows, min(rows, len(self.train_rows))
        chosen = [i * len(known) // count for i in range(count)]
        by_kind: dict[str, list[int]] = {}
        for i in sorted(chosen, key=lambda i: self.train_lengths[i]):
            by_kind.setdefault(known[i].source_type if self.one_modality else "", []).append(i)
        for order in by_kind.values():
            for first in range(0, len(order), self.batch_size):
                part = [known[i] for i in order[first : first + self.batch_size]]
                inputs = model_inputs(self.collator.training_batch(part))
                given = {key: value for key, value in inputs.items() if key != "labels"}
                yield {**given, "logits_to_keep": 1, "use_cache": False}

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation batches with labels, rows of like length together, the same in every run."""
        self.setup("validate")
        order = sorted(range(len(self.val_rows)), key=lambda i: (self._val_lengths[i], i))
        batches = [order[i : i + self.eval_batch_size] for i in range(0, len(order), self.eval_batch_size)]
        options = {**self._options(), "generator": torch.Generator()}  # leaves torch's global generator alone
        return DataLoader(self.val_rows, batch_sampler=batches, **options)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Where the training order stands (part of a Lightning checkpoint)."""
        return {} if self._loader is None else {"train_loader": self._loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the training order of a checkpoint."""
        state = state_dict.get("train_loader")
        if state is None:
            return
        if self._loader is not None:
            self._loader.load_state_dict(state)
        else:
            self._resume = state

    def _train_limit(self) -> float | None:
        return self.trainer.num_training_batches if self.trainer is not None else None

    def _options(self) -> dict[str, Any]:
        workers = self.config.num_workers
        return {
            "collate_fn": self.collator.training_batch,
            "num_workers": workers,
            "worker_init_fn": interrupts.worker_process if workers else None,
            "persistent_workers": workers > 0,
            "prefetch_factor": self.config.prefetch if workers else None,
            "pin_memory": torch.cuda.is_available(),
        }

    def _split(self, rows: Rows) -> tuple[Rows, Rows]:
        """Training and validation rows. `train_rows` bounds the first, and the second in proportion."""
        fraction, limit = self.config.validation_fraction, self.config.train_rows
        if self.dataset.validation is not None:
            return rows.sample(limit), chosen_rows(self.dataset, self.dataset.validation, self.config.tasks)
        held = [content_hash(row) < fraction * 2**64 for row in rows]
        train = rows.take([i for i, out in enumerate(held) if not out]).sample(limit)
        validation = rows.take([i for i, out in enumerate(held) if out])
        if limit is not None and fraction > 0:
            validation = validation.sample(max(1, round(limit * fraction / (1 - fraction))))
        if fraction > 0 and not len(validation):
            log.warning("data.validation_fraction=%g of %d rows gives no validation row", fraction, len(rows))
        return train, validation

    def _usable(self, part: str, rows: Sequence[Row]) -> tuple[list[Row], list[int]]:
        """The rows that can be used, with their lengths; the others are errors or counted, as configured."""
        if refused := [row for row in rows if row.source_type not in self.collator.modalities]:
            raise DataError(self._text_alone(part, refused, len(rows)))
        present = self._with_media(part, list(rows))
        lengths = self.collator.lengths(present)
        limit = self.config.max_length
        too_long = {row.id: n for row, n in zip(present, lengths, strict=True) if n > limit}
        if too_long and self.config.on_overlong == "error":
            worst = max(too_long, key=lambda row_id: too_long[row_id])
            text = overlong_message(worst, too_long[worst], limit)
            raise OverlongError(f"{len(too_long)} rows of {part} are too long. The longest: {text}")
        self._note(part, "overlong", self.left_out.overlong, list(too_long), len(rows))
        usable = [(row, n) for row, n in zip(present, lengths, strict=True) if n <= limit]
        return [row for row, _ in usable], [n for _, n in usable]

    def _with_media(self, part: str, rows: list[Row]) -> list[Row]:
        if self.config.on_missing_media == "error":
            problems = [_media_error(self._find, row) for row in rows]
        else:
            with ThreadPoolExecutor() as pool:
                problems = list(pool.map(functools.partial(_media_error, self.collator.media), rows))
            if isinstance(self.collator, ProcessorCollator):  # has its processor see a picture only when it counts
                see = self.collator.visual_tokens
                problems = [problem or _media_error(see, row) for problem, row in zip(problems, rows, strict=True)]
        bad = {row.id: problem for row, problem in zip(rows, problems, strict=True) if problem is not None}
        if bad and self.config.on_missing_media == "error":
            first = next(iter(bad.values()))
            raise MediaError(
                first.path,
                f"{first.problem} ({len(bad)} of {len(rows)} rows of {part} lack their media; "
                "fetch them or set data.on_missing_media=skip)",
                first.row_id,
            )
        self._note(part, "missing_media", self.left_out.missing_media, list(bad), len(rows))
        for problem in list(bad.values())[:_SHOWN]:
            log.warning("left out: %s", problem)
        return [row for row in rows if row.id not in bad]

    def _text_alone(self, part: str, refused: Sequence[Row], total: int) -> str:
        table = self.dataset.table.tasks
        names = [task.name for split, task in table.items() if task.modality == "text" and split in self.dataset.tests]
        return (
            f"{self.dataset.root}: {len(refused)} of {total} rows of {part} show pictures or clips (the first is "
            f"{refused[0].id}), and this model takes text alone. Choose rows and tasks of text, "
            f"data.tasks=[text] evaluation.splits=[{','.join(names)}], or take a vision-language model"
        )

    def _find(self, row: Row) -> None:
        for path in row.media_paths:
            media_file(self.dataset.root, path, row.id)

    def _note(self, part: str, reason: str, where: dict[str, list[str]], ids: list[str], total: int) -> None:
        where[part] = ids
        if ids:
            shown = ", ".join(ids[:_SHOWN]) + (", …" if len(ids) > _SHOWN else "")
            log.warning("%s: %d of %d rows left out (%s): %s", part, len(ids), total, reason, shown)


def _media_error(read: Callable[[Row], object], row: Row) -> MediaError | None:
    """What `read` says of a row's media, where they cannot be used."""
    try:
        read(row)
    except MediaError as error:
        return error
    return None
