"""Drawing kit of the embedded benchmark: palette and a supersampling pen.

Coordinates are picture units, 0..64 from the left and from the top. Pictures are drawn at twice that
resolution and reduced, so that edges are smooth. Fonts are the DejaVu files that come with matplotlib: no
system font is needed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lime.embedded.benchmark.chance import Rng

SIZE = 64
SCALE = 2

RGB = tuple[int, int, int]

COLORS: dict[str, RGB] = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 235),
    "yellow": (235, 215, 50),
    "purple": (155, 50, 195),
    "orange": (245, 140, 30),
    "white": (245, 245, 245),
    "cyan": (60, 210, 220),
}
COLOR_NAMES = tuple(COLORS)
SHAPES = ("circle", "square", "triangle", "cross", "diamond")

_FONT_FILES = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSans-BoldOblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf",
)
FONTS = len(_FONT_FILES)


def shade(rng: Rng, color: str | RGB, spread: int = 18) -> RGB:
    """The named colour (or RGB triple), each channel moved by at most `spread`."""
    base = COLORS[color] if isinstance(color, str) else color
    r, g, b = (min(255, max(0, c + int(d))) for c, d in zip(base, rng.integers(-spread, spread + 1, 3), strict=True))
    return r, g, b


def dark(rng: Rng, low: int = 0, high: int = 70) -> RGB:
    """A random dark colour, for backgrounds."""
    r, g, b = rng.integers(low, high, 3).tolist()
    return r, g, b


def mix(a: RGB, b: RGB, weight: float) -> RGB:
    """`a` moved towards `b`: weight 0 gives `a`, weight 1 gives `b`."""
    r, g, bl = (round(x + (y - x) * weight) for x, y in zip(a, b, strict=True))
    return r, g, bl


@functools.cache
def font(index: int, size: int) -> ImageFont.FreeTypeFont:
    """DejaVu face `index` (0..FONTS-1) at `size` pixels."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", _FONT_FILES[index])), size)


class Pen:
    """Draws on one picture in picture units."""

    def __init__(self, background: RGB | Image.Image) -> None:
        if isinstance(background, Image.Image):
            self.image = background
        else:
            self.image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), background)
        self._draw = ImageDraw.Draw(self.image)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: RGB) -> None:
        box = ((x - rx) * SCALE, (y - ry) * SCALE, (x + rx) * SCALE, (y + ry) * SCALE)
        self._draw.ellipse(box, fill=fill)

    def circle(self, x: float, y: float, r: float, fill: RGB) -> None:
        self.ellipse(x, y, r, r, fill)

    def rectangle(self, left: float, top: float, right: float, bottom: float, fill: RGB) -> None:
        if right > left and bottom > top:
            self._draw.rectangle((left * SCALE, top * SCALE, right * SCALE - 1, bottom * SCALE - 1), fill=fill)

    def polygon(self, points: Sequence[tuple[float, float]], fill: RGB) -> None:
        self._draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=fill)

    def line(self, points: Sequence[tuple[float, float]], fill: RGB, width: float) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self._draw.line(scaled, fill=fill, width=max(1, round(width * SCALE)), joint="curve")

    def arc(self, x: float, y: float, r: float, start: float, end: float, fill: RGB, width: float) -> None:
        box = ((x - r) * SCALE, (y - r) * SCALE, (x + r) * SCALE, (y + r) * SCALE)
        self._draw.arc(box, start, end, fill=fill, width=max(1, round(width * SCALE)))

    def pie(self, x: float, y: float, r: float, start: float, end: float, fill: RGB) -> None:
        box = ((x - r) * SCALE, (y - r) * SCALE, (x + r) * SCALE, (y + r) * SCALE)
        self._draw.pieslice(box, start, end, fill=fill)

    def star(
        self, x: float, y: float, r: float, points: int, fill: RGB, inner: float = 0.42, turn: float = 0.0
    ) -> None:
        corners = []
        for i in range(2 * points):
            radius = r if i % 2 == 0 else r * inner
            angle = math.pi * i / points + turn
            corners.append((x + radius * math.sin(angle), y - radius * math.cos(angle)))
        self.polygon(corners, fill)

    def shape(self, name: str, x: float, y: float, r: float, fill: RGB) -> None:
        """One of `SHAPES`, of half width `r`, centred at (x, y)."""
        if name == "circle":
            self.circle(x, y, r, fill)
        elif name == "square":
            self.rectangle(x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + 0.9 * r, fill)
        elif name == "triangle":
            self.polygon([(x - r, y + 0.9 * r), (x + r, y + 0.9 * r), (x, y - r)], fill)
        elif name == "cross":
            self.rectangle(x - r, y - r / 3, x + r, y + r / 3, fill)
            self.rectangle(x - r / 3, y - r, x + r / 3, y + r, fill)
        elif name == "diamond":
            self.polygon([(x - 1.1 * r, y), (x, y - 1.1 * r), (x + 1.1 * r, y), (x, y + 1.1 * r)], fill)
        else:
            raise ValueError(f"unknown shape {name!r}; expected one of {', '.join(SHAPES)}")

    def text(self, text: str, x: float, y: float, size: float, face: int, fill: RGB, max_width: float = 60.0) -> None:
        """`text` centred at (x, y); shrunk where it would be wider than `max_width`."""
        pixels = round(size * SCALE)
        width = font(face, pixels).getlength(text)
        if width > max_width * SCALE:
            pixels = int(pixels * max_width * SCALE / width)
        self._draw.text((x * SCALE, y * SCALE), text, font=font(face, pixels), fill=fill, anchor="mm")

    def pixels(self) -> np.ndarray:
        """The picture, (64, 64, 3) uint8."""
        return np.asarray(self.image.reduce(SCALE))


_RAMP = np.linspace(-1.0, 1.0, SIZE, dtype=np.float32)


def develop(rng: Rng, pixels: np.ndarray, noise: float = 6.0, light: float = 10.0) -> np.ndarray:
    """The picture under slightly uneven light and with sensor noise: (64, 64, 3) -> (64, 64, 3) uint8."""
    across, down = rng.uniform(-light, light, 2)
    field = (across * _RAMP[None, :] + down * _RAMP[:, None])[..., None].astype(np.float32)
    grain = rng.standard_normal((SIZE, SIZE, 3), dtype=np.float32)
    return np.clip(pixels + field + noise * grain, 0, 255).astype(np.uint8)
