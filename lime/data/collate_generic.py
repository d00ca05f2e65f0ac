"""Batches for models that are seen through transformers' own processor: one modality each, nothing known of its layout.

The processor turns prompts and pictures into tokens and visual inputs; answers are appended to its tokens here, so that
their span is known by construction. Everything it returns in the shape of the tokens is padded as they are, everything
else goes to the model as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from lime.data.collate import IGNORED, Batch, BatchRows, OverlongError, overlong_message, refusals
from lime.data.conversation import Conversation
from lime.data.media import BOUNDS, Bounds, MediaError, image_size, load_image, load_video, media_file, video_size
from lime.data.rows import Row
from lime.processors.generic import check_images


class ImagesConversation(Conversation):
    """A conversation in which a video is `num_frames` pictures."""

    def __init__(self, processor: Any, system_prompt: str | None, num_frames: int) -> None:
        self.num_frames = num_frames
        super().__init__(processor, system_prompt)

    def media(self, kind: str) -> list[str]:
        """What is shown before the question of such a row: kinds of parts, in order."""
        return ["image"] * self.num_frames if kind == "video" else super().media(kind)


class ProcessorCollator:
    """Batches by a processor from `lime.processors.generic.load_other_processor`; the interface of `Collator`.

    The rows of a batch are of one modality. `cache_mb` bounds the decoded pictures kept in memory.

    Raises ValueError where the processor does not take pictures.
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
    ) -> None:
        self.processor: Any = processor
        self.family, self.root = family, Path(root)
        self.max_length, self.video_backend, self.bounds = max_length, video_backend, bounds
        self.num_frames = int(self.processor.video_processor.num_frames)
        self.conversation = ImagesConversation(processor, system_prompt, self.num_frames)
        self.end_token_id = self.conversation.end_token_id
        pad = self.processor.tokenizer.pad_token_id
        self.pad_token_id = int(pad) if pad is not None else self.end_token_id
        if pad is None:
            self.processor.tokenizer.pad_token_id = self.pad_token_id
        self._room = cache_mb * 2**20
        self._pictures: dict[str, list[Image.Image]] = {}
        self._visual: dict[tuple[str, int, int], int] = {}
        check_images(self.processor, self._probe("image"))

    def training_batch(self, rows: Sequence[Row]) -> Batch:
        """Right-padded prompts with their answers; labels on the answers and their end tokens only."""
        return self._batch(rows, self.conversation.answers(rows))

    def continuation_batch(self, pairs: Sequence[tuple[Row, str]]) -> Batch:
        """As `training_batch`, with the given answers in place of the rows' own."""
        rows = [row for row, _ in pairs]
        return self._batch(rows, self.conversation.answers(rows, [answer for _, answer in pairs]))

    def prompt_batch(self, rows: Sequence[Row]) -> Batch:
        """Left-padded prompts without answers, ready for `generate`."""
        return self._batch(rows, None)

    def prompt_length(self, row: Row) -> int:
        """Tokens of a row's prompt with its pictures. Reads at most the header of its media."""
        return len(self._text_tokens([row])[0]) + self.visual_tokens(row)

    def lengths(self, rows: Sequence[Row]) -> list[int]:
        """Tokens of each row with its answer and pictures. Reads at most the headers of media."""
        parts = zip(self._text_tokens(rows), self.conversation.answers(rows), rows, strict=True)
        return [len(text) + len(answer) + self.visual_tokens(row) for text, answer, row in parts]

    def parts(self, row: Row) -> tuple[int, int, int]:
        """Tokens of a row with its answer, and of these those that its pictures add and the answer's."""
        visual, answer = self.visual_tokens(row), len(self.conversation.answers([row])[0])
        return len(self._text_tokens([row])[0]) + visual + answer, visual, answer

    def media_growth(self, rows: Sequence[Row]) -> int:
        """Bytes by which the pictures kept in memory grow when all of these rows are read, judged by those kept."""
        total = 0
        for kind in ("image", "video"):
            keys = {f"{kind}:{row.media_path}" for row in rows if row.source_type == kind}
            kept = [
                sum(3 * p.width * p.height for p in pictures)
                for key, pictures in self._pictures.items()
                if key.startswith(f"{kind}:")
            ]
            total += len(keys - self._pictures.keys()) * sum(kept) // max(len(kept), 1)
        return min(total, self._room)

    def media(self, row: Row) -> list[Image.Image] | None:
        """The row's pictures: one, or the frames of its clip (None for a text row). Raises MediaError."""
        if row.source_type == "text":
            return None
        key = f"{row.source_type}:{row.media_path}"
        if (kept := self._pictures.get(key)) is not None:
            return kept
        path = media_file(self.root, row.media_path, row.id)
        if row.source_type == "image":
            pictures = [load_image(path, row.id, self.bounds)]
        else:
            frames = load_video(path, self.num_frames, self.video_backend, row.id, self.bounds)
            pictures = [Image.fromarray(frame) for frame in frames]
        size = sum(3 * picture.width * picture.height for picture in pictures)
        if size <= self._room:
            self._room -= size
            self._pictures[key] = pictures
        return pictures

    def _text_tokens(self, rows: Sequence[Row]) -> list[list[int]]:
        return self.conversation._encode([self.conversation.prompt(row) for row in rows])

    def _probe(self, kind: str) -> str:
        before, after = self.conversation._frames[kind]
        return f"{before}?{after}"

    def visual_tokens(self, row: Row) -> int:
        """Tokens that the row's pictures add to those of its text; found by trying a blank one of the same size."""
        if row.source_type == "text":
            return 0
        path = media_file(self.root, row.media_path, row.id)
        height, width = (image_size if row.source_type == "image" else video_size)(path, row.id, self.bounds)
        key = (row.source_type, height, width)
        if key not in self._visual:
            text = self._probe(row.source_type)
            blank = [Image.new("RGB", (width, height))] * (1 if row.source_type == "image" else self.num_frames)
            with refusals(path, row):
                ids = self._process([text], [blank])["input_ids"][0]
            self._visual[key] = len(ids) - len(self.conversation._encode([text])[0])
        return self._visual[key]

    def _process(self, texts: list[str], pictures: list[list[Image.Image]] | None) -> dict[str, Tensor]:
        options: dict[str, Any] = {"padding": True, "add_special_tokens": False, "return_tensors": "pt"}
        if pictures is not None:
            options["images"] = pictures
        return dict(self.processor(text=texts, **options))

    def _batch(self, rows: Sequence[Row], answers: Sequence[np.ndarray] | None) -> Batch:
        kinds = {row.source_type for row in rows}
        if len(kinds) != 1:
            raise ValueError(f"a batch of {', '.join(sorted(kinds))} rows; this model takes one modality at a time")
        pictures = [self.media(row) or [] for row in rows] if kinds != {"text"} else None
        prompts = [self.conversation.prompt(row) for row in rows]
        try:
            made = self._process(prompts, pictures)
        except ValueError as error:
            for row, prompt, own in zip(rows, prompts, pictures or [], strict=False):  # which of them is it?
                with refusals(self.root / row.media_path, row):
                    self._process([prompt], [own])
            path = self.root / rows[0].media_path
            raise MediaError(path, f"the model's processor refuses it beside others: {error}", rows[0].id) from error
        mask = made.pop("attention_mask").bool()
        shape = mask.shape
        per_token = {key: value for key, value in made.items() if value.shape == shape}
        batch: Batch = {key: value for key, value in made.items() if key not in per_token}
        lengths = [int(real.sum()) + (len(answers[i]) if answers is not None else 0) for i, real in enumerate(mask)]
        longest = max(lengths)
        if longest > self.max_length:
            row = rows[lengths.index(longest)]
            raise OverlongError(overlong_message(row.id, longest, self.max_length))
        size = (len(rows), longest)
        out = {key: torch.zeros(size, dtype=value.dtype) for key, value in per_token.items()}
        out["input_ids"].fill_(self.pad_token_id)
        out["attention_mask"] = torch.zeros(size, dtype=torch.int64)
        labels = torch.full(size, IGNORED, dtype=torch.int64)
        for i, length in enumerate(lengths):
            answer = torch.from_numpy(np.asarray(answers[i], dtype=np.int64)) if answers is not None else None
            start = 0 if answers is not None else longest - length
            end = start + int(mask[i].sum())
            for key, value in per_token.items():
                out[key][i, start:end] = value[i][mask[i]]
            out["attention_mask"][i, start : start + length] = 1
            if answer is not None:
                out["input_ids"][i, end : start + length] = answer
                labels[i, end : start + length] = answer
        batch.update(out)
        if answers is not None:
            batch["labels"] = labels
        batch["rows"] = BatchRows(rows)
        return batch
