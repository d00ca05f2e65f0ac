"""What the projector learns from: rendered pictures, and real ones where a data root of them is at hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lime.data.media import load_image
from lime.data.rows import MMTDataset, Row
from lime.embedded.benchmark import scenes_image
from lime.embedded.benchmark.chance import Rng, pick
from lime.embedded.benchmark.icons import icon

NUMBERS = ("no", "one", "two", "three", "four", "five")
IN_A_WORD = "Answer with one word."
ASKED = "What is in the picture? Answer with its name."


@dataclass(frozen=True)
class Example:
    """A picture, what is asked about it, and the answer. `skill` groups examples for the probe."""

    skill: str
    picture: Image.Image
    question: str
    answer: str


def scene(rng: Rng, skill: str | None = None) -> Example:
    """Coloured shapes: their colour, their shape, how many, or all of it."""
    pixels, a = scenes_image.scene(rng)
    skill = skill or pick(rng, ("colour", "shape", "count", "description"))
    question, answer = {
        "colour": (f"What colour is the {a['shape']}? {IN_A_WORD}", a["color"]),
        "shape": (f"Which shape is {a['color']}? {IN_A_WORD}", a["shape"]),
        "count": (f"How many {a['color']} objects are there? {IN_A_WORD}", NUMBERS[a["k"]]),
        "description": ("Describe the picture.", _described(a)),
    }[skill]
    return Example(skill, Image.fromarray(pixels), question, answer)


def _described(a: dict[str, object]) -> str:
    parts = [(a["k"], a["color"], a["shape"]), *([(a["k2"], a["color2"], a["shape2"])] if a["k2"] else [])]
    return " and ".join(
        f"{NUMBERS[int(str(k))]} {color} {shape}{'' if k == 1 else 'es' if shape == 'cross' else 's'}"
        for k, color, shape in parts
    )


def pictogram(rng: Rng) -> Example:
    """One pictogram: its name, or its colour."""
    pixels, a = icon(rng)
    if rng.random() < 0.3:
        return Example("pictogram", Image.fromarray(pixels), f"What colour is the {a['name']}? {IN_A_WORD}", a["color"])
    return Example("pictogram", Image.fromarray(pixels), ASKED, a["name"])


def texture(rng: Rng) -> Example:
    """A surface: its kind."""
    pixels, a = scenes_image.texture(rng)
    kinds = ", ".join(scenes_image.TEXTURES)
    return Example("texture", Image.fromarray(pixels), f"Which kind of surface is this: {kinds}?", a["kind"])


def digit(rng: Rng) -> Example:
    """One digit."""
    pixels, a = scenes_image.digit(rng)
    return Example("digit", Image.fromarray(pixels), "Which digit is shown?", str(a["value"]))


RENDERED = {scene: 0.5, pictogram: 0.25, texture: 0.1, digit: 0.15}


class RealPictures:
    """The pictures of a data root in the layout of MMT-47: `train` to learn from, `test` for the probe."""

    def __init__(self, root: Path) -> None:
        dataset = MMTDataset(root)
        self.root = root
        self.train = [row for row in dataset.train if row.source_type == "image"]
        self.test = {
            split: [row for row in rows if row.source_type == "image"]
            for split, rows in dataset.tests.items()
            if any(row.source_type == "image" for row in rows)
        }
        if not self.train:
            raise ValueError(f"{root}: its train split has no picture")

    def draw(self, rng: Rng) -> Example:
        """A training picture, cropped and mirrored at random, under its own question or a plain one."""
        row = pick(rng, self.train)
        picture = self._open(row)
        width, height = picture.size
        share = rng.uniform(0.65, 1.0, 2)
        wide, high = max(1, round(width * share[0])), max(1, round(height * share[1]))
        left, top = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
        picture = picture.crop((left, top, left + wide, top + high))
        legible = any(letter.isdigit() or letter.isupper() for letter in row.answer)  # writing is not mirrored
        if not legible and rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        plain = not legible and rng.random() < 0.5
        return Example("real", picture, ASKED if plain else row.question, row.answer)

    def probes(self) -> Iterator[Example]:
        """The test pictures as they are."""
        for split, rows in self.test.items():
            for row in rows:
                yield Example(split, self._open(row), row.question, row.answer)

    def _open(self, row: Row) -> Image.Image:
        return load_image(self.root / row.media_path)


def examples(rng: np.random.Generator, real: RealPictures | None, share: float = 0.4) -> Iterator[Example]:
    """Examples without end: `share` of real pictures, where there are any."""
    renderers, weights = list(RENDERED), list(RENDERED.values())
    while True:
        if real is not None and rng.random() < share:
            yield real.draw(rng)
        else:
            yield renderers[int(rng.choice(len(renderers), p=weights))](rng)


def probes(real: RealPictures | None, count: int, seed: int = 987_654) -> list[Example]:
    """Held-out examples: `count` rendered ones of each skill from a seed of their own, and all real test pictures."""
    rng = np.random.default_rng(seed)
    rendered = [scene(rng, skill) for skill in ("colour", "shape", "count") for _ in range(count)]
    rendered += [render(rng) for render in (pictogram, texture, digit) for _ in range(count)]
    return [*rendered, *(real.probes() if real is not None else ())]
