"""Text skills of the embedded benchmark: small worlds of sentences with labels that are true by construction.

Each skill draws one item, a dataclass of plain values; the prompts around it belong to the caller. The same skills
serve two callers that must not share items: the procedural MMT-47 (`side="benchmark"`) and the pretraining of the
embedded backbones (`side="pretraining"`). Every item has a canonical key, and a hash of the key decides on which side
it may appear: one item in four belongs to the benchmark. Knowledge (a banana is yellow) is common to both sides, as it
is between any pretraining corpus and any benchmark; the concrete item (the sentence, the question with its options) is
not. The words are in world.yaml.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import yaml

from lime.embedded.benchmark.chance import Rng, pick, shuffled

Side = Literal["benchmark", "pretraining"]

_WORLD = yaml.load(Path(__file__).with_name("world.yaml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
POSITIVE, NEGATIVE, WORKS, ADVERBS = (_WORLD[name] for name in ("positive", "negative", "works", "adverbs"))
ANIMALS, PEOPLE, PLACES, NAMES = (_WORLD[name] for name in ("animals", "people", "places", "names"))
ADJECTIVE_PAIRS, VERB_PAIRS, FITS = (_WORLD[name] for name in ("adjective_pairs", "verb_pairs", "fits"))
READABLE: list[str] = _WORLD["readable"]
RELATIONS = ("color", "kind", "place", "use")
FACTS: dict[str, dict[str, str]] = {
    thing: dict(zip(RELATIONS, values, strict=True)) for thing, values in _WORLD["facts"].items()
}
VALUES: dict[str, list[str]] = {r: sorted({fact[r] for fact in FACTS.values()}) for r in RELATIONS}


class Drawn:
    """An item of a skill. `key` identifies it, `topic` names what it is about where a skill has several."""

    topic = ""

    @property
    def key(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class Labelled(Drawn):
    """A text and whether the property in question holds of it."""

    text: str
    label: bool

    @property
    def key(self) -> str:
        return self.text


@dataclass(frozen=True)
class Pair(Drawn):
    """Two sentences about one event and one in which `changes` of its five parts (0 to 5) are others."""

    first: str
    second: str
    changes: int

    @property
    def label(self) -> bool:
        """Whether both say the same."""
        return self.changes == 0

    @property
    def key(self) -> str:
        return f"{self.first}|{self.second}"


@dataclass(frozen=True)
class Grounded(Drawn):
    """A question, a sentence, and whether the sentence answers it; `answer` is the word that does."""

    question: str
    sentence: str
    label: bool
    answer: str

    @property
    def key(self) -> str:
        return f"{self.question}|{self.sentence}"


@dataclass(frozen=True)
class Choice(Drawn):
    """A context, its options in order, and which of them is right. `topic` names the relation asked for."""

    context: str
    options: tuple[str, ...]
    correct: int
    topic: str = ""

    @property
    def answer(self) -> str:
        return self.options[self.correct]

    @property
    def key(self) -> str:
        return f"{self.topic}|{self.context}|{'/'.join(self.options)}"


@dataclass(frozen=True)
class Passage(Drawn):
    """A passage of a few statements and one statement about it that is true or false."""

    text: str
    statement: tuple[str, str]
    label: bool

    @property
    def key(self) -> str:
        return f"{self.text}|{self.statement}"


D = TypeVar("D", bound=Drawn)


def side_of(key: str) -> Side:
    """The side an item belongs to, from a hash of its canonical key: one in four is the benchmark's."""
    return "benchmark" if zlib.crc32(key.encode()) % 4 == 0 else "pretraining"


def skill(draw: Callable[..., D]) -> Callable[..., D]:
    """Makes `draw(rng, …)` a skill: it takes `side` as well, and draws until the item falls on it."""

    @functools.wraps(draw)
    def on_side(rng: Rng, *, side: Side, **wanted: object) -> D:
        for _ in range(10_000):
            item = draw(rng, **wanted)
            if side_of(item.key) == side:
                return item
        raise RuntimeError(f"no item on side {side!r} in 10000 draws of {draw.__name__}")

    return on_side


def _given_or_drawn(rng: Rng, label: bool | None) -> bool:
    return bool(rng.integers(2)) if label is None else label


# ------------------------------------------------------------------------------------------------ single sentences
@skill
def sentiment(rng: Rng, label: bool | None = None) -> Labelled:
    """A short review; `label` is true where it is favourable. A quarter of them negate (`not good`)."""
    positive = _given_or_drawn(rng, label)
    negated = rng.random() < 0.25
    a, b = shuffled(rng, POSITIVE if positive != negated else NEGATIVE)[:2]
    noun, adverb = pick(rng, WORKS), pick(rng, ADVERBS)
    if negated:
        forms = [f"the {noun} was not {a}", f"i did not find the {noun} {a}", f"this {noun} is never {a}"]
    else:
        forms = [
            f"the {noun} was {adverb} {a} and {b}",
            f"i found this {noun} {adverb} {a}",
            f"what a {a}, {b} {noun}",
            f"{adverb} {a} {noun}, i must say",
            f"a {a} and {b} {noun}",
        ]
    return Labelled(pick(rng, forms), positive)


@dataclass(frozen=True)
class Event:
    """Who did what to whom, and where: indices into the word lists."""

    adjective: int
    animal: int
    verb: int
    person: int
    place: int

    @staticmethod
    def draw(rng: Rng) -> Event:
        return Event(*(int(rng.integers(len(w))) for w in (ADJECTIVE_PAIRS, ANIMALS, VERB_PAIRS, PEOPLE, PLACES)))

    def changed(self, rng: Rng, count: int) -> Event:
        """The event with exactly `count` of its five parts replaced."""
        values = dict(vars(self))
        for name in shuffled(rng, list(values))[:count]:
            while values[name] == getattr(self, name):
                values[name] = getattr(Event.draw(rng), name)
        return Event(**values)

    def say(self, rng: Rng, *, vary: bool) -> str:
        """The event as a sentence; `vary` draws synonyms and word order."""
        adjective = ADJECTIVE_PAIRS[self.adjective][int(rng.integers(2)) if vary else 0]
        verb = VERB_PAIRS[self.verb][int(rng.integers(2)) if vary else 0]
        animal, person, place = ANIMALS[self.animal], PEOPLE[self.person], PLACES[self.place]
        if vary and rng.random() < 0.4:
            return f"in the {place} the {adjective} {animal} {verb} the {person}"
        return f"the {adjective} {animal} {verb} the {person} in the {place}"


def swapped(rng: Rng, text: str) -> str:
    """The text with two neighbouring words, which differ, exchanged."""
    words = text.split()
    at = int(rng.integers(len(words) - 1))
    while words[at] == words[at + 1]:
        at = int(rng.integers(len(words) - 1))
    words[at], words[at + 1] = words[at + 1], words[at]
    return " ".join(words)


@skill
def acceptability(rng: Rng, label: bool | None = None) -> Labelled:
    """A sentence; `label` is false where two neighbouring words were exchanged, so that the order is wrong."""
    good = _given_or_drawn(rng, label)
    text = Event.draw(rng).say(rng, vary=True)
    return Labelled(text if good else swapped(rng, text), good)


# ------------------------------------------------------------------------------------------------ sentence pairs
@skill
def paraphrase(rng: Rng, label: bool | None = None) -> Pair:
    """Two sentences: the same event in synonyms and another order, or one that differs in one or two parts."""
    same = _given_or_drawn(rng, label)
    event = Event.draw(rng)
    changes = 0 if same else int(rng.integers(1, 3))
    second = event.changed(rng, changes) if changes else event
    return Pair(event.say(rng, vary=True), second.say(rng, vary=True), changes)


@skill
def similarity(rng: Rng, changes: int | None = None) -> Pair:
    """Two sentences of one form that differ in 0 to 5 of their five content words."""
    count = int(rng.integers(6)) if changes is None else changes
    event = Event.draw(rng)
    return Pair(event.say(rng, vary=False), event.changed(rng, count).say(rng, vary=False), count)


@skill
def answers_question(rng: Rng, label: bool | None = None) -> Grounded:
    """Does the sentence say where somebody is, or what colour something has, as the question asks?"""
    yes = _given_or_drawn(rng, label)
    people, places = shuffled(rng, PEOPLE), shuffled(rng, PLACES)
    who, where = people[0], places[0]
    question = pick(rng, [f"where is the {who} ?", f"where did the {who} go ?"])
    if yes:
        sentence = pick(rng, [f"the {who} went to the {where}", f"the {who} is in the {where}"])
    elif rng.random() < 0.5:  # the right place of the wrong person
        sentence = pick(rng, [f"the {people[1]} went to the {where}", f"the {people[1]} is in the {where}"])
    else:  # the right person, but nothing about a place
        a = pick(rng, POSITIVE + NEGATIVE)
        sentence = pick(rng, [f"the {who} saw a {pick(rng, ANIMALS)}", f"the {who} was {a}"])
    return Grounded(question, sentence, yes, where)


# ------------------------------------------------------------------------------------------------ choices
def place_correct(rng: Rng, answer: str, wrong: Sequence[str], correct: int | None) -> tuple[tuple[str, ...], int]:
    """Options with `answer` at position `correct` (drawn if None) among `wrong` in random order."""
    at = int(rng.integers(len(wrong) + 1)) if correct is None else correct
    options = shuffled(rng, list(wrong))
    options.insert(at, answer)
    return tuple(options), at


@skill
def fact(rng: Rng, options: int = 4, correct: int | None = None) -> Choice:
    """One relation of one thing: `context` is the thing, `topic` the relation, the options values of the relation."""
    thing, relation = pick(rng, list(FACTS)), pick(rng, RELATIONS)
    answer = FACTS[thing][relation]
    wrong = shuffled(rng, [v for v in VALUES[relation] if v != answer])[: options - 1]
    return Choice(thing, *place_correct(rng, answer, wrong, correct), relation)


@skill
def two_facts(rng: Rng, options: int = 4, correct: int | None = None) -> Choice:
    """Which thing has this colour and is of this kind? Wrong options share one of the two where possible.

    `context` is "<color> <kind>", the options are things; exactly one has both.
    """
    thing = pick(rng, list(FACTS))
    color, kind = FACTS[thing]["color"], FACTS[thing]["kind"]
    near: list[str] = []
    far: list[str] = []
    for name, facts in FACTS.items():
        matches = (facts["color"] == color) + (facts["kind"] == kind)
        if matches < 2:
            (near if matches else far).append(name)
    wrong = (shuffled(rng, near)[: options - 2] + shuffled(rng, far))[: options - 1]
    return Choice(f"{color} {kind}", *place_correct(rng, thing, wrong, correct), "thing")


def _of_table(topic: str, options: int, subjects: Sequence[str] = ("",)) -> Callable[..., Choice]:
    """The skill of a table of world.yaml: `context` is a row's first part, the options second parts."""
    table: list[list[str]] = _WORLD[f"{topic}s"]

    def draw(rng: Rng, options: int = options, correct: int | None = None) -> Choice:
        context, answer = pick(rng, table)
        wrong = shuffled(rng, sorted({a for _, a in table if a != answer}))[: options - 1]
        subject = pick(rng, subjects)
        return Choice(f"{subject} {context}".strip(), *place_correct(rng, answer, wrong, correct), topic)

    return skill(draw)


solution = _of_table("solution", 2)
"""`context` is a goal ("cut the paper"), the options are things of which one serves it."""
ending = _of_table("ending", 4, [f"the {person}" for person in PEOPLE])
"""`context` is the beginning of an event with its subject ("the girl opened the book"), the options continue it."""
feeling = _of_table("feeling", 3, NAMES)
"""`context` says what somebody went through ("tom won the race"), the options how they feel."""


@skill
def fit(rng: Rng, correct: int | None = None) -> Choice:
    """Pronoun resolution: "the ball does not fit in the box because it is too big": what is too big?

    The options are the thing and its holder in random order; `topic` is "big" or "small".
    """
    thing, holder = pick(rng, FITS)[0], pick(rng, FITS)[1]
    size = pick(rng, ["big", "small"])
    answer, wrong = (thing, holder) if size == "big" else (holder, thing)
    verb = pick(rng, ["does not fit in", "did not go into"])
    context = f"the {thing} {verb} the {holder} because it was too {size}"
    return Choice(context, *place_correct(rng, answer, [wrong], correct), size)


# ------------------------------------------------------------------------------------------------ passages
@skill
def passage(rng: Rng, label: bool | None = None) -> Passage:
    """Who is where: `statement` is (person, place), true if the passage says so, else another place it mentions."""
    true = _given_or_drawn(rng, label)
    count = int(rng.integers(2, 4))
    people, places = shuffled(rng, PEOPLE)[:count], shuffled(rng, PLACES)[:count]
    form = pick(rng, ["the {} is in the {}", "the {} went to the {}"])
    text = ". ".join(form.format(who, where) for who, where in zip(people, places, strict=True)) + "."
    asked = int(rng.integers(count))
    place = places[asked] if true else pick(rng, [p for i, p in enumerate(places) if i != asked])
    return Passage(text, (people[asked], place), true)
