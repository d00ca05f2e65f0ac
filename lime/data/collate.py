"""Batches of mixed text, image and video rows: padded tokens, labels on the answers, visual inputs.

Shapes: `input_ids`, `attention_mask`, `labels` (and `mm_token_type_ids` for Qwen2-VL) are (B, T) int64.
Visual inputs are those of the family (see lime/processors/visual.py), images and clips each in the order of their
rows. "rows" holds the rows themselves; `model_inputs` leaves them out. Training and scoring batches are
padded right, prompts left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin

from lime.data.cache import FrameCache
from lime.data.conversation import Conversation, expand
from lime.data.media import BOUNDS, Bounds, MediaError, image_size, load_image, load_video, media_file, video_size
from lime.data.rows import Row
from lime.processors.visual import Visual, VisualEncoder

IGNORED = -100
Batch = dict[str, Any]


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
        said = str(error).strip().partition("\n")[0]
        raise MediaError(path, f"the model's processor refuses it ({said})", row.id) from error


def model_inputs(batch: Batch) -> dict[str, torch.Tensor]:
    """The batch without what the model does not take."""
    return {key: value for key, value in batch.items() if key != "rows"}


class Collator:
    """Builds batches for one processor and data root; keeps tokens and resized media of rows it has seen
    in memory.

    `max_length` bounds prompt, visual placeholders and answer together: a longer row raises OverlongError,
    nothing is ever truncated. `cache_mb` bounds the media kept: once full, no more is added (rows come in
    another order each epoch, so evicting would only turn hits into misses). Missing and damaged media raise
    MediaError. `frame_cache` keeps the resized frames of clips on disk; it changes nothing but the time.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        family: str,
        root: str | Path,
        *,
        max_length: int = 2048,
        system_prompt: str | None = None,
        video_backend: str = "pyav",
        cache_mb: int = 512,
        bounds: Bounds = BOUNDS,
        frame_cache: FrameCache | None = None,
    ) -> None:
        self.processor, self.family, self.root = processor, family, Path(root)
        self.max_length, self.video_backend, self.bounds = max_length, video_backend, bounds
        self.conversation = Conversation(processor, system_prompt)
        self.visual = VisualEncoder(processor)
        self.end_token_id = self.conversation.end_token_id
        pad = processor.tokenizer.pad_token_id
        self.pad_token_id = int(pad) if pad is not None else self.end_token_id
        self._with_types = "mm_token_type_ids" in processor.model_input_names
        self._prompts: dict[str, np.ndarray] = {}
        self._answers: dict[tuple[str, str], np.ndarray] = {}
        self._media: dict[str, Visual] = {}
        self._frames = frame_cache
        self._sampling = f"{video_backend} {bounds} {self.visual.video_sampling()}"
        self._room = cache_mb * 2**20

    # Batches

    def training_batch(self, rows: Sequence[Row]) -> Batch:
        """Right-padded prompts with their answers; labels on the answers and their end tokens only."""
        return self._labelled(rows, self._own_answers(rows))

    def continuation_batch(self, pairs: Sequence[tuple[Row, str]]) -> Batch:
        """As `training_batch`, with the given answers in place of the rows' own: for scoring them by
        likelihood.
        """
        rows = [row for row, _ in pairs]
        return self._labelled(rows, self.conversation.answers(rows, [answer for _, answer in pairs]))

    def prompt_batch(self, rows: Sequence[Row]) -> Batch:
        """Left-padded prompts without answers, ready for `generate`."""
        visuals = [self.media(row) for row in rows]
        return self._batch(rows, self._expanded(rows, visuals), None, visuals, left=True)

    # Lengths

    def prompt_length(self, row: Row) -> int:
        """Tokens of a row's prompt, visual placeholders included. Reads at most the header of its media."""
        return self._prompt_lengths([row])[0]

    def lengths(self, rows: Sequence[Row]) -> list[int]:
        """Tokens of each row with its answer, visual placeholders included. Reads at most the headers of
        media.
        """
        answers = self._own_answers(rows)
        return [n + len(a) for n, a in zip(self._prompt_lengths(rows), answers, strict=True)]

    def parts(self, row: Row) -> tuple[int, int, int]:
        """Tokens of a row with its answer, and of these the visual placeholders and the answer's.

        Reads at most the header of its media.
        """
        visual = self._visual_tokens(row) if row.source_type != "text" else 0
        answer = len(self._own_answers([row])[0])
        return len(self._tokens([row])[0]) + max(visual - 1, 0) + answer, visual, answer

    def media_growth(self, rows: Sequence[Row]) -> int:
        """Bytes by which the media kept in memory will grow when all of these rows are read.

        Judged by the media of each kind that are kept already.
        """
        total = 0
        for kind in ("image", "video"):
            absent = {
                row.media_path
                for row in rows
                if row.source_type == kind and f"{kind}:{row.media_path}" not in self._media
            }
            kept = [visual.values.nbytes for key, visual in self._media.items() if key.startswith(f"{kind}:")]
            total += round(len(absent) * float(np.mean(kept))) if kept else 0
        return min(total, self._room)

    # Parts

    def media(self, row: Row) -> Visual | None:
        """The row's image or clip, resized (None for a text row). Raises MediaError naming file and row."""
        if row.source_type == "text":
            return None
        key = f"{row.source_type}:{row.media_path}"
        if (kept := self._media.get(key)) is not None:
            return kept
        path = media_file(self.root, row.media_path, row.id)
        with refusals(path, row):
            if row.source_type == "image":
                made = self.visual.encode_image(load_image(path, row.id, self.bounds))
            else:
                made = self._clip(path, row)
        if made.values.nbytes <= self._room:
            self._room -= made.values.nbytes
            self._media[key] = made
        return made

    def _clip(self, path: Path, row: Row) -> Visual:
        """A row's clip, resized: from the disk if it is kept there, else decoded (and then kept)."""
        if self._frames is None:
            return self._decoded(path, row)
        try:
            key = self._frames.key(path, self._sampling)
        except OSError as error:
            raise MediaError(path, f"not readable ({error.strerror})", row.id, "unreadable") from error
        kept = self._frames.get(key)
        if kept is not None:
            values, notes = kept
            return self.visual.restored_video(values, notes["size"], notes["grid"])
        made = self._decoded(path, row)
        self._frames.put(key, made.values, {"size": made.size, "grid": made.grid})
        return made

    def _decoded(self, path: Path, row: Row) -> Visual:
        frames = load_video(path, self.visual.num_frames, self.video_backend, row.id, self.bounds)
        return self.visual.encode_video(frames)

    def _own_answers(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """Tokens of the rows' answers, each tokenised once."""
        unseen = [row for row in rows if (row.id, row.answer) not in self._answers]
        for row, ids in zip(unseen, self.conversation.answers(unseen), strict=True):
            self._answers[row.id, row.answer] = ids
        return [self._answers[row.id, row.answer] for row in rows]

    def _tokens(self, rows: Sequence[Row]) -> list[np.ndarray]:
        unseen = [row for row in rows if row.id not in self._prompts]
        for row, ids in zip(unseen, self.conversation.prompts(unseen), strict=True):
            self._prompts[row.id] = ids
        return [self._prompts[row.id] for row in rows]

    def _prompt_lengths(self, rows: Sequence[Row]) -> list[int]:
        lengths = []
        for row, ids in zip(rows, self._tokens(rows), strict=True):
            lengths.append(len(ids) + (self._visual_tokens(row) - 1 if row.source_type != "text" else 0))
        return lengths

    def _visual_tokens(self, row: Row) -> int:
        kept = self._media.get(f"{row.source_type}:{row.media_path}")
        if kept is not None:
            return kept.tokens
        if row.source_type == "video" and not self.visual.patched:
            return self.visual.video_tokens(1, 1)  # LLaVA-OneVision pools every clip to the same number of tokens
        path = media_file(self.root, row.media_path, row.id)
        with refusals(path, row):
            if row.source_type == "image":
                return self.visual.image_tokens(*image_size(path, row.id, self.bounds))
            return self.visual.video_tokens(*video_size(path, row.id, self.bounds))

    def _expanded(self, rows: Sequence[Row], visuals: Sequence[Visual | None]) -> list[np.ndarray]:
        placeholders = self.conversation.placeholders
        return [
            ids if visual is None else expand(ids, placeholders[row.source_type], visual.tokens)
            for row, ids, visual in zip(rows, self._tokens(rows), visuals, strict=True)
        ]

    def _labelled(self, rows: Sequence[Row], answers: Sequence[np.ndarray]) -> Batch:
        visuals = [self.media(row) for row in rows]
        prompts = self._expanded(rows, visuals)
        tokens = [np.concatenate([p, a]) for p, a in zip(prompts, answers, strict=True)]
        return self._batch(rows, tokens, [len(a) for a in answers], visuals, left=False)

    def _batch(
        self,
        rows: Sequence[Row],
        tokens: Sequence[np.ndarray],
        answer_lengths: Sequence[int] | None,
        visuals: Sequence[Visual | None],
        left: bool,
    ) -> Batch:
        longest = max(len(ids) for ids in tokens)
        if longest > self.max_length:
            row, ids = max(zip(rows, tokens, strict=True), key=lambda pair: len(pair[1]))
            raise OverlongError(overlong_message(row.id, len(ids), self.max_length))
        shape = (len(rows), longest)
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        for i, ids in enumerate(tokens):
            place = slice(longest - len(ids), longest) if left else slice(0, len(ids))
            input_ids[i, place] = ids
            mask[i, place] = 1
            if answer_lengths is not None:
                answer = slice(len(ids) - answer_lengths[i], len(ids))
                labels[i, answer] = ids[answer]
        batch: Batch = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask)}
        if answer_lengths is not None:
            batch["labels"] = torch.from_numpy(labels)
        if self._with_types:
            kinds = self.conversation.placeholders
            types = (input_ids == kinds["image"]) + 2 * (input_ids == kinds["video"])
            batch["mm_token_type_ids"] = torch.from_numpy(types.astype(np.int64) * mask)
        images = [v for row, v in zip(rows, visuals, strict=True) if v is not None and row.source_type == "image"]
        videos = [v for row, v in zip(rows, visuals, strict=True) if v is not None and row.source_type == "video"]
        batch.update(self.visual.inputs(images, videos))
        batch["rows"] = BatchRows(rows)
        return batch


def overlong_message(row_id: str, length: int, max_length: int) -> str:
    """What to say of a row that is too long."""
    return (
        f"row {row_id}: {length} tokens with its visual placeholders, more than data.max_length={max_length}; "
        "raise the limit, lower the image or video budget, or set data.on_overlong=drop"
    )
