"""The 19 video tasks: which tampering was done to a clip, over 19 differing scenes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lime.embedded.benchmark import clips
from lime.embedded.benchmark import scenes_video as scenes
from lime.embedded.benchmark.items import LETTERS, Item, MiniTasks, Part
from lime.embedded.benchmark.scenes_video import TAMPERINGS, tamper

FPS = 8
FRAMES = 24
QUESTION = "What tampering does this video exhibit?\n\nOptions:\n" + "\n".join(
    f"({letter}) {kind}" for letter, kind in zip(LETTERS, TAMPERINGS, strict=True)
)

SCENES: dict[str, Callable[..., Any]] = {
    "action_sequence": clips.stacking,
    "action_prediction": clips.driving,
    "action_antonym": clips.opening,
    "fine_grained_action": scenes.rotating,
    "unexpected_action": scenes.bouncing,
    "object_existence": scenes.sunrise,
    "object_interaction": scenes.filling,
    "object_shuffle": scenes.passing,
    "moving_direction": scenes.moving,
    "action_localization": clips.sprouting,
    "scene_transition": clips.wiping,
    "action_count": scenes.counting,
    "moving_count": clips.fleet,
    "moving_attribute": scenes.resizing,
    "state_change": scenes.recoloring,
    "character_order": clips.writing,
    "egocentric_navigation": clips.advancing,
    "episodic_reasoning": scenes.scrolling,
    "counterfactual_inference": clips.colliding,
}


def render(rng: np.random.Generator, name: str) -> np.ndarray:
    """One untampered clip of the task's scene, (24, 64, 64, 3) uint8."""
    drawn = SCENES[name](rng, FRAMES)
    frames: np.ndarray = drawn[0] if isinstance(drawn, tuple) else drawn
    return frames


def _add(name: str) -> None:
    @VIDEO_TASKS.task(f"video_test_{name}", LETTERS)
    def draw(rng: np.random.Generator, answer: str, part: Part) -> Item:
        kind = TAMPERINGS[LETTERS.index(answer)]
        frames = render(rng, name)
        source = render(rng, name) if kind == "substitution" else frames
        return Item(QUESTION, tamper(frames, source, kind, rng, FPS))


VIDEO_TASKS = MiniTasks("video")
for _name in SCENES:
    _add(_name)
