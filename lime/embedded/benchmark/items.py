"""What a task of the embedded benchmark is made of: items drawn for a wanted answer, and their wording."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Part = Literal["train", "test"]
LETTERS = "ABCDEF"
BEST = "Choose the best option."


@dataclass(frozen=True)
class Item:
    """One question with its medium: None, an image (H, W, 3) or a clip (T, H, W, 3), uint8."""

    question: str
    media: np.ndarray | None = None


Draw = Callable[[np.random.Generator, str, Part], Item]


@dataclass(frozen=True)
class MiniTask:
    """How one task is generated.

    `draw(rng, answer, part)` makes an item whose right answer is `answer`, one of the closed set `answers`.
    For text tasks the content of train and test items is disjoint (not only their wording); images and clips
    are drawn anew for every item.
    """

    split: str
    source_type: str
    answers: tuple[str, ...]
    draw: Draw

    @property
    def name(self) -> str:
        """The data set's name: the split's without its prefix."""
        return self.split.split("_test_", 1)[1]


class MiniTasks(dict[str, MiniTask]):
    """The tasks of one modality by test split. `@TASKS.task(split, answers)` before its `draw` adds one."""

    def __init__(self, source_type: str) -> None:
        super().__init__()
        self.source_type = source_type

    def task(self, split: str, answers: Iterable[str]) -> Callable[[Draw], Draw]:
        def add(draw: Draw) -> Draw:
            self[split] = MiniTask(split, self.source_type, tuple(answers), draw)
            return draw

        return add


def part_of(key: str) -> Part:
    """The part an item belongs to, from a hash of its content: one in three is a test item."""
    return "test" if zlib.crc32(f"part/{key}".encode()) % 3 == 0 else "train"


def choice(instruction: str, question: str, options: Sequence[str]) -> str:
    """A multiple-choice prompt, options as `A. …` on lines of their own."""
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return f"{instruction}\n{question}\n\nOptions:\n{listed}"
