"""Video renderers: each `f(rng, frames=24, **attributes) -> ((T, 64, 64, 3) uint8, attributes)`.

Every clip shows one steady change from its first frame to its last, over a backdrop with sky above and floor
below. So each frame tells where in time it stands (repeated or missing frames show as a jump), and up from
down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from lime.embedded.benchmark.chance import Rng, pick, pick_other
from lime.embedded.benchmark.drawing import COLOR_NAMES, RGB, SCALE, SHAPES, SIZE, Pen, mix, shade
from lime.embedded.benchmark.icons import ICONS

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
TURNS = ("clockwise", "counterclockwise")
TAMPERINGS = ("original", "masking", "repetition", "substitution", "dropping", "rotate")
FLOOR = 50.0

Clip = tuple[np.ndarray, dict[str, Any]]


def backdrop(rng: Rng, sky: RGB | None = None, floor: RGB | None = None, horizon: float = FLOOR) -> Image.Image:
    """Sky growing lighter towards the top over a flat, darker floor."""
    r, g, b = sky or tuple(rng.integers(45, 95, 3).tolist())
    base = np.array((r, g, b), np.float32)
    height, line = SIZE * SCALE, round(horizon * SCALE)
    column = base[None] * np.linspace(1.35, 0.75, height, dtype=np.float32)[:, None]
    ground = floor or mix(pick(rng, ((30, 22, 12), (12, 34, 16), (24, 24, 28))), (0, 0, 0), float(rng.uniform(0, 0.3)))
    column[line:] = ground
    column[line : line + SCALE] = 190
    pixels = np.broadcast_to(column[:, None], (height, height, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def film(
    rng: Rng, frames: int, scenery: Image.Image, draw: Callable[[Pen, float], None], light: float | None = None
) -> np.ndarray:
    """Draw each frame over `scenery`, `draw(pen, progress)` with progress from 0 to 1; (T, 64, 64, 3) uint8.

    The exposure drifts steadily over the clip, by `light` to either side (random sign and size by default).
    """
    if frames < 2:
        raise ValueError(f"a clip needs at least 2 frames, got {frames}")
    drift = float(rng.uniform(0.2, 0.3)) * (1 if rng.random() < 0.5 else -1) if light is None else light
    clip = np.empty((frames, SIZE, SIZE, 3), np.uint8)
    grain = rng.integers(-4, 5, (SIZE, SIZE, 3), dtype=np.int16)
    for t in range(frames):
        progress = t / (frames - 1)
        pen = Pen(scenery.copy())
        draw(pen, progress)
        exposed = pen.pixels() * np.float32(0.9 + drift * (2 * progress - 1)) + grain
        clip[t] = np.clip(exposed, 0, 255)
    return clip


def _thing(rng: Rng, shape: str | None, color: str | None) -> tuple[str, str, RGB]:
    shape, color = shape or pick(rng, SHAPES), color or pick(rng, COLOR_NAMES)
    return shape, color, shade(rng, color, 12)


def moving(
    rng: Rng, frames: int = 24, *, direction: str | None = None, shape: str | None = None, color: str | None = None
) -> Clip:
    """One object crosses the whole picture: left, right, up or down."""
    direction = direction or pick(rng, tuple(DIRECTIONS))
    shape, color, fill = _thing(rng, shape, color)
    (dx, dy), r, across = DIRECTIONS[direction], rng.uniform(8, 11), rng.uniform(20, 44)

    def draw(pen: Pen, u: float) -> None:
        step = (2 * u - 1) * (32 - 0.8 * r)
        pen.shape(shape, 32 + dx * step if dx else across, 32 + dy * step if dy else across, r, fill)

    return film(rng, frames, backdrop(rng), draw), {"direction": direction, "shape": shape, "color": color}


def resizing(
    rng: Rng, frames: int = 24, *, change: str | None = None, shape: str | None = None, color: str | None = None
) -> Clip:
    """One object standing on the floor: growing or shrinking."""
    change = change or pick(rng, ("growing", "shrinking"))
    shape, color, fill = _thing(rng, shape, color)
    x, low, high = rng.uniform(27, 37), rng.uniform(3, 4), rng.uniform(22, 25)

    def draw(pen: Pen, u: float) -> None:
        r = low + (high - low) * (u if change == "growing" else 1 - u)
        pen.shape(shape, x, FLOOR + 4 - r, r, fill)

    return film(rng, frames, backdrop(rng), draw), {"change": change, "shape": shape, "color": color}


def recoloring(
    rng: Rng, frames: int = 24, *, shape: str | None = None, color: str | None = None, color2: str | None = None
) -> Clip:
    """One large object whose colour turns steadily from `color` into `color2`."""
    color = color or pick_other(rng, COLOR_NAMES, color2)
    color2 = color2 or pick_other(rng, COLOR_NAMES, color)
    shape, _, first = _thing(rng, shape, color)
    last, x, r = shade(rng, color2, 12), rng.uniform(26, 38), rng.uniform(18, 21)

    def draw(pen: Pen, u: float) -> None:
        pen.shape(shape, x, FLOOR + 2 - r, r, mix(first, last, u))

    return film(rng, frames, backdrop(rng), draw), {"shape": shape, "color": color, "color2": color2}


def rotating(rng: Rng, frames: int = 24, *, turn: str | None = None, color: str | None = None) -> Clip:
    """A clock hand sweeping most of the dial, clockwise or counterclockwise, leaving its sector coloured."""
    turn, color = turn or pick(rng, TURNS), color or pick(rng, COLOR_NAMES)
    fill, sweep, start = shade(rng, color, 12), rng.uniform(290, 330), rng.uniform(-110, -70)
    x, y, r = rng.uniform(29, 35), rng.uniform(26, 29), rng.uniform(22, 24)
    sign = 1 if turn == "clockwise" else -1

    def draw(pen: Pen, u: float) -> None:
        pen.rectangle(x - 3, y, x + 3, FLOOR + 6, (120, 120, 120))
        pen.circle(x, y, r + 2, (200, 200, 200))
        pen.circle(x, y, r, (25, 25, 25))
        now = start + sign * max(4.0, sweep * u)
        pen.pie(x, y, r, min(start, now), max(start, now), fill)
        angle = math.radians(now)
        pen.line([(x, y), (x + r * math.cos(angle), y + r * math.sin(angle))], (255, 255, 255), 2.5)

    return film(rng, frames, backdrop(rng), draw), {"turn": turn, "color": color}


def bouncing(rng: Rng, frames: int = 24, *, direction: str | None = None, color: str | None = None) -> Clip:
    """A ball bounces along the floor, to the left or to the right."""
    direction, color = direction or pick(rng, ("left", "right")), color or pick(rng, COLOR_NAMES)
    fill, r, hops, high = shade(rng, color, 12), rng.uniform(7, 9), pick(rng, (2, 3)), rng.uniform(26, 34)
    dx = DIRECTIONS[direction][0]

    def draw(pen: Pen, u: float) -> None:
        y = FLOOR - r - high * abs(math.sin(math.pi * hops * u))
        pen.circle(32 + dx * (2 * u - 1) * (32 - r), y, r, fill)

    return film(rng, frames, backdrop(rng), draw), {"direction": direction, "color": color}


def passing(
    rng: Rng,
    frames: int = 24,
    *,
    color: str | None = None,
    color2: str | None = None,
    shape: str | None = None,
    shape2: str | None = None,
) -> Clip:
    """Two objects cross in opposite directions, one above the other: `color` right, `color2` left."""
    color = color or pick_other(rng, COLOR_NAMES, color2)
    color2 = color2 or pick_other(rng, COLOR_NAMES, color)
    shape, _, first = _thing(rng, shape, color)
    shape2, _, second = _thing(rng, shape2, color2)
    r, upper = rng.uniform(7, 9), rng.random() < 0.5
    y, y2 = (18, 42) if upper else (42, 18)

    def draw(pen: Pen, u: float) -> None:
        step = (2 * u - 1) * (32 - r)
        pen.shape(shape, 32 + step, y, r, first)
        pen.shape(shape2, 32 - step, y2, r, second)

    return film(rng, frames, backdrop(rng), draw), {"color": color, "color2": color2, "shape": shape, "shape2": shape2}


def scrolling(rng: Rng, frames: int = 24, *, direction: str | None = None) -> Clip:
    """A landscape with a tower, houses and trees passes by; `direction` is the camera's, left or right."""
    direction = direction or pick(rng, ("left", "right"))
    span, tower = rng.uniform(56, 66), shade(rng, pick(rng, COLOR_NAMES), 12)
    places = [
        (x + rng.uniform(-4, 4), pick(rng, ("tree", "house")), shade(rng, pick(rng, COLOR_NAMES), 12))
        for x in range(-60, 130, 32)
    ]

    def draw(pen: Pen, u: float) -> None:
        shift = span * (0.5 - u) * (1 if direction == "right" else -1)
        for x, name, fill in places:
            ICONS[name](pen, x + shift, FLOOR - 8, 10, mix(fill, (60, 60, 60), 0.45))
        pen.rectangle(32 + shift - 6, 8, 32 + shift + 6, FLOOR + 4, tower)
        pen.polygon([(32 + shift - 8, 10), (32 + shift + 8, 10), (32 + shift, 0)], (235, 235, 235))

    return film(rng, frames, backdrop(rng), draw), {"direction": direction}


def counting(rng: Rng, frames: int = 24, *, count: int | None = None, color: str | None = None) -> Clip:
    """Dots appear one after another, row by row, up to `count` (8, 12 or 16) of them."""
    count, color = count or pick(rng, (8, 12, 16)), color or pick(rng, COLOR_NAMES)
    fill, r = shade(rng, color, 12), rng.uniform(5.2, 6.2)
    rows = count // 4

    def draw(pen: Pen, u: float) -> None:
        for i in range(max(1, math.ceil(count * u))):
            pen.circle(9.5 + 15 * (i % 4), 9 + (14 if rows == 4 else 44 / rows) * (i // 4), r, fill)

    return film(rng, frames, backdrop(rng, horizon=56), draw), {"count": count, "color": color}


def filling(rng: Rng, frames: int = 24, *, change: str | None = None, color: str | None = None) -> Clip:
    """A glass on the floor is filled or emptied."""
    change, color = change or pick(rng, ("filling", "emptying")), color or pick(rng, COLOR_NAMES)
    fill, x, half, top = shade(rng, color, 12), rng.uniform(27, 37), rng.uniform(15, 19), rng.uniform(5, 9)

    def draw(pen: Pen, u: float) -> None:
        level = FLOOR + 5 - (FLOOR + 2 - top) * (u if change == "filling" else 1 - u)
        pen.rectangle(x - half, top, x + half, FLOOR + 8, (18, 18, 22))
        pen.rectangle(x - half, level, x + half, FLOOR + 5, fill)
        for side in (-1, 1):
            pen.rectangle(x + side * half - 1.5, top, x + side * half + 1.5, FLOOR + 8, (215, 215, 225))
        pen.rectangle(x - half, FLOOR + 5, x + half, FLOOR + 8, (215, 215, 225))

    return film(rng, frames, backdrop(rng), draw), {"change": change, "color": color}


def sunrise(rng: Rng, frames: int = 24, *, change: str | None = None, color: str | None = None) -> Clip:
    """A sun rises over the horizon or sets behind it, the sky growing lighter or darker."""
    change = change or pick(rng, ("rising", "setting"))
    color = color or pick(rng, ("yellow", "orange", "red", "white"))
    fill, x, r = shade(rng, color, 12), rng.uniform(18, 46), rng.uniform(9, 11)
    scenery = backdrop(rng)
    ground = scenery.crop((0, round(FLOOR * SCALE), SIZE * SCALE, SIZE * SCALE))

    def draw(pen: Pen, u: float) -> None:
        pen.circle(x, FLOOR + r - (FLOOR + r - 10) * (u if change == "rising" else 1 - u), r, fill)
        pen.image.paste(ground, (0, round(FLOOR * SCALE)))

    drift = 0.32 if change == "rising" else -0.32
    return film(rng, frames, scenery, draw, drift), {"change": change, "color": color}


VIDEOS: dict[str, Callable[..., Clip]] = {
    f.__name__: f
    for f in (moving, resizing, recoloring, rotating, bouncing, passing, scrolling, counting, filling, sunrise)
}


def tamper(frames: np.ndarray, other_clip: np.ndarray, kind: str, rng: Rng, fps: int = 8) -> np.ndarray:
    """Tamper with the middle second of a clip, as MVTamperBench does.

    The second starts at half the frames less half a second's. `masking` blackens it, `rotate` turns it by 180
    degrees, `repetition` plays it twice, `dropping` leaves it out, `substitution` replaces it by one second
    from a random place of `other_clip`; `original` changes nothing.

    Args:
        frames: (T, H, W, 3) uint8. other_clip: (U, H, W, 3) uint8, U >= fps. fps: frames per second.

    Returns:
        A new array: (T, H, W, 3); (T + fps, …) for `repetition`, (T - fps, …) for `dropping`.

    Raises:
        ValueError: unknown kind, or a clip shorter than one second.
    """
    if kind not in TAMPERINGS:
        raise ValueError(f"unknown tampering {kind!r}; expected one of {', '.join(TAMPERINGS)}")
    if len(frames) < fps or len(other_clip) < fps:
        raise ValueError(f"both clips need at least one second ({fps} frames), got {len(frames)} and {len(other_clip)}")
    start = len(frames) // 2 - fps // 2
    second = slice(start, start + fps)
    if kind == "repetition":
        return np.concatenate([frames[: second.stop], frames[second], frames[second.stop :]])
    if kind == "dropping":
        return np.concatenate([frames[:start], frames[second.stop :]])
    result = frames.copy()
    if kind == "masking":
        result[second] = 0
    elif kind == "rotate":
        result[second] = frames[second, ::-1, ::-1]
    elif kind == "substitution":
        place = int(rng.integers(len(other_clip) - fps + 1))
        result[second] = other_clip[place : place + fps]
    return result
