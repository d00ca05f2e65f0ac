"""Renderers: shapes, attributes as asked for, and that what the label says can be seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from lime.embedded.benchmark import scenes_image, scenes_video
from lime.embedded.benchmark.drawing import COLORS
from lime.embedded.benchmark.icons import ICONS
from lime.embedded.benchmark.tasks_video import SCENES, render

FIXED: dict[str, list[dict[str, Any]]] = {
    "scene": [{"k": 4, "shape": "cross", "color": "red", "k2": 2, "shape2": "circle", "color2": "blue"}],
    "texture": [{"kind": kind} for kind in scenes_image.TEXTURES],
    "digit": [{"value": value} for value in range(10)],
    "word": [{"text": "FOX"}, {"text": "STOP"}],
    "bars": [{"colors": ["red", "cyan"], "heights": [1, 5]}],
    "icon": [{"name": name, "color": "orange"} for name in ICONS],
    "flower": [{"petals": petals, "color": "white"} for petals in range(3, 8)],
    "face": [{"ears": ears, "fur": fur} for ears in scenes_image.EARS for fur in scenes_image.FURS],
    "cells": [{"cluster": c, "elsewhere": e} for c in (True, False) for e in (True, False)],
    "lungs": [{"spot": spot} for spot in scenes_image.SPOTS],
    "sign": [{"text": "7", "color": "green"}, {"text": "BUS", "color": "white"}],
    "blurred": [{"color": "red", "blur": 0.2}, {"color": "red", "readable": False}],
}


@pytest.mark.parametrize("name", sorted(scenes_image.IMAGES))
def test_images_have_the_attributes_asked_for(name: str) -> None:
    for wanted in [{}, *FIXED[name]]:
        pixels, seen = scenes_image.IMAGES[name](np.random.default_rng(1), **wanted)
        again, _ = scenes_image.IMAGES[name](np.random.default_rng(1), **wanted)
        assert (pixels.shape, pixels.dtype) == ((64, 64, 3), np.uint8)
        assert np.array_equal(pixels, again)
        assert seen.items() >= wanted.items()
        assert pixels.std() > 3


@pytest.mark.parametrize("name", sorted(scenes_video.VIDEOS))
def test_clips_have_the_length_asked_for(name: str) -> None:
    for frames in (24, 8):
        clip, seen = scenes_video.VIDEOS[name](np.random.default_rng(1), frames)
        assert (clip.shape, clip.dtype) == ((frames, 64, 64, 3), np.uint8)
        again, kept = scenes_video.VIDEOS[name](np.random.default_rng(7), frames, **seen)
        assert (again.shape, kept) == (clip.shape, seen)
    with pytest.raises(ValueError, match="at least 2 frames"):
        scenes_video.VIDEOS[name](np.random.default_rng(1), 1)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("texture", {"kind": "velvet"}),
        ("face", {"fur": "green"}),
        ("lungs", {"spot": "up"}),
        ("icon", {"name": "dragon"}),
        ("scene", {"k": 9, "k2": 1}),
        ("bars", {"colors": ["red"], "heights": [1, 2]}),
    ],
)
def test_impossible_attributes_are_refused(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|must be|at most|one height per colour"):
        scenes_image.IMAGES[name](np.random.default_rng(0), **wrong)


def near(pixels: np.ndarray, color: str) -> np.ndarray:
    """Where a picture is close to a colour of the palette, (H, W) bool."""
    return np.abs(pixels.astype(int) - np.array(COLORS[color])).max(-1) < 60


def test_bar_heights_are_to_scale() -> None:
    for height in range(1, 6):
        pixels, _ = scenes_image.bars(np.random.default_rng(height), colors=["blue", "orange"], heights=[height, 3])
        column = near(pixels, "blue")[:, 16]
        assert column.sum() == pytest.approx(12 * height, abs=2)


def test_a_scene_holds_as_many_objects_as_it_says() -> None:
    for k in range(1, 6):
        areas = []
        for seed in range(20):
            pixels, _ = scenes_image.scene(np.random.default_rng(seed), k=k, shape="square", color="yellow", k2=0)
            areas.append(near(pixels, "yellow").sum())
        assert np.mean(areas) == pytest.approx(k * (2 * 0.9 * 7.75) ** 2, rel=0.15)


def test_the_spot_lies_in_the_lung_named() -> None:
    for seed in range(20):
        for spot, inside in (("left", slice(0, 28)), ("right", slice(36, 64)), ("none", None)):
            pixels, _ = scenes_image.lungs(np.random.default_rng(seed), spot=spot)
            bright = pixels[..., 0] > 205
            bright[:, 28:36] = False
            assert (bright.sum() < 5) if inside is None else bright[:, inside].sum() > 0.8 * bright.sum() > 10


def test_the_cluster_is_dark_and_in_the_centre() -> None:
    for seed in range(20):
        for cluster in (True, False):
            pixels, _ = scenes_image.cells(np.random.default_rng(seed), cluster=cluster)
            centre = (pixels[22:42, 22:42].sum(-1) < 330).mean()
            assert (centre > 0.15) if cluster else (centre < 0.12)


def test_unreadable_objects_keep_no_colour() -> None:
    for seed in range(20):
        blurred, seen = scenes_image.blurred(np.random.default_rng(seed), color="red", readable=False)
        assert not seen["readable"]
        assert np.abs(blurred[..., 0].astype(float).mean() - blurred[..., 1].mean()) < 5
        clear, seen = scenes_image.blurred(np.random.default_rng(seed), color="red", readable=True)
        assert seen["readable"]
        assert clear[..., 0].astype(float).max() - clear[..., 1].min() > 100


def shrunk(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) to a flat float vector of the picture at 32x32."""
    small = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)
    return np.asarray(small, np.float32).ravel() / 255


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        ("icon", "name", tuple(ICONS)),
        ("face", "ears", scenes_image.EARS),
        ("lungs", "spot", scenes_image.SPOTS),
        ("texture", "kind", scenes_image.TEXTURES),
        ("digit", "value", tuple(range(10))),
    ],
)
def test_labels_can_be_read_at_32_pixels(name: str, key: str, values: tuple[Any, ...]) -> None:
    """The nearest of 40 examples a class, by edges, is right far more often than chance."""
    rng = np.random.default_rng(0)

    def sample(count: int) -> tuple[np.ndarray, np.ndarray]:
        pictures, labels = [], []
        for label, value in enumerate(values):
            for _ in range(count):
                grey = shrunk(scenes_image.IMAGES[name](rng, **{key: value})[0]).reshape(32, 32, 3).mean(-1)
                edges = np.hypot(*np.gradient(grey))
                edges = edges[:, :32].reshape(16, 2, 16, 2).mean((1, 3))
                pictures.append(edges.ravel() / (np.linalg.norm(edges) + 1e-6))
                labels.append(label)
        return np.stack(pictures), np.array(labels)

    (known, labels), (asked, truth) = sample(40), sample(10)
    right = (labels[(asked @ known.T).argmax(1)] == truth).mean()
    assert right > 1 / len(values) + 0.35


@pytest.mark.parametrize("name", sorted(SCENES))
def test_every_frame_tells_its_place_in_time(name: str) -> None:
    """The most similar other frame is a neighbour in time, and the ends differ more than neighbours do."""
    rng = np.random.default_rng(2)
    for _ in range(4):
        clip = np.stack([shrunk(frame) for frame in render(rng, name)])
        distance = np.abs(clip[:, None] - clip[None]).mean(-1)
        steps = np.diagonal(distance, 1)
        assert distance[0, -1] > 2 * np.median(steps)
        np.fill_diagonal(distance, np.inf)
        away = np.abs(distance.argmin(1) - np.arange(len(clip)))
        assert (away <= 2).mean() > 0.9


@pytest.mark.parametrize("name", sorted(SCENES))
def test_up_can_be_told_from_down(name: str) -> None:
    rng = np.random.default_rng(4)
    for _ in range(4):
        rows = render(rng, name).mean((0, 2, 3))
        assert np.abs(rows - rows[::-1]).mean() > 8
