"""Twelve pictograms, each in any colour: what the object-recognition tasks show."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lime.embedded.benchmark.chance import Rng, pick
from lime.embedded.benchmark.drawing import COLOR_NAMES, RGB, Pen, dark, develop, mix, shade

BLACK: RGB = (12, 12, 12)
Draw = Callable[[Pen, float, float, float, RGB], None]


def _sun(pen: Pen, x: float, y: float, r: float, fill: RGB) -> None:
    for i in range(8):
        dx, dy = math.sin(math.pi * i / 4), math.cos(math.pi * i / 4)
        pen.line([(x + 0.68 * r * dx, y + 0.68 * r * dy), (x + r * dx, y + r * dy)], fill, 0.13 * r)
    pen.circle(x, y, 0.5 * r, fill)


def _tree(pen: Pen, x: float, y: float, r: float, fill: RGB) -> None:
    pen.rectangle(x - 0.14 * r, y, x + 0.14 * r, y + r, (125, 80, 40))
    for dx, dy, s in ((-0.4, -0.15, 0.42), (0.4, -0.15, 0.42), (0, -0.5, 0.5)):
        pen.circle(x + dx * r, y + dy * r, s * r, fill)


def _house(pen: Pen, x: float, y: float, r: float, fill: RGB) -> None:
    pen.rectangle(x - 0.7 * r, y - 0.1 * r, x + 0.7 * r, y + 0.9 * r, fill)
    pen.polygon([(x - r, y - 0.1 * r), (x + r, y - 0.1 * r), (x, y - 0.95 * r)], mix(fill, (255, 255, 255), 0.45))
    pen.rectangle(x - 0.2 * r, y + 0.3 * r, x + 0.2 * r, y + 0.9 * r, BLACK)


def _fish(pen: Pen, x: float, y: float, r: float, fill: RGB) -> None:
    pen.ellipse(x - 0.2 * r, y, 0.75 * r, 0.45 * r, fill)
    pen.polygon([(x + 0.4 * r, y), (x + r, y - 0.5 * r), (x + r, y + 0.5 * r)], fill)
    pen.circle(x - 0.6 * r, y - 0.1 * r, 0.11 * r, BLACK)


def _car(pen: Pen, x: float, y: float, r: float, fill: RGB) -> None:
    pen.rectangle(x - r, y - 0.05 * r, x + r, y + 0.45 * r, fill)
    pen.polygon([(x - 0.65 * r, y), (x - 0.4 * r, y - 0.5 * r), (x + 0.35 * r, y - 0.5 * r), (x + 0.65 * r, y)], fill)
    for side in (-1, 1):
        pen.circle(x + side * 0.55 * r, y + 0.5 * r, 0.26 * r, (170, 170, 170))
        pen.circle(x + side * 0.55 * r, y + 0.5 * r, 0.14 * r, BLACK)


def _boat(pen: Pen, x: float, y: float, r: float, fill: RGB) -> None:
    pen.polygon(
        [(x - r, y + 0.4 * r), (x + r, y + 0.4 * r), (x + 0.6 * r, y + 0.9 * r), (x - 0.6 * r, y + 0.9 * r)], fill
    )
    pen.rectangle(x - 0.06 * r, y - r, x + 0.06 * r, y + 0.4 * r, (170, 170, 170))
    pen.polygon([(x + 0.12 * r, y - 0.9 * r), (x + 0.85 * r, y + 0.25 * r), (x + 0.12 * r, y + 0.25 * r)], fill)


def _star(pen: Pen, x: float, y: float, r: float, fill: RGB) -> None:
    pen.star(x, y, r, 5, fill)


def _key(pen: Pen, x: float, y: float, r: float, fill: RGB) -> None:
    pen.arc(x - 0.55 * r, y, 0.42 * r, 0, 360, fill, 0.2 * r)
    pen.rectangle(x - 0.15 * r, y - 0.1 * r, x + r, y + 0.1 * r, fill)
    for along in (0.5, 0.85):
        pen.rectangle(x + (along - 0.09) * r, y, x + (along + 0.1) * r, y + 0.45 * r, fill)


def _cup(pen: Pen, x: float, y: float, r: float, fill: RGB) -> None:
    pen.arc(x + 0.5 * r, y + 0.05 * r, 0.42 * r, 0, 360, fill, 0.14 * r)
    pen.polygon(
        [
            (x - 0.8 * r, y - 0.6 * r),
            (x + 0.5 * r, y - 0.6 * r),
            (x + 0.35 * r, y + 0.75 * r),
            (x - 0.65 * r, y + 0.75 * r),
        ],
        fill,
    )
    pen.ellipse(x - 0.15 * r, y - 0.6 * r, 0.65 * r, 0.16 * r, mix(fill, (0, 0, 0), 0.55))


def _flower(pen: Pen, x: float, y: float, r: float, fill: RGB) -> None:
    pen.rectangle(x - 0.07 * r, y, x + 0.07 * r, y + r, (60, 150, 60))
    pen.ellipse(x + 0.3 * r, y + 0.7 * r, 0.27 * r, 0.12 * r, (60, 150, 60))
    for i in range(6):
        pen.circle(
            x + 0.4 * r * math.sin(math.pi * i / 3), y - 0.35 * r + 0.4 * r * math.cos(math.pi * i / 3), 0.24 * r, fill
        )
    pen.circle(x, y - 0.35 * r, 0.22 * r, BLACK)


def _umbrella(pen: Pen, x: float, y: float, r: float, fill: RGB) -> None:
    pen.pie(x, y, r, 180, 360, fill)
    for i in (-1, 0, 1):
        pen.circle(x + i * 0.66 * r, y + 0.02 * r, 0.2 * r, BLACK)
    pen.rectangle(x - 0.06 * r, y - 0.1 * r, x + 0.06 * r, y + 0.8 * r, (200, 200, 200))
    pen.arc(x + 0.2 * r, y + 0.75 * r, 0.24 * r, 0, 180, (200, 200, 200), 0.12 * r)


def _moon(pen: Pen, x: float, y: float, r: float, fill: RGB) -> None:
    outer = [
        (x + 0.9 * r * math.cos(a), y + 0.9 * r * math.sin(a)) for a in np.linspace(0.25 * math.pi, 1.75 * math.pi, 20)
    ]
    inner = [
        (x + 0.45 * r + 0.68 * r * math.cos(a), y + 0.68 * r * math.sin(a))
        for a in np.linspace(1.6 * math.pi, 0.4 * math.pi, 16)
    ]
    pen.polygon(outer + inner, fill)


ICONS: dict[str, Draw] = {
    "sun": _sun,
    "tree": _tree,
    "house": _house,
    "fish": _fish,
    "car": _car,
    "boat": _boat,
    "star": _star,
    "key": _key,
    "cup": _cup,
    "flower": _flower,
    "umbrella": _umbrella,
    "moon": _moon,
}


def icon(rng: Rng, *, name: str | None = None, color: str | None = None) -> tuple[np.ndarray, dict[str, Any]]:
    """One large pictogram out of `ICONS` in one colour: ((64, 64, 3) uint8, {name, color})."""
    name, color = name or pick(rng, tuple(ICONS)), color or pick(rng, COLOR_NAMES)
    if name not in ICONS:
        raise ValueError(f"unknown icon {name!r}; expected one of {', '.join(ICONS)}")
    pen = Pen(dark(rng))
    x, y = (32 + rng.uniform(-4, 4, 2)).tolist()
    ICONS[name](pen, x, y, rng.uniform(22, 28), shade(rng, color))
    return develop(rng, pen.pixels()), {"name": name, "color": color}
