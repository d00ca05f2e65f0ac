"""Batches of mixed text, image and video rows: padded tokens, labels on the answers, visual inputs.

Shapes: `input_ids`, `attention_mask`, `labels` (and `mm_token_type_ids` for Qwen2-VL) are (B, T) int64.
Visual inputs are those of the family (see lime/processors/visual.py), images and clips each in the order of their
rows. "rows" holds the rows themselves; `model_inputs` leaves them out. Training and scoring batches are
padded right, prompts left.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from transformers import ProcessorMixin

from lime.data.conversation import Conversation, repeats
from lime.data.media import (
    BOUNDS,
    Bounds,
    MediaError,
    image_size,
    load_image,
    load_video,
    media_file,
    video_seconds,
    video_size,
)
from lime.data.media.frame_cache import FrameCache
from lime.data.rows import DataError, Row
from lime.data.tasks import MODALITIES
from lime.processors.text import TextProcessor
from lime.processors.visual import Visual, VisualEncoder

IGNORED = -100
"""Label of positions that carry no loss."""

Batch = dict[str, Any]
M = TypeVar("M")


class OverlongError(ValueError):
    """A row that does not fit `max_length`; the message names it and its length."""


class BatchRows:
    """The rows of a batch. Not a sequence, so that tools that move batches between devices leave it alone."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]


@contextmanager
def refusals(path: Path, row: Row) -> Iterator[None]:
    """Turns what a processor says of a picture whose size or shape it does not take into a MediaError."""
    try:
        yield
    except (ValueError, ZeroDivisionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise MediaError(path, f"the model's processor refuses it ({reason})", row.id) from error


def model_inputs(batch: Batch) -> dict[str, torch.Tensor]:
    """The batch without what the model does not take."""
    return {key: value for key, value in batch.items() if key != "rows"}


def overlong_message(row_id: str, length: int, max_length: int) -> str:
    """What to say of a row that is too long."""
    return (
        f"row {row_id}: {length} tokens with its visual placeholders, more than data.max_length={max_length}; "
        "raise the limit, lower the image or video budget, or set data.on_overlong=drop"
    )


class BaseCollator(ABC, Generic[M]):
    """Turns rows into batches for one processor and data root, and keeps the media of rows it has seen in memory.

    `max_length` bounds prompt, visual placeholders and answer together: a longer row raises OverlongError,
    nothing is ever truncated. `cache_mb` bounds the media kept: once full, no more is added (rows come in
    another order each epoch, so evicting would only turn hits into misses). Missing and damaged media raise
    MediaError. `train_on`: of rows of several turns, label the `last` answer or `all`. `modalities`: the kinds of
    rows that it takes.
    """

    modalities: tuple[str, ...] = MODALITIES

    def __init__(
        self,
        processor: ProcessorMixin | TextProcessor,
        family: str,
        root: str | Path,
        conversation: Conversation,
        *,
        max_length: int = 2048,
        video_backend: str = "pyav",
        cache_mb: int = 512,
        bounds: Bounds = BOUNDS,
        train_on: str = "last",
    ) -> None:
        self.processor: Any = processor
        self.family, self.root, self.conversation = family, Path(root), conversation
        self.max_length, self.video_backend, self.bounds = max_length, video_backend, bounds
        self.end_token_id = conversation.end_token_id
        pad = self.processor.tokenizer.pad_token_id
        self.pad_token_id = int(pad) if pad is not None else self.end_token_id
        self.train_on = train_on
        self._answers: dict[tuple[str, str], np.ndarray] = {}
        self._media: dict[str, M] = {}
        self._room = cache_mb * 2**20

    def training_batch(self, rows: Sequence[Row]) -> Batch:
        """Right-padded prompts with their answers; labels on the answers and their end tokens only."""
        return self._batch(rows, self._own_answers(rows), earlier=self.train_on == "all")

    def continuation_batch(self, pairs: Sequence[tuple[Row, str]]) -> Batch:
        """As `training_batch`, with the given answers in place of the rows' own: for scoring them by likelihood."""
        rows = [row for row, _ in pairs]
        return self._batch(rows, self.conversation.answers(rows, [answer for _, answer in pairs]))

    def prompt_batch(self, rows: Sequence[Row]) -> Batch:
        """Left-padded prompts without answers, ready for `generate`."""
        return self._batch(rows, None)

    def prompt_length(self, row: Row) -> int:
        """Tokens of a row's prompt, visual placeholders included. Reads at most the header of its media."""
        return self._text_lengths([row])[0] + self.visual_tokens(row)

    def lengths(self, rows: Sequence[Row]) -> list[int]:
        """Tokens of each row with its answer, visual placeholders included. Reads at most the headers of media."""
        parts = zip(self._text_lengths(rows), self._own_answers(rows), rows, strict=True)
        return [text + len(answer) + self.visual_tokens(row) for text, answer, row in parts]

    def parts(self, row: Row) -> tuple[int, int, int]:
        """Tokens of a row with its answer, and of these the visual placeholders and the answer's.

        Reads at most the header of its media.
        """
        visual, answer = self.visual_tokens(row), len(self._own_answers([row])[0])
        return self._text_lengths([row])[0] + visual + answer, visual, answer

    def media_growth(self, rows: Sequence[Row]) -> int:
        """Bytes by which the media kept in memory will grow when all of these rows are read.

        Judged by the media of each kind that are kept already.
        """
        total = 0
        for kind in ("image", "video"):
            paths = (path for row in rows if row.source_type == kind for path in row.media_paths)
            absent = {self._key(kind, path) for path in paths} - self._media.keys()
            sizes = [self._size(media) for key, media in self._media.items() if key.startswith(f"{kind}:")]
            total += round(len(absent) * float(np.mean(sizes))) if sizes else 0
        return min(total, self._room)

    def media(self, row: Row) -> list[M]:
        """The row's images or clip as batches take them (none for a text row). MediaError naming file and row."""
        return [self._medium(row, path) for path in row.media_paths]

    def _medium(self, row: Row, media_path: str) -> M:
        key = self._key(row.source_type, media_path)
        if key in self._media:
            return self._media[key]
        path = media_file(self.root, media_path, row.id)
        with refusals(path, row):
            media = self._read(path, row)
        if (size := self._size(media)) <= self._room:
            self._room -= size
            self._media[key] = media
        return media

    @abstractmethod
    def visual_tokens(self, row: Row) -> int:
        """Tokens that the row's media take in its prompt; 0 for a text row."""

    @abstractmethod
    def _text_lengths(self, rows: Sequence[Row]) -> list[int]:
        """Tokens of each row's prompt without those of its media."""

    @abstractmethod
    def _read(self, path: Path, row: Row) -> M: ...

    @abstractmethod
    def _size(self, media: M) -> int:
        """Bytes in memory."""

    @abstractmethod
    def _batch(self, rows: Sequence[Row], answers: Sequence[np.ndarray] | None, earlier: bool = False) -> Batch:
        """Prompts padded left, or with their answers, padded right and labelled, where `earlier` in every turn."""

    def _key(self, kind: str, media_path: str) -> str:
        return f"{kind}:{self.root / media_path}"

    def _own_answers(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """Tokens of the rows' answers, each tokenised once."""
        unseen = [row for row in rows if (row.id, row.answer) not in self._answers]
        for row, ids in zip(unseen, self.conversation.answers(unseen), strict=True):
            self._answers[row.id, row.answer] = ids
        return [self._answers[row.id, row.answer] for row in rows]

    def _check_length(self, rows: Sequence[Row], lengths: Sequence[int]) -> int:
        """The longest of a batch's rows; OverlongError where it exceeds `max_length`."""
        longest = max(lengths)
        if longest > self.max_length:
            raise OverlongError(overlong_message(rows[lengths.index(longest)].id, longest, self.max_length))
        return longest


class Collator(BaseCollator[Visual]):
    """Batches for the families of this package; keeps tokens and resized media of rows it has seen in memory.

    `frame_cache` keeps the resized frames of clips on disk; it changes nothing but the time. See `BaseCollator`.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        family: str,
        root: str | Path,
        *,
        system_prompt: str | None = None,
        frame_cache: FrameCache | None = None,
        **limits: Any,
    ) -> None:
        super().__init__(processor, family, root, Conversation(processor, system_prompt), **limits)
        self.visual = VisualEncoder(processor)
        self._with_types = "mm_token_type_ids" in processor.model_input_names
        self._prompts: dict[str, np.ndarray] = {}
        self._frames = frame_cache
        self._sampling = f"{self.video_backend} {self.bounds} {self.visual.video_sampling()}"

    def visual_tokens(self, row: Row) -> int:
        return sum(self._visual_tokens(row, media_path) for media_path in row.media_paths)

    def _visual_tokens(self, row: Row, media_path: str) -> int:
        if (kept := self._media.get(self._key(row.source_type, media_path))) is not None:
            return kept.tokens
        if row.source_type == "video" and not self.visual.patched:
            return self.visual.video_tokens(1, 1)  # LLaVA-OneVision pools every clip to the same number of tokens
        path = media_file(self.root, media_path, row.id)
        with refusals(path, row):
            if row.source_type == "image":
                return self.visual.image_tokens(*image_size(path, row.id, self.bounds))
            frames = self._frames_of(path, row)[0]
            return self.visual.video_tokens(*video_size(path, row.id, self.bounds), frames)

    def _frames_of(self, path: Path, row: Row) -> tuple[int, float | None]:
        """How many frames of a clip are read, and its seconds where that depends on them."""
        videos = self.visual.videos
        if videos.fps is None:
            return videos.num_frames, None
        seconds = video_seconds(path, row.id, self.bounds)
        return videos.frames_of(seconds), seconds

    def _text_lengths(self, rows: Sequence[Row]) -> list[int]:
        return [len(ids) - len(row.media_paths) for ids, row in zip(self._tokens(rows), rows, strict=True)]

    def _size(self, media: Visual) -> int:
        return media.values.nbytes

    def _read(self, path: Path, row: Row) -> Visual:
        """A row's picture or clip, resized; a clip from the disk if it is kept there, else decoded (and then kept)."""
        if row.source_type == "image":
            return self.visual.encode_image(load_image(path, row.id, self.bounds))
        if self._frames is not None:
            try:
                key = self._frames.key(path, self._sampling)
            except OSError as error:
                raise MediaError(path, f"not readable ({error.strerror})", row.id, "unreadable") from error
            if (entry := self._frames.get(key)) is not None:
                values, notes = entry
                return self.visual.restored_video(values, notes["size"], notes["grid"], notes.get("seconds"))
        count, seconds = self._frames_of(path, row)
        rule = self.visual.videos.index_rule
        frames = load_video(path, count, self.video_backend, row.id, self.bounds, rule)
        clip = self.visual.encode_video(frames, seconds)
        if self._frames is not None:
            timed = {} if seconds is None else {"seconds": clip.seconds}
            self._frames.put(key, clip.values, {"size": clip.size, "grid": clip.grid, **timed})
        return clip

    def _tokens(self, rows: Sequence[Row]) -> list[np.ndarray]:
        unseen = [row for row in rows if row.id not in self._prompts]
        for row, ids in zip(unseen, self.conversation.prompts(unseen), strict=True):
            self._prompts[row.id] = ids
        return [self._prompts[row.id] for row in rows]

    def _batch(self, rows: Sequence[Row], answers: Sequence[np.ndarray] | None, earlier: bool = False) -> Batch:
        visuals = [self.media(row) for row in rows]
        kinds = self.conversation.placeholders
        times = [
            repeats(ids, kinds.get(row.source_type, IGNORED), [one.tokens for one in own])
            for row, ids, own in zip(rows, self._tokens(rows), visuals, strict=True)
        ]
        tokens = [np.repeat(ids, often) for ids, often in zip(self._tokens(rows), times, strict=True)]
        if answers is not None:
            tokens = [np.concatenate([prompt, answer]) for prompt, answer in zip(tokens, answers, strict=True)]
        longest = self._check_length(rows, [len(ids) for ids in tokens])
        shape = (len(rows), longest)
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        for i, ids in enumerate(tokens):
            place = slice(longest - len(ids), longest) if answers is None else slice(0, len(ids))
            input_ids[i, place] = ids
            mask[i, place] = 1
            if answers is not None:
                answer = slice(len(ids) - len(answers[i]), len(ids))
                labels[i, answer] = ids[answer]
            if earlier and rows[i].turns:
                said = np.repeat(self.conversation.turn_tokens(rows[i])[1], times[i])
                labels[i, : len(said)][said] = ids[: len(said)][said]
        batch: Batch = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask)}
        if answers is not None:
            batch["labels"] = torch.from_numpy(labels)
        if self._with_types:
            types = (input_ids == kinds["image"]) + 2 * (input_ids == kinds["video"])
            batch["mm_token_type_ids"] = torch.from_numpy(types.astype(np.int64) * mask)
        images, videos = (
            [one for row, own in zip(rows, visuals, strict=True) if row.source_type == kind for one in own]
            for kind in ("image", "video")
        )
        if images or videos:
            batch.update(self.visual.inputs(images, videos))
        batch["rows"] = BatchRows(rows)
        return batch


class TextCollator(Collator):
    """Batches of text rows for a language model that takes nothing else."""

    modalities = ("text",)

    def __init__(
        self,
        processor: TextProcessor,
        family: str,
        root: str | Path,
        *,
        system_prompt: str | None = None,
        **limits: Any,
    ) -> None:
        conversation = Conversation(processor, system_prompt, self.modalities)
        BaseCollator.__init__(self, processor, family, root, conversation, **limits)
        self._with_types = False
        self._prompts = {}

    def visual_tokens(self, row: Row) -> int:
        if row.source_type != "text":
            raise DataError(f"row {row.id} shows a picture or a clip, and this model takes text alone")
        return 0

    def _tokens(self, rows: Sequence[Row]) -> list[np.ndarray]:
        for row in rows:
            self.visual_tokens(row)
        return super()._tokens(rows)
