"""The 14 image tasks: visual question answering and classification over the renderers of `scenes_image`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lime.embedded.benchmark import scenes_image as scenes
from lime.embedded.benchmark.chance import Rng, pick, pick_other
from lime.embedded.benchmark.drawing import COLOR_NAMES, SHAPES
from lime.embedded.benchmark.icons import icon
from lime.embedded.benchmark.items import BEST, LETTERS, Item, MiniTasks, Part, choice
from lime.embedded.benchmark.sentences import READABLE, place_correct

IMAGE_TASKS = MiniTasks("image")
task = IMAGE_TASKS.task

DIGITS = tuple("0123456789")
PLURALS = {shape: f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPES}

FOUND_IN = {  # place: the icons found there
    "sky": ("sun", "moon", "star"),
    "forest": ("tree",),
    "water": ("fish", "boat"),
    "road": ("car",),
    "kitchen": ("cup",),
    "garden": ("flower",),
    "door": ("key",),
    "street": ("house",),
}
OBJECTS = ("sun", "tree", "house", "fish", "car", "boat", "key", "cup", "flower", "umbrella")
LAND_USE = {  # label: texture
    "lake": "plain",
    "crop": "rows",
    "highway": "columns",
    "river": "slanted",
    "residential": "checks",
    "industrial": "dots",
    "forest": "grain",
    "pasture": "fade",
}
FLOWERS = {  # name: petals and their colour
    "tulip": (3, "red"),
    "lily": (3, "yellow"),
    "iris": (3, "purple"),
    "lotus": (3, "white"),
    "poppy": (6, "red"),
    "rose": (6, "yellow"),
    "violet": (6, "purple"),
    "daisy": (6, "white"),
}
BREEDS = {  # name: ears and fur
    "bengal": ("pointed", "orange"),
    "persian": ("pointed", "white"),
    "siamese": ("pointed", "gray"),
    "birman": ("pointed", "brown"),
    "boxer": ("floppy", "orange"),
    "spaniel": ("floppy", "white"),
    "pug": ("floppy", "gray"),
    "beagle": ("floppy", "brown"),
}
UNANSWERABLE = "unanswerable"
SIGN_WORDS = READABLE[: len(READABLE) // 2]
TEXT_WORDS = READABLE[len(READABLE) // 2 :]


def _choice(rng: Rng, letter: str, question: str, right: str, others: Sequence[str], media: np.ndarray) -> Item:
    wrong = [others[i] for i in rng.permutation(len(others))[:3]]
    options, _ = place_correct(rng, right, wrong, LETTERS.index(letter))
    return Item(choice(BEST, question, options), media)


@task("image_test_chartqa", "12345")
def _chartqa(rng: Rng, answer: str, part: Part) -> Item:
    n = int(rng.integers(2, 5))
    colors = [COLOR_NAMES[i] for i in rng.permutation(len(COLOR_NAMES))[:n]]
    heights = rng.integers(1, 6, n).tolist()
    asked = int(rng.integers(n))
    heights[asked] = int(answer)
    media, _ = scenes.bars(rng, colors=colors, heights=heights)
    return Item(f"What is the value of the {colors[asked]} bar? Answer with a number.", media)


@task("image_test_okvqa", FOUND_IN)
def _okvqa(rng: Rng, answer: str, part: Part) -> Item:
    media, _ = icon(rng, name=pick(rng, FOUND_IN[answer]))
    return Item("Where is the object in the image usually found? Answer with one word.", media)


@task("image_test_scienceqa", "ABCD")
def _scienceqa(rng: Rng, answer: str, part: Part) -> Item:
    names: Sequence[str]
    if rng.random() < 0.5:
        media, seen = scenes.texture(rng)
        right, names, question = seen["kind"], scenes.TEXTURES, "Which pattern does the surface have?"
    else:
        media, seen = scenes.scene(rng, k2=0)
        right, names, question = seen["shape"], SHAPES, "Which shape does the image show?"
    return _choice(rng, answer, question, right, [name for name in names if name != right], media)


@task("image_test_seed_bench", "ABCD")
def _seed_bench(rng: Rng, answer: str, part: Part) -> Item:
    names: Sequence[str]
    kind = int(rng.integers(3))
    media, seen = scenes.scene(rng, k2=int(rng.integers(1, 3)))
    if kind == 0:
        right, names = seen["color"], COLOR_NAMES
        question = f"Which color do the {PLURALS[seen['shape']]} have?"
    elif kind == 1:
        right, names, question = seen["shape"], SHAPES, f"Which shape is {seen['color']}?"
    else:
        right, names = str(seen["k"]), ("1", "2", "3", "4", "5")
        question = f"How many {PLURALS[seen['shape']]} are in the image?"
    return _choice(rng, answer, question, right, [name for name in names if name != right], media)


@task("image_test_text_recognition", TEXT_WORDS)
def _text_recognition(rng: Rng, answer: str, part: Part) -> Item:
    return Item("Read the text in the image. Answer with the text only.", scenes.word(rng, text=answer)[0])


@task("image_test_textvqa", (*SIGN_WORDS, *DIGITS))
def _textvqa(rng: Rng, answer: str, part: Part) -> Item:
    media, _ = scenes.sign(rng, text=answer)
    return Item("What is written on the sign? Answer with the word or number.", media)


@task("image_test_vizwiz_vqa", (*COLOR_NAMES, UNANSWERABLE))
def _vizwiz_vqa(rng: Rng, answer: str, part: Part) -> Item:
    question = "What color is this object? If the image is too blurred, answer unanswerable."
    if answer == UNANSWERABLE:
        return Item(question, scenes.blurred(rng, readable=False)[0])
    return Item(question, scenes.blurred(rng, color=answer, readable=True)[0])


@task("image_test_vqa_rad", ("yes", "no"))
def _vqa_rad(rng: Rng, answer: str, part: Part) -> Item:
    side = pick(rng, ("left", "right"))
    spot = side if answer == "yes" else pick_other(rng, scenes.SPOTS, side)
    question = f"Is there a bright spot in the lung on the {side}? Answer yes or no."
    return Item(question, scenes.lungs(rng, spot=spot)[0])


@task("image_test_caltech101", OBJECTS)
def _caltech101(rng: Rng, answer: str, part: Part) -> Item:
    question = "Classify the object in the image. Answer with the name of the category."
    return Item(question, icon(rng, name=answer)[0])


@task("image_test_eurosat", LAND_USE)
def _eurosat(rng: Rng, answer: str, part: Part) -> Item:
    question = "Which land use does the satellite image show? Answer with the label."
    return Item(question, scenes.texture(rng, kind=LAND_USE[answer])[0])


@task("image_test_flowers102", FLOWERS)
def _flowers102(rng: Rng, answer: str, part: Part) -> Item:
    petals, color = FLOWERS[answer]
    return Item("Which flower is this? Answer with its name.", scenes.flower(rng, petals=petals, color=color)[0])


@task("image_test_pets", BREEDS)
def _pets(rng: Rng, answer: str, part: Part) -> Item:
    ears, fur = BREEDS[answer]
    return Item("Which breed is this pet? Answer with the breed.", scenes.face(rng, ears=ears, fur=fur)[0])


@task("image_test_svhn", DIGITS)
def _svhn(rng: Rng, answer: str, part: Part) -> Item:
    return Item("Which digit is in the image? Answer with a number.", scenes.digit(rng, value=int(answer))[0])


@task("image_test_camelyon", ("yes", "no"))
def _camelyon(rng: Rng, answer: str, part: Part) -> Item:
    media, _ = scenes.cells(rng, cluster=answer == "yes")
    return Item("Is there tumor tissue in the center of the image? Answer yes or no.", media)
