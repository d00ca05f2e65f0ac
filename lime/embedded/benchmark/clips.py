"""Nine more scenes for the video tasks of the benchmark, none of which pretraining shows."""

from __future__ import annotations

import math
import string

import numpy as np

from lime.embedded.benchmark.chance import Rng, pick, pick_other
from lime.embedded.benchmark.drawing import COLOR_NAMES, FONTS, RGB, SHAPES, mix, shade
from lime.embedded.benchmark.icons import ICONS
from lime.embedded.benchmark.scenes_video import FLOOR, Pen, backdrop, film

_GREY = (200, 200, 200)


def _two_colors(rng: Rng) -> tuple[RGB, RGB]:
    first = pick(rng, COLOR_NAMES)
    return shade(rng, first, 12), shade(rng, pick_other(rng, COLOR_NAMES, first), 12)


def _side(rng: Rng) -> int:
    """1 (right) or -1 (left)."""
    return 1 if rng.random() < 0.5 else -1


def stacking(rng: Rng, frames: int = 24) -> np.ndarray:
    """A tower grows block by block, each pushed in from the side."""
    count, half = 6, rng.uniform(10, 14)
    fills = [shade(rng, pick(rng, COLOR_NAMES), 12) for _ in range(count)]
    x, side, high = rng.uniform(26, 38), _side(rng), 8.6

    def draw(pen: Pen, u: float) -> None:
        done = u * count
        for i in range(min(count, int(done) + 1)):
            away = side * 40 * (1 - min(1.0, done - i))
            top = FLOOR + 4 - high * (i + 1)
            pen.rectangle(x - half + away, top, x + half + away, top + high - 1, fills[i])

    return film(rng, frames, backdrop(rng), draw)


def driving(rng: Rng, frames: int = 24) -> np.ndarray:
    """A car drives along the road towards a house at the edge."""
    car, home = _two_colors(rng)
    ahead = _side(rng)

    def draw(pen: Pen, u: float) -> None:
        ICONS["house"](pen, 32 + ahead * 20, FLOOR - 14, 14, home)
        ICONS["car"](pen, 32 + ahead * (2 * u - 1) * 24, FLOOR - 4, 11, car)

    return film(rng, frames, backdrop(rng, floor=(40, 40, 46)), draw)


def opening(rng: Rng, frames: int = 24) -> np.ndarray:
    """A pair of curtains opens before a lit stage, or closes."""
    cloth, light = _two_colors(rng)
    stage = mix(light, (255, 255, 255), 0.3)
    closing, shape = rng.random() < 0.5, pick(rng, SHAPES)

    def draw(pen: Pen, u: float) -> None:
        gap = 26 * (1 - u if closing else u)
        pen.rectangle(6, 8, 58, FLOOR + 2, (20, 20, 24))
        pen.shape(shape, 32, FLOOR - 12, 11, stage)
        pen.rectangle(6, 8, 32 - gap, FLOOR + 2, cloth)
        pen.rectangle(32 + gap, 8, 58, FLOOR + 2, mix(cloth, (0, 0, 0), 0.25))
        pen.rectangle(3, 4, 61, 8, _GREY)

    return film(rng, frames, backdrop(rng), draw)


def sprouting(rng: Rng, frames: int = 24) -> np.ndarray:
    """A plant grows out of its pot and opens its flower."""
    petal, pot = shade(rng, pick(rng, COLOR_NAMES), 12), shade(rng, (185, 95, 50), 14)
    x, high, green = rng.uniform(24, 40), rng.uniform(32, 36), shade(rng, (60, 170, 60), 14)

    def draw(pen: Pen, u: float) -> None:
        tip = FLOOR - 6 - (high - 4) * u
        pen.rectangle(x - 1.5, tip, x + 1.5, FLOOR, green)
        for i in range(1, 4):
            if u > i / 4:
                pen.ellipse(
                    x + (6 if i % 2 else -6), FLOOR - 6 - (high - 4) * i / 4, 6 * min(1, 3 * u - i / 2), 2.4, green
                )
        for i in range(6):
            reach = 2 + 5 * u
            pen.circle(x + reach * math.sin(math.pi * i / 3), tip + reach * math.cos(math.pi * i / 3), 1 + 3 * u, petal)
        pen.polygon([(x - 9, FLOOR - 6), (x + 9, FLOOR - 6), (x + 6, FLOOR + 7), (x - 6, FLOOR + 7)], pot)

    return film(rng, frames, backdrop(rng), draw)


def wiping(rng: Rng, frames: int = 24) -> np.ndarray:
    """One scene gives way to another: a boundary sweeps across the picture."""
    old, new = backdrop(rng), backdrop(rng)
    first = pick(rng, COLOR_NAMES)
    before, after = pick(rng, tuple(ICONS)), pick(rng, tuple(ICONS))
    ICONS[before](Pen(old), 32, 30, 18, shade(rng, first, 12))
    ICONS[after](Pen(new), 32, 30, 18, shade(rng, pick_other(rng, COLOR_NAMES, first), 12))
    right, width = rng.random() < 0.5, old.width

    def draw(pen: Pen, u: float) -> None:
        edge = round(width * (0.04 + 0.92 * (u if right else 1 - u)))
        box = (0, 0, edge, width) if right else (edge, 0, width, width)
        pen.image.paste(new.crop(box), box[:2])
        line = 64 * edge / width
        pen.rectangle(line - 1, 0, line + 1, 64, (250, 250, 250))

    return film(rng, frames, old, draw)


def fleet(rng: Rng, frames: int = 24) -> np.ndarray:
    """Two to four objects of one kind cross the picture together, one above the other."""
    count, shape, fill = int(rng.integers(2, 5)), pick(rng, SHAPES), shade(rng, pick(rng, COLOR_NAMES), 12)
    dx, slant, r = _side(rng), rng.uniform(-5, 5), rng.uniform(6, 7)

    def draw(pen: Pen, u: float) -> None:
        for i in range(count):
            pen.shape(shape, 32 + dx * (2 * u - 1) * 23 + slant * (i - (count - 1) / 2), 9 + 14 * i, r, fill)

    return film(rng, frames, backdrop(rng, horizon=54), draw)


def writing(rng: Rng, frames: int = 24) -> np.ndarray:
    """Six letters appear on a board one after another, in two lines."""
    letters = [string.ascii_uppercase[i] for i in rng.permutation(26)[:6]]
    ink, board, face = (shade(rng, pick(rng, COLOR_NAMES), 12), shade(rng, (18, 48, 36), 12), int(rng.integers(FONTS)))

    def draw(pen: Pen, u: float) -> None:
        pen.rectangle(3, 3, 61, 47, _GREY)
        pen.rectangle(5, 5, 59, 45, board)
        written = 6 * u
        for i, letter in enumerate(letters):
            if written > i:
                size = 21 * min(1.0, 0.4 + 0.6 * (written - i))
                pen.text(letter, 15 + 17 * (i % 3), 15 + 20 * (i // 3), size, face, ink)
        pen.rectangle(5, 47, 5 + 54 * u, 50, ink)

    return film(rng, frames, backdrop(rng, horizon=56), draw)


def advancing(rng: Rng, frames: int = 24) -> np.ndarray:
    """Walking up a road towards a house that grows, or backing away from it."""
    wall, away = shade(rng, pick(rng, COLOR_NAMES), 12), rng.random() < 0.5
    horizon = rng.uniform(28, 32)
    side = shade(rng, (30, 75, 30), 12)

    def draw(pen: Pen, u: float) -> None:
        near = (1 - u) if away else u
        pen.rectangle(0, horizon, 64, 64, side)
        pen.polygon([(32 - 3, horizon), (32 + 3, horizon), (60, 64), (4, 64)], (70, 70, 76))
        r = 4 + 21 * near
        ICONS["house"](pen, 32, horizon - 0.55 * r + 10 * near, r, wall)
        for i in (-1, 1):
            ICONS["tree"](pen, 32 + i * (10 + 20 * near), horizon - 2 + 8 * near, 4 + 9 * near, (70, 160, 70))

    return film(rng, frames, backdrop(rng, horizon=horizon), draw)


def colliding(rng: Rng, frames: int = 24) -> np.ndarray:
    """A ball rolls into another one and stops; the other rolls on."""
    fill, fill2 = _two_colors(rng)
    dx, r = _side(rng), rng.uniform(8, 9.5)
    reach, touch = 32 - r, r

    def draw(pen: Pen, u: float) -> None:
        before, after = min(1.0, 2 * u), max(0.0, 2 * u - 1)
        x = -reach + (reach - touch) * before
        x2 = touch + (reach - touch) * after
        pen.circle(32 + dx * x, FLOOR - r, r, fill)
        pen.circle(32 + dx * x2, FLOOR - r, r, fill2)
        pen.rectangle(32 - 1, 8, 32 + 1, 14, _GREY)
        pen.circle(32 + dx * (2 * u - 1) * 26, 11, 4, _GREY)

    return film(rng, frames, backdrop(rng), draw)
