"""Renderers shared by the pretraining of the embedded backbones and by the embedded benchmark.

Images `f(rng, **attributes) -> ((64, 64, 3) uint8, attributes)`, videos `f(rng, frames=24, **attributes) ->
((T, 64, 64, 3) uint8, attributes)`. Attributes may be fixed by keyword, so that labels can be balanced.

Which picture each image task of the benchmark shows (the skill beneath it):

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

The video tasks are all about tampering (`tamper`, `TAMPERINGS`) with clips of steady change (`VIDEOS`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lime.embedded.benchmark.drawing import COLORS, SHAPES
from lime.embedded.benchmark.icons import ICONS, icon
from lime.embedded.benchmark.scenes_image import (
    EARS,
    FURS,
    SPOTS,
    TEXTURES,
    bars,
    blurred,
    cells,
    digit,
    face,
    flower,
    lungs,
    scene,
    sign,
    texture,
    word,
)
from lime.embedded.benchmark.scenes_video import (
    DIRECTIONS,
    TAMPERINGS,
    VIDEOS,
    bouncing,
    counting,
    filling,
    moving,
    passing,
    recoloring,
    resizing,
    rotating,
    scrolling,
    sunrise,
    tamper,
)

IMAGES: dict[str, Callable[..., tuple[np.ndarray, dict[str, Any]]]] = {
    f.__name__: f for f in (scene, texture, digit, word, bars, icon, flower, face, cells, lungs, sign, blurred)
}

__all__ = [
    "COLORS",
    "DIRECTIONS",
    "EARS",
    "FURS",
    "ICONS",
    "IMAGES",
    "SHAPES",
    "SPOTS",
    "TAMPERINGS",
    "TEXTURES",
    "VIDEOS",
    "bars",
    "blurred",
    "bouncing",
    "cells",
    "counting",
    "digit",
    "face",
    "filling",
    "flower",
    "icon",
    "lungs",
    "moving",
    "passing",
    "recoloring",
    "resizing",
    "rotating",
    "scene",
    "scrolling",
    "sign",
    "sunrise",
    "tamper",
    "texture",
    "word",
]
