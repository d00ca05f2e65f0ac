"""Batches for models that are seen through transformers' own processor: one modality each, nothing known of its layout.

The processor turns prompts and pictures into tokens and visual inputs; answers are appended to its tokens here, so that
their span is known by construction. Everything it returns in the shape of the tokens is padded as they are, everything
else goes to the model as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from lime.data.collate import IGNORED, BaseCollator, Batch, BatchRows, refusals
from lime.data.conversation import Conversation
from lime.data.media import MediaError, image_size, load_image, load_video, media_file, video_size
from lime.data.rows import Row
from lime.processors.automatic import check_images


class ImagesConversation(Conversation):
    """A conversation in which a video is `num_frames` pictures."""

    def __init__(self, processor: Any, system_prompt: str | None, num_frames: int) -> None:
        self.num_frames = num_frames
        super().__init__(processor, system_prompt)

    def media(self, kind: str) -> list[str]:
        """What is shown before the question of such a row: kinds of parts, in order."""
        return ["image"] * self.num_frames if kind == "video" else super().media(kind)


class ProcessorCollator(BaseCollator[list[Image.Image]]):
    """Batches by a processor from `lime.processors.automatic.load_automatic_processor`; the interface of `Collator`.

    The rows of a batch are of one modality. The media of a row are its pictures: one, or the frames of its clip.

    Raises ValueError where the processor does not take pictures.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        family: str,
        root: str | Path,
        *,
        system_prompt: str | None = None,
        **limits: Any,
    ) -> None:
        self.num_frames = int(processor.video_processor.num_frames)
        conversation = ImagesConversation(processor, system_prompt, self.num_frames)
        super().__init__(processor, family, root, conversation, **limits)
        if self.processor.tokenizer.pad_token_id is None:
            self.processor.tokenizer.pad_token_id = self.pad_token_id
        self._visual: dict[tuple[Any, ...], int] = {}
        check_images(self.processor, self._probe("image"))

    def visual_tokens(self, row: Row) -> int:
        """Tokens that the row's pictures add to those of its text; found by trying blank ones of the same sizes."""
        if row.source_type == "text":
            return 0
        path = media_file(self.root, row.media_path, row.id)
        size_of = image_size if row.source_type == "image" else video_size
        sizes = [size_of(media_file(self.root, one, row.id), row.id, self.bounds) for one in row.media_paths]
        key = (row.source_type, *sizes)
        if key not in self._visual:
            text = self._probe(row.source_type) * len(sizes)
            each = 1 if row.source_type == "image" else self.num_frames
            blank = [Image.new("RGB", (width, height)) for height, width in sizes for _ in range(each)]
            with refusals(path, row):
                ids = self._process([text], [blank], row.source_type)["input_ids"][0]
            self._visual[key] = len(ids) - len(self.conversation.encode([text])[0])
        return self._visual[key]

    def _text_lengths(self, rows: Sequence[Row]) -> list[int]:
        return [len(ids) for ids in self.conversation.encode([self.conversation.prompt(row) for row in rows])]

    def _size(self, media: list[Image.Image]) -> int:
        return sum(3 * picture.width * picture.height for picture in media)

    def _read(self, path: Path, row: Row) -> list[Image.Image]:
        if row.source_type == "image":
            return [load_image(path, row.id, self.bounds)]
        rule = self.processor.video_processor.index_rule
        frames = load_video(path, self.num_frames, self.video_backend, row.id, self.bounds, rule)
        return [Image.fromarray(frame) for frame in frames]

    def _probe(self, kind: str) -> str:
        before, after = self.conversation.frames[kind]
        return f"{before}?{after}"

    def _process(self, texts: list[str], pictures: list[list[Image.Image]] | None, kind: str) -> dict[str, Tensor]:
        images: dict[str, Any] = {} if pictures is None else {"images": pictures}
        if kind == "video":
            images |= self.processor.video_processor.options
        return dict(self.processor(text=texts, padding=True, add_special_tokens=False, return_tensors="pt", **images))

    def _processed(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """What the processor makes of the rows' prompts; MediaError naming the one that it refuses."""
        prompts = [self.conversation.prompt(row) for row in rows]
        pictures = [self._pictures(row) for row in rows] if rows[0].source_type != "text" else None
        try:
            return self._process(prompts, pictures, rows[0].source_type)
        except ValueError as error:
            for row, prompt, own in zip(rows, prompts, pictures or [], strict=False):  # which of them is it?
                with refusals(self.root / row.media_path, row):
                    self._process([prompt], [own], row.source_type)
            path = self.root / rows[0].media_path
            raise MediaError(path, f"the model's processor refuses it beside others: {error}", rows[0].id) from error

    def _pictures(self, row: Row) -> list[Image.Image]:
        return [picture for medium in self.media(row) for picture in medium]

    def _earlier(self, row: Row, ids: Tensor) -> Iterator[slice]:
        """Where the row's earlier answers stand among the tokens of its prompt. ValueError where that is not clear."""
        pictures, text, shown = self._pictures(row), "", 0
        each = self.num_frames if row.source_type == "video" else 1
        positions = iter([number for number, turn in enumerate(row.turns) if turn.role == "assistant"])
        for piece, is_answer in self.conversation.segments(row):
            if is_answer:
                shown = each * sum(len(turn.shown) for turn in row.turns[: next(positions)])
                own = [pictures[:shown]] if shown else None
                start, end = (
                    self._process([part], own, row.source_type)["input_ids"][0] for part in (text, text + piece)
                )
                if not torch.equal(ids[: len(end)], end):
                    raise ValueError(
                        f"row {row.id}: data.train_on=all: this model's processor does not show where earlier answers "
                        "stand; take data.train_on=last"
                    )
                yield slice(len(start), len(end))
            text += piece

    def _batch(self, rows: Sequence[Row], answers: Sequence[np.ndarray] | None, earlier: bool = False) -> Batch:
        kinds = {row.source_type for row in rows}
        if len(kinds) != 1:
            raise ValueError(f"a batch of {', '.join(sorted(kinds))} rows; this model takes one modality at a time")
        processed = self._processed(rows)
        mask = processed.pop("attention_mask").bool()
        per_token = {key: value for key, value in processed.items() if value.shape == mask.shape}
        lengths = [int(real.sum()) + (len(answers[i]) if answers is not None else 0) for i, real in enumerate(mask)]
        longest = self._check_length(rows, lengths)
        size = (len(rows), longest)
        out = {key: torch.zeros(size, dtype=value.dtype) for key, value in per_token.items()}
        out["input_ids"].fill_(self.pad_token_id)
        out["attention_mask"] = torch.zeros(size, dtype=torch.int64)
        labels = torch.full(size, IGNORED, dtype=torch.int64)
        for i, length in enumerate(lengths):
            start = 0 if answers is not None else longest - length
            end = start + int(mask[i].sum())
            for key, value in per_token.items():
                out[key][i, start:end] = value[i][mask[i]]
            out["attention_mask"][i, start : start + length] = 1
            if answers is not None:
                answer = torch.from_numpy(np.asarray(answers[i], dtype=np.int64))
                out["input_ids"][i, end : start + length] = answer
                labels[i, end : start + length] = answer
            if earlier and rows[i].turns:
                for said in self._earlier(rows[i], out["input_ids"][i, :end]):
                    labels[i, said] = out["input_ids"][i, said]
        batch: Batch = {key: value for key, value in processed.items() if key not in per_token} | out
        if answers is not None:
            batch["labels"] = labels
        batch["rows"] = BatchRows(rows)
        return batch
