"""Pretraining dialogues over images and clips: what the renderers show, in plain descriptive words.

A pool item is (renderer name, attributes); its dialogue is drawn anew each time it is seen. The benchmark asks about
the same renderings with other prompts and other label words (breeds, land uses, flower names), and shows other items.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lime.embedded.benchmark import scenes_image, scenes_video
from lime.embedded.benchmark.chance import Rng, pick, shuffled
from lime.embedded.benchmark.drawing import COLORS, SHAPES
from lime.embedded.benchmark.icons import ICONS
from lime.embedded.pretraining.text_corpus import LETTERS, NUMBERS, Dialogue, choice, listed

Attributes = dict[str, Any]
DESCRIBE = ["describe.", "caption:", "what is there ?"]
WATCH = ["describe.", "caption:", "what happens ?"]
# what was done to a clip, in words other than the benchmark's
STATES = dict(
    zip(scenes_video.TAMPERINGS, ["clean", "covered", "replayed", "swapped", "skipped", "inverted"], strict=True)
)


def _number(rng: Rng, question: str, value: int) -> Dialogue:
    """A count, asked for as a word or as a figure."""
    if rng.random() < 0.5:
        return f"{question} in words", NUMBERS[value]
    return f"{question} in figures", str(value)


def _pick_of(rng: Rng, question: str, answer: str, others: list[str], options: int = 0) -> Dialogue:
    """Multiple choice among `answer` and some of `others`."""
    wrong = shuffled(rng, [o for o in others if o != answer])[: (options or int(rng.integers(2, 5))) - 1]
    listed_options = shuffled(rng, [answer, *wrong])
    return choice(rng, question, listed_options, listed_options.index(answer))


Turns = Callable[[Rng, Attributes], list[Dialogue]]
IMAGE_DIALOGUES: dict[str, Turns] = {}
IMAGE_WEIGHTS: dict[str, float] = {}
"""How often each renderer is taken for the pool."""


def shown(weight: float) -> Callable[[Turns], Turns]:
    """Before `_NAME`: the turns about pictures of the renderer NAME, which is taken by this weight."""

    def add(turns: Turns) -> Turns:
        name = turns.__name__.removeprefix("_")
        IMAGE_DIALOGUES[name], IMAGE_WEIGHTS[name] = turns, weight
        return turns

    return add


@shown(3.0)
def _scene(rng: Rng, a: Attributes) -> list[Dialogue]:
    caption = f"{NUMBERS[a['k']]} {a['color']} {a['shape']}"
    if a["k2"]:
        caption += f" and {NUMBERS[a['k2']]} {a['color2']} {a['shape2']}"
    absent = pick(rng, [s for s in SHAPES if s not in (a["shape"], a["shape2"] if a["k2"] else "")])
    asked, there = (a["shape"], True) if rng.random() < 0.5 else (absent, False)
    return [
        (pick(rng, DESCRIBE), caption),
        (f"tell the color of {a['shape']}", a["color"]),
        (f"tell the shape in {a['color']}", a["shape"]),
        _number(rng, f"count {a['shape']}", a["k"]),
        (f"any {asked} ?", "present" if there else "absent"),
        _pick_of(rng, f"color of {a['shape']}", a["color"], list(COLORS)),
        _pick_of(rng, f"shape in {a['color']}", a["shape"], list(SHAPES)),
        _pick_of(rng, f"number of {a['shape']}", str(a["k"]), list("12345")),
    ]


@shown(1.0)
def _texture(rng: Rng, a: Attributes) -> list[Dialogue]:
    return [
        (pick(rng, DESCRIBE), f"{a['kind']} surface"),
        (pick(rng, ["tell the surface", "kind of surface"]), a["kind"]),
        _pick_of(rng, "the surface is", a["kind"], list(scenes_image.TEXTURES)),
    ]


@shown(1.0)
def _digit(rng: Rng, a: Attributes) -> list[Dialogue]:
    return [(pick(rng, DESCRIBE), f"a {NUMBERS[a['value']]}"), _number(rng, "the number", a["value"])]


@shown(2.5)
def _word(rng: Rng, a: Attributes) -> list[Dialogue]:
    letters = " ".join(a["text"])
    return [
        (pick(rng, DESCRIBE), f"letters {a['text']}"),
        (pick(rng, ["letters ?", "copy the letters"]), a["text"]),
        ("spell the letters", letters),
    ]


@shown(2.0)
def _bars(rng: Rng, a: Attributes) -> list[Dialogue]:
    pairs = list(zip(a["colors"], a["heights"], strict=True))
    color, height = pick(rng, pairs)
    color2, height2 = pick(rng, pairs)
    return [
        (pick(rng, DESCRIBE), "bars " + " ".join(f"{c} {NUMBERS[h]}" for c, h in pairs)),
        _number(rng, f"height of {color}", height),
        _number(rng, f"{color2} reaches", height2),
        _number(rng, "how many bars", len(pairs)),
    ]


@shown(1.2)
def _icon(rng: Rng, a: Attributes) -> list[Dialogue]:
    return [
        (pick(rng, DESCRIBE), f"a {a['color']} {a['icon']}"),
        (pick(rng, ["tell the thing", "name it"]), a["icon"]),
        ("tell its color", a["color"]),
        _pick_of(rng, "it is a", a["icon"], list(ICONS)),
    ]


@shown(1.2)
def _flower(rng: Rng, a: Attributes) -> list[Dialogue]:
    return [
        (pick(rng, DESCRIBE), f"a {a['color']} flower, {NUMBERS[a['petals']]} leaves"),
        ("tell its color", a["color"]),
        _number(rng, "count the leaves", a["petals"]),
    ]


@shown(0.6)
def _face(rng: Rng, a: Attributes) -> list[Dialogue]:
    return [
        (pick(rng, DESCRIBE), f"a {a['fur']} head with {a['ears']} ears"),
        ("tell the ears", a["ears"]),
        ("tell the hair", a["fur"]),
    ]


@shown(0.6)
def _cells(rng: Rng, a: Attributes) -> list[Dialogue]:
    core = "present" if a["cluster"] else "absent"
    return [
        (pick(rng, DESCRIBE), f"tissue, dark core {core}" + (", dark corner" if a["elsewhere"] else "")),
        (pick(rng, ["dark core ?", "is the core dark ?"]), core),
    ]


@shown(0.7)
def _lungs(rng: Rng, a: Attributes) -> list[Dialogue]:
    asked = pick(rng, ["left", "right"])
    return [
        (pick(rng, DESCRIBE), f"chest, spot {a['spot']}"),
        ("side of the spot", a["spot"]),
        (f"is a spot on the {asked} ?", "present" if a["spot"] == asked else "absent"),
    ]


@shown(1.5)
def _sign(rng: Rng, a: Attributes) -> list[Dialogue]:
    return [
        (pick(rng, DESCRIBE), f"a {a['color']} board with {a['text']}"),
        (pick(rng, ["the board says", "letters ?"]), a["text"]),
        ("tell the color of the board", a["color"]),
    ]


@shown(0.7)
def _blurred(rng: Rng, a: Attributes) -> list[Dialogue]:
    color = a["color"] if a["readable"] else "unclear"
    return [
        (pick(rng, DESCRIBE), f"a {color} {a['shape']}" if a["readable"] else "unclear"),
        ("tell its color", color),
        ("tell its shape", a["shape"] if a["readable"] else "unclear"),
    ]


def image_dialogue(rng: Rng, name: str, attributes: Attributes) -> list[Dialogue]:
    """One or two turns about an image; the description comes first where it is among them."""
    turns = IMAGE_DIALOGUES[name](rng, attributes)
    chosen = shuffled(rng, turns[1:])[:2]
    return [turns[0], *chosen[:1]] if rng.random() < 0.4 else chosen


# what a clip shows
MOTIONS = {
    "moving": "a {color} {shape} goes {direction}",
    "resizing": "a {color} {shape} is {change}",
    "recoloring": "a {color} {shape} turns {color2}",
    "rotating": "a {color} hand goes {turn}",
    "bouncing": "a {color} ball hops {direction}",
    "passing": "{color} goes right, {color2} goes left",
    "scrolling": "a street, going {direction}",
    "counting": "{color} dots come",
    "filling": "a glass is {change}, {color}",
    "sunrise": "a {color} sun is {change}",
}


def motion(name: str, attributes: Attributes) -> str:
    """What a clip shows, in a phrase."""
    return MOTIONS[name].format(**attributes)


def video_dialogue(rng: Rng, name: str, attributes: Attributes, kind: str) -> list[Dialogue]:
    """One or two turns about a clip that was tampered with by `kind`."""
    state = STATES[kind]
    caption = (pick(rng, WATCH), f"{motion(name, attributes)}, {state}")
    asks = [(pick(rng, ["check the clip", "state of the clip", "was it changed ?"]), state)]
    if rng.random() < 0.4:
        options = shuffled(rng, list(STATES.values()))[: int(rng.integers(3, 7))]
        if state not in options:
            options[int(rng.integers(len(options)))] = state
        asks.append((f"state ? pick one:\n{listed(rng, options)}", LETTERS[options.index(state)]))
    elif rng.random() < 0.6:
        asks.append((pick(rng, ["which motion ?", "tell the motion"]), motion(name, attributes)))
    return [caption, asks[-1]] if rng.random() < 0.3 else shuffled(rng, asks)


def class_labels(name: str, a: Attributes) -> dict[str, int]:
    """Classes for the throw-away heads of the vision stage: head name -> class index (see `HEADS`)."""
    colors, shapes = list(COLORS), list(SHAPES)
    if name == "scene":
        second = {"shape2": shapes.index(a["shape2"]), "color2": colors.index(a["color2"])} if a["k2"] else {}
        first = {"shape": shapes.index(a["shape"]), "color": colors.index(a["color"]), "k": a["k"] - 1, "k2": a["k2"]}
        return first | second
    if name == "texture":
        return {"texture": scenes_image.TEXTURES.index(a["kind"])}
    if name == "digit":
        return {"digit": a["value"]}
    if name == "bars":
        height = dict(zip(a["colors"], a["heights"], strict=True))
        return {f"bar_{c}": height.get(c, 0) for c in colors} | {"bars": len(height) - 2}
    if name == "icon":
        return {"icon": list(ICONS).index(a["icon"]), "icon_color": colors.index(a["color"])}
    if name == "flower":
        return {"petals": a["petals"] - 3, "flower_color": colors.index(a["color"])}
    if name == "face":
        return {"ears": scenes_image.EARS.index(a["ears"]), "fur": list(scenes_image.FURS).index(a["fur"])}
    if name == "cells":
        return {"cluster": int(a["cluster"]), "elsewhere": int(a["elsewhere"])}
    if name == "lungs":
        return {"spot": scenes_image.SPOTS.index(a["spot"])}
    if name == "blurred":
        return {"blurred": colors.index(a["color"]) if a["readable"] else len(colors)}
    if name == "frame":
        return {"upright": int(a["upright"]), "video": list(scenes_video.VIDEOS).index(a["video"])}
    text = a["text"]  # word or sign
    labels = {"sign_color": colors.index(a["color"])} if name == "sign" else {}
    if text.isdigit():
        return labels | {"sign_digit": int(text)}
    return labels | {f"{name}_letter_{i}": ord(c) - 65 for i, c in enumerate(text)}


HEADS: dict[str, int] = (
    {"shape": len(SHAPES), "color": len(COLORS), "k": 5, "k2": 3, "shape2": len(SHAPES), "color2": len(COLORS)}
    | {"texture": len(scenes_image.TEXTURES), "digit": 10, "bars": 3}
    | {f"bar_{c}": 6 for c in COLORS}
    | {"icon": len(ICONS), "icon_color": len(COLORS), "petals": 5, "flower_color": len(COLORS)}
    | {"ears": 2, "fur": len(scenes_image.FURS), "cluster": 2, "elsewhere": 2, "spot": 3, "blurred": len(COLORS) + 1}
    | {"upright": 2, "video": len(scenes_video.VIDEOS), "sign_color": len(COLORS), "sign_digit": 10}
    | {f"{name}_letter_{i}": 26 for name in ("word", "sign") for i in range(3)}
)
