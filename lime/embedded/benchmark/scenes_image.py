"""Image renderers: each `f(rng, **attributes) -> ((64, 64, 3) uint8, attributes)`.

Every attribute may be fixed by keyword; what is not fixed is drawn from `rng`. Legible at 32x32. The pretraining and
the benchmark both show them. The benchmark's task of each, and the skill beneath it:

    scene     colour, shape, count          seed_bench
    texture   8 surface kinds               eurosat, scienceqa
    digit     one digit                     svhn
    word      three letters                 text_recognition
    bars      height of the bar of a colour chartqa
    icon      12 pictograms                 caltech101, okvqa
    flower    petal number, petal colour    flowers102
    face      ears, fur colour              pets
    cells     dark cluster in the centre    camelyon
    lungs     bright spot left or right     vqa_rad
    sign      word or digit on a sign       textvqa
    blurred   colour unless too blurred     vizwiz_vqa
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from lime.embedded.benchmark.chance import Rng, pick, pick_other
from lime.embedded.benchmark.drawing import (
    COLOR_NAMES,
    COLORS,
    FONTS,
    RGB,
    SCALE,
    SHAPES,
    SIZE,
    Pen,
    dark,
    develop,
    mix,
    shade,
)
from lime.embedded.benchmark.icons import icon

TEXTURES = ("plain", "rows", "columns", "slanted", "checks", "dots", "grain", "fade")
FURS: dict[str, RGB] = {
    "orange": (240, 140, 40),
    "white": (240, 240, 240),
    "gray": (130, 132, 138),
    "brown": (118, 68, 32),
}
EARS = ("pointed", "floppy")
SPOTS = ("left", "right", "none")
READABLE_BLUR = 0.45  # at or below it the object is recognisable; from UNREADABLE_BLUR on nothing is
UNREADABLE_BLUR = 0.7

Rendered = tuple[np.ndarray, dict[str, Any]]
_Y, _X = np.mgrid[:SIZE, :SIZE]


def scene(
    rng: Rng,
    *,
    k: int | None = None,
    shape: str | None = None,
    color: str | None = None,
    k2: int | None = None,
    shape2: str | None = None,
    color2: str | None = None,
) -> Rendered:
    """`k` (1..5) objects of one shape and colour, `k2` (0..2) of another shape and colour, scattered."""
    shape = shape or pick_other(rng, SHAPES, shape2)
    color = color or pick_other(rng, COLOR_NAMES, color2)
    shape2 = shape2 or pick_other(rng, SHAPES, shape)
    color2 = color2 or pick_other(rng, COLOR_NAMES, color)
    k = int(rng.integers(1, 6)) if k is None else k
    k2 = int(rng.integers(0, 3)) if k2 is None else k2
    if k + k2 > 9:
        raise ValueError(f"scene holds at most 9 objects, got k={k} and k2={k2}")
    pen = Pen(dark(rng))
    cells = rng.permutation(9)[: k + k2]
    for n, cell in enumerate(cells.tolist()):
        x, y = 11 + 21 * (cell % 3) + rng.uniform(-2, 2), 11 + 21 * (cell // 3) + rng.uniform(-2, 2)
        name, tint = (shape, color) if n < k else (shape2, color2)
        pen.shape(name, x, y, rng.uniform(6.5, 9.0), shade(rng, tint))
    attributes = {"k": k, "shape": shape, "color": color, "k2": k2, "shape2": shape2, "color2": color2}
    return develop(rng, pen.pixels()), attributes


def texture(rng: Rng, *, kind: str | None = None) -> Rendered:
    """A surface of two colours in one of the eight `TEXTURES`."""
    kind = kind or pick(rng, TEXTURES)
    first = pick(rng, COLOR_NAMES)
    a, b = (
        np.array(COLORS[name], np.float32) * rng.uniform(0.5, 1.0)
        for name in (first, pick_other(rng, COLOR_NAMES, first))
    )
    period, offset = rng.uniform(6, 11), rng.uniform(0, 16)
    x, y = _X + offset, _Y + offset
    if kind == "plain":
        weight = np.zeros((SIZE, SIZE))
    elif kind == "rows":
        weight = (y // period) % 2
    elif kind == "columns":
        weight = (x // period) % 2
    elif kind == "slanted":
        weight = ((x + y) // (1.3 * period)) % 2
    elif kind == "checks":
        weight = (x // period + y // period) % 2
    elif kind == "dots":
        step = 1.8 * period
        weight = ((x % step - step / 2) ** 2 + (y % step - step / 2) ** 2 <= (0.3 * step) ** 2) * 1.0
    elif kind == "grain":
        weight = np.repeat(np.repeat(rng.random((SIZE // 2, SIZE // 2)), 2, 0), 2, 1)
    elif kind == "fade":
        weight = (_X if rng.random() < 0.5 else _Y) / (SIZE - 1)
    else:
        raise ValueError(f"unknown texture {kind!r}; expected one of {', '.join(TEXTURES)}")
    pixels = a + (b - a) * weight[..., None].astype(np.float32)
    return develop(rng, pixels, light=6), {"kind": kind}


def _written(rng: Rng, text: str, low: float, high: float, tilt: float) -> np.ndarray:
    background, ink = dark(rng), mix(shade(rng, pick(rng, COLOR_NAMES)), (255, 255, 255), 0.3)
    pen = Pen(background)
    x, y = 32 + rng.uniform(-4, 4), 32 + rng.uniform(-5, 5)
    pen.text(text, x, y, rng.uniform(low, high), int(rng.integers(FONTS)), ink, max_width=54)
    angle = float(rng.uniform(-tilt, tilt))
    pen.image = pen.image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=background)
    return develop(rng, pen.pixels())


def digit(rng: Rng, *, value: int | None = None) -> Rendered:
    """One digit, 0..9, in varied faces, sizes, colours and tilts."""
    value = int(rng.integers(10)) if value is None else value
    return _written(rng, str(value), 36, 54, 12), {"value": value}


def word(rng: Rng, *, text: str | None = None) -> Rendered:
    """A word as given; three random capitals by default."""
    text = text or "".join(pick(rng, string.ascii_uppercase) for _ in range(3))
    return _written(rng, text, 25, 31, 4), {"text": text}


def bars(rng: Rng, *, colors: Sequence[str] | None = None, heights: Sequence[int] | None = None) -> Rendered:
    """A chart of two to four bars of different colours, heights 1..5 over a grid of unit lines."""
    n = len(colors) if colors is not None else len(heights) if heights is not None else int(rng.integers(2, 5))
    colors = list(colors) if colors is not None else [COLOR_NAMES[i] for i in rng.permutation(len(COLOR_NAMES))[:n]]
    heights = list(heights) if heights is not None else rng.integers(1, 6, n).tolist()
    if len(colors) != len(heights):
        raise ValueError(f"bars needs one height per colour, got {len(colors)} colours and {len(heights)} heights")
    pen = Pen(dark(rng, 0, 50))
    for level in range(1, 6):
        pen.rectangle(0, 61.5 - 12 * level, SIZE, 62 - 12 * level, (110, 110, 110))
    width = SIZE / n
    for i, (color, height) in enumerate(zip(colors, heights, strict=True)):
        inset = rng.uniform(1.5, 3.0)
        pen.rectangle(i * width + inset, 62 - 12 * height, (i + 1) * width - inset, 62, shade(rng, color))
    pen.rectangle(0, 62, SIZE, SIZE, (205, 205, 205))
    return develop(rng, pen.pixels(), light=5), {"colors": colors, "heights": heights}


def _petals(pen: Pen, x: float, y: float, r: float, petals: int, turn: float, fill: RGB, heart: RGB) -> None:
    reach, size = 0.62 * r, min(0.42 * r, 0.62 * r * math.sin(math.pi / petals) * 0.98)
    for i in range(petals):
        angle = turn + 2 * math.pi * i / petals
        for along in (0.75, 1.0, 1.2):
            pen.circle(
                x + along * reach * math.sin(angle),
                y - along * reach * math.cos(angle),
                size * (1.15 - 0.25 * abs(along - 1)),
                fill,
            )
    pen.circle(x, y, 0.27 * r, heart)


def flower(rng: Rng, *, petals: int | None = None, color: str | None = None) -> Rendered:
    """A flower seen from above: 3..7 petals of one colour around a dark centre."""
    petals = int(rng.integers(3, 8)) if petals is None else petals
    color = color or pick(rng, COLOR_NAMES)
    pen = Pen(mix(dark(rng, 0, 40), (20, 60, 20), 0.5))
    x, y, r = 32 + rng.uniform(-3, 3), 32 + rng.uniform(-3, 3), rng.uniform(26, 30)
    _petals(pen, x, y, r, petals, rng.uniform(0, 2 * math.pi), shade(rng, color), (60, 35, 10))
    return develop(rng, pen.pixels()), {"petals": petals, "color": color}


def face(rng: Rng, *, ears: str | None = None, fur: str | None = None) -> Rendered:
    """The head of a pet: pointed or floppy ears, one of four fur colours."""
    ears, fur = ears or pick(rng, EARS), fur or pick(rng, tuple(FURS))
    if ears not in EARS or fur not in FURS:
        raise ValueError(f"face: ears must be one of {EARS} and fur one of {tuple(FURS)}, got {ears!r} and {fur!r}")
    pen = Pen(dark(rng, 0, 60))
    coat = shade(rng, FURS[fur], 12)
    deep = mix(coat, (0, 0, 0), 0.35)
    x, y, r = 32 + rng.uniform(-3, 3), 38 + rng.uniform(-2, 2), rng.uniform(18, 21)
    for side in (-1, 1):
        if ears == "pointed":
            tip = (x + side * 0.95 * r, y - 1.6 * r)
            pen.polygon([(x + side * 0.97 * r, y - 0.2 * r), tip, (x + side * 0.15 * r, y - 0.85 * r)], coat)
            inner = [
                (x + side * 0.8 * r, y - 0.55 * r),
                (x + side * 0.85 * r, y - 1.25 * r),
                (x + side * 0.4 * r, y - 0.85 * r),
            ]
            pen.polygon(inner, mix(coat, (235, 130, 140), 0.7))
    pen.ellipse(x, y, r, 0.92 * r, coat)
    for side in (-1, 1):
        if ears == "floppy":
            pen.ellipse(x + side * 1.02 * r, y + 0.1 * r, 0.3 * r, 0.8 * r, deep)
        pen.circle(x + side * 0.4 * r, y - 0.2 * r, 0.15 * r, (15, 15, 15))
    pen.ellipse(x, y + 0.4 * r, 0.36 * r, 0.28 * r, mix(coat, (255, 255, 255), 0.45))
    pen.ellipse(x, y + 0.24 * r, 0.16 * r, 0.11 * r, (35, 15, 15))
    return develop(rng, pen.pixels()), {"ears": ears, "fur": fur}


def cells(rng: Rng, *, cluster: bool | None = None, elsewhere: bool | None = None) -> Rendered:
    """Stained tissue; `cluster`: a group of dark cells in the centre, `elsewhere`: one near a corner."""
    cluster = bool(rng.random() < 0.5) if cluster is None else cluster
    elsewhere = bool(rng.random() < 0.3) if elsewhere is None else elsewhere
    pen = Pen(shade(rng, (228, 178, 205), 14))
    for x, y, r, tint in rng.random((int(rng.integers(22, 34)), 4)).tolist():
        pen.circle(SIZE * x, SIZE * y, 1.8 + 1.6 * r, mix((178, 118, 172), (202, 142, 198), tint))
    corner = (12 + 40 * int(rng.integers(2)), 12 + 40 * int(rng.integers(2)))
    for present, (x, y), spread in ((elsewhere, corner, 3.5), (cluster, (32, 32), 6.5)):
        count = int(rng.integers(9, 14)) if present else 0
        offsets = np.clip(rng.normal(0, spread, (count, 2)), -1.6 * spread, 1.6 * spread).tolist()
        for (dx, dy), (r, tint) in zip(offsets, rng.random((count, 2)).tolist(), strict=True):
            pen.circle(x + dx, y + dy, 2.6 + 1.6 * r, mix((62, 20, 95), (94, 44, 126), tint))
    return develop(rng, pen.pixels()), {"cluster": cluster, "elsewhere": elsewhere}


def lungs(rng: Rng, *, spot: str | None = None) -> Rendered:
    """A chest radiograph in grey: a bright spot in the lung on the left or right of the picture, or none."""
    spot = spot or pick(rng, SPOTS)
    if spot not in SPOTS:
        raise ValueError(f"unknown spot {spot!r}; expected one of {', '.join(SPOTS)}")
    tissue, air = int(rng.integers(105, 135)), int(rng.integers(22, 48))
    pen = Pen((tissue, tissue, tissue))
    y = 33 + rng.uniform(-2, 2)
    gap, rx, ry = rng.uniform(14, 16), rng.uniform(10.5, 12.5), rng.uniform(22, 26)
    for side in (-1, 1):
        pen.ellipse(32 + side * gap, y, rx, ry, (air, air, air))
    for i in range(5):
        level, grey = y - 17 + 8.5 * i, air + 24
        for side in (-1, 1):
            pen.line(
                [(32 + side * (gap - 0.8 * rx), level), (32 + side * (gap + 0.8 * rx), level + 3)],
                (grey, grey, grey),
                1,
            )
    pen.rectangle(30, 0, 34, SIZE, (tissue + 45,) * 3)
    if spot != "none":
        side = -1 if spot == "left" else 1
        bright = int(rng.integers(225, 250))
        pen.circle(32 + side * (gap + rng.uniform(-3, 3)), y + rng.uniform(-12, 12), rng.uniform(4, 6), (bright,) * 3)
    return develop(rng, pen.pixels()), {"spot": spot}


def sign(rng: Rng, *, text: str | None = None, color: str | None = None, form: str | None = None) -> Rendered:
    """A street sign of one colour on a post, with a word (three capitals by default) or a digit on it."""
    color, form = color or pick(rng, COLOR_NAMES), form or pick(rng, ("board", "round", "octagon"))
    if text is None:
        text = (
            str(rng.integers(10))
            if rng.random() < 0.4
            else "".join(pick(rng, string.ascii_uppercase) for _ in range(3))
        )
    plate = shade(rng, color)
    ink = (10, 10, 10) if 0.3 * plate[0] + 0.6 * plate[1] + 0.1 * plate[2] > 110 else (250, 250, 250)
    pen = Pen(dark(rng, 10, 80))
    x, y = 32 + rng.uniform(-1.5, 1.5), 29 + rng.uniform(-2, 2)
    pen.rectangle(x - 2, y, x + 2, SIZE, (150, 150, 150))
    if form == "board":
        pen.rectangle(x - 30, y - 17, x + 30, y + 17, plate)
    elif form == "round":
        pen.ellipse(x, y, 30, 26, plate)
    else:
        pen.polygon(
            [(x + 32 * math.cos(a), y + 27 * math.sin(a)) for a in (math.pi * (i + 0.5) / 4 for i in range(8))], plate
        )
    size = rng.uniform(32, 40) if len(text) == 1 else rng.uniform(25, 29)
    pen.text(text, x, y, size, int(rng.integers(FONTS)), ink, max_width=50)
    return develop(rng, pen.pixels()), {"text": text, "color": color, "form": form}


def blurred(
    rng: Rng,
    *,
    color: str | None = None,
    shape: str | None = None,
    blur: float | None = None,
    readable: bool | None = None,
) -> Rendered:
    """One large object under a blur of strength 0..1; from `UNREADABLE_BLUR` on only grey noise is left."""
    color, shape = color or pick(rng, COLOR_NAMES), shape or pick(rng, SHAPES)
    if blur is None:
        readable = bool(rng.random() < 0.75) if readable is None else readable
        blur = float(rng.uniform(0, READABLE_BLUR) if readable else rng.uniform(UNREADABLE_BLUR, 1))
    pen = Pen(dark(rng))
    x, y = rng.uniform(22, 42, 2).tolist()
    pen.shape(shape, x, y, rng.uniform(14, 19), shade(rng, color))
    pixels = np.asarray(pen.image.reduce(SCALE).filter(ImageFilter.GaussianBlur(7 * blur)))
    if blur >= UNREADABLE_BLUR:
        grey = rng.uniform(50, 110) + 28 * rng.standard_normal((SIZE // 4, SIZE // 4), dtype=np.float32)
        pixels = np.repeat(np.repeat(grey, 4, 0), 4, 1)[..., None] * np.ones(3, np.float32)
    return develop(rng, pixels), {"color": color, "shape": shape, "blur": blur, "readable": blur <= READABLE_BLUR}


IMAGES: dict[str, Callable[..., Rendered]] = {
    f.__name__: f for f in (scene, texture, digit, word, bars, icon, flower, face, cells, lungs, sign, blurred)
}
