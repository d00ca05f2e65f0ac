"""Text skills of the embedded benchmark: small worlds of sentences with labels that are true by construction.

Each function draws one item, a dataclass of plain values; the prompts around it belong to the caller. The same skills
serve two callers that must not share items: the procedural MMT-47 (`side="benchmark"`) and the pretraining of the
embedded backbones (`side="pretraining"`). Every item has a canonical key, and a hash of the key decides on which side
it may appear: one item in four belongs to the benchmark. Knowledge (a banana is yellow) is common to both sides, as it
is between any pretraining corpus and any benchmark; the concrete item (the sentence, the question with its options) is
not.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

Side = Literal["benchmark", "pretraining"]
Rng = np.random.Generator
T = TypeVar("T")

POSITIVE = (
    "good great lovely superb brilliant charming delightful excellent fantastic wonderful fresh clever funny warm "
    "touching pleasant fine sweet perfect bright"
).split()
NEGATIVE = (
    "bad awful boring terrible dull horrible weak stupid ugly poor stale clumsy tedious cold dreadful nasty lame "
    "bitter broken dreary"
).split()
WORKS = "film movie book meal hotel song show game story play".split()
ADVERBS = "really very quite so rather truly".split()
ADJECTIVE_PAIRS = [
    ("big", "large"),
    ("small", "little"),
    ("fast", "quick"),
    ("happy", "glad"),
    ("angry", "mad"),
    ("old", "ancient"),
]
ANIMALS = "dog cat horse bird cow fox lion mouse".split()
PEOPLE = "boy girl man woman teacher doctor king farmer".split()
VERB_PAIRS = [
    ("chased", "pursued"),
    ("saw", "noticed"),
    ("helped", "aided"),
    ("liked", "enjoyed"),
    ("hit", "struck"),
    ("found", "discovered"),
]
PLACES = "park garden house street school forest river market".split()

RELATIONS = ("color", "kind", "place", "use")
FACTS: dict[str, dict[str, str]] = {
    thing: dict(zip(RELATIONS, values, strict=True))
    for thing, *values in (
        line.split()
        for line in """
        banana yellow fruit kitchen eat
        tomato red fruit kitchen eat
        cherry red fruit garden eat
        lemon yellow fruit kitchen squeeze
        grass green plant garden cut
        rose red plant garden smell
        carrot orange plant kitchen eat
        hammer gray tool garage hit
        saw gray tool garage cut
        spoon silver tool kitchen eat
        pencil yellow tool school write
        pen blue tool school write
        chair brown furniture house sit
        sofa brown furniture house sit
        bed white furniture house sleep
        car red vehicle garage drive
        truck blue vehicle garage drive
        boat white vehicle lake sail
        ship gray vehicle ocean sail
        plane white vehicle air fly
        shark gray animal ocean swim
        goldfish orange animal lake swim
        crow black animal air fly
        eagle brown animal air fly
        shirt blue clothes house wear
        hat black clothes house wear
        sock white clothes house wear
        coal black stone mountain burn
        ruby red stone mountain shine
        snow white weather mountain melt
        """.strip().splitlines()
    )
}
VALUES: dict[str, list[str]] = {r: sorted({fact[r] for fact in FACTS.values()}) for r in RELATIONS}

# goal, the thing that serves it
SOLUTIONS = [
    ("cut the paper", "scissors"),
    ("dry your hands", "towel"),
    ("open the lock", "key"),
    ("see in the dark", "lamp"),
    ("stay dry in rain", "umbrella"),
    ("wash your hair", "soap"),
    ("dig a hole", "shovel"),
    ("tell the time", "clock"),
    ("boil the water", "pot"),
    ("sweep the floor", "broom"),
    ("hit a nail", "hammer"),
    ("clean your teeth", "brush"),
    ("carry the milk", "bottle"),
    ("sew a button", "needle"),
    ("climb to the roof", "ladder"),
    ("find the way", "map"),
]
# beginning of an everyday event, what follows
ENDINGS = [
    ("sat at the piano", "played a tune"),
    ("picked up the phone", "called a friend"),
    ("put on a coat", "went out into the cold"),
    ("opened the umbrella", "walked in the rain"),
    ("got into the car", "drove to work"),
    ("took a big brush", "painted the wall"),
    ("lit the oven", "baked a cake"),
    ("jumped into the pool", "swam to the side"),
    ("went to bed", "fell asleep"),
    ("picked up a pen", "wrote a letter"),
    ("sat by the lake with a rod", "caught a fish"),
    ("opened the book", "read a page"),
]
# what happened to somebody, how they feel
FEELINGS = [
    ("won the race", "proud"),
    ("lost the ring", "sad"),
    ("heard a loud noise", "scared"),
    ("broke the vase", "sorry"),
    ("got a gift", "thankful"),
    ("ran for hours", "tired"),
    ("ate nothing all day", "hungry"),
    ("waited for long", "bored"),
    ("was pushed over", "angry"),
    ("saw a magic trick", "amazed"),
]
NAMES = "tom ann ben eva sam lily max nora".split()
# thing, holder: what would not go into what
FITS = [
    ("ball", "box"),
    ("book", "bag"),
    ("cup", "drawer"),
    ("ship", "bottle"),
    ("table", "door"),
    ("coat", "case"),
    ("doll", "basket"),
    ("bike", "van"),
]

# Words of the image reading tasks, in upper case: the small tokenizer spells them letter by letter, so that reading
# is a skill (letter after letter) and not a choice among known words. The backbones only ever read random letters.
READABLE = (
    "SUN CAR BUS HAT CUP BOX FOX PEN KEY MAP RED TOP NET JAM LID FAN OWL BEE CAT DOG "
    "ICE INN BAR HUT VAN PIE TEA TOY PIG BAG ZOO GYM PUB"
).split()


def side_of(key: str) -> Side:
    """The side an item belongs to, from a hash of its canonical key: one in four is the benchmark's."""
    return "benchmark" if zlib.crc32(key.encode()) % 4 == 0 else "pretraining"


def pick(rng: Rng, options: Sequence[T]) -> T:
    """One member of `options`, uniformly."""
    return options[int(rng.integers(len(options)))]


def shuffled(rng: Rng, options: Sequence[T]) -> list[T]:
    """All members of `options` in random order."""
    return [options[i] for i in rng.permutation(len(options))]


def _on_side(rng: Rng, side: Side, draw: Callable[[Rng], T], key: Callable[[T], str]) -> T:
    """Draw until the item falls on `side`."""
    for _ in range(10_000):
        item = draw(rng)
        if side_of(key(item)) == side:
            return item
    raise RuntimeError(f"no item on side {side!r} in 10000 draws of {draw}")


# ------------------------------------------------------------------------------------------------ single sentences
@dataclass(frozen=True)
class Labelled:
    """A text and whether the property in question holds of it."""

    text: str
    label: bool


def sentiment(rng: Rng, *, side: Side, label: bool | None = None) -> Labelled:
    """A short review; `label` is true where it is favourable. A quarter of them negate (`not good`)."""

    def draw(rng: Rng) -> Labelled:
        positive = bool(rng.integers(2)) if label is None else label
        negated = rng.random() < 0.25
        a, b = shuffled(rng, POSITIVE if positive != negated else NEGATIVE)[:2]
        noun, adverb = pick(rng, WORKS), pick(rng, ADVERBS)
        if negated:
            forms = [
                f"the {noun} was not {a}",
                f"i did not find the {noun} {a}",
                f"this {noun} is never {a}",
            ]
        else:
            forms = [
                f"the {noun} was {adverb} {a} and {b}",
                f"i found this {noun} {adverb} {a}",
                f"what a {a}, {b} {noun}",
                f"{adverb} {a} {noun}, i must say",
                f"a {a} and {b} {noun}",
            ]
        return Labelled(pick(rng, forms), positive)

    return _on_side(rng, side, draw, lambda item: item.text)


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
        sizes = (len(ADJECTIVE_PAIRS), len(ANIMALS), len(VERB_PAIRS), len(PEOPLE), len(PLACES))
        return Event(*(int(rng.integers(n)) for n in sizes))

    def changed(self, rng: Rng, count: int) -> Event:
        """The event with exactly `count` of its five parts replaced."""
        fields = ["adjective", "animal", "verb", "person", "place"]
        values = {name: getattr(self, name) for name in fields}
        for name in shuffled(rng, fields)[:count]:
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


def acceptability(rng: Rng, *, side: Side, label: bool | None = None) -> Labelled:
    """A sentence; `label` is false where two neighbouring words were exchanged, so that the order is wrong."""

    def draw(rng: Rng) -> Labelled:
        good = bool(rng.integers(2)) if label is None else label
        text = Event.draw(rng).say(rng, vary=True)
        if not good:
            words = text.split()
            first = int(rng.integers(len(words) - 1))
            while words[first] == words[first + 1]:
                first = int(rng.integers(len(words) - 1))
            words[first], words[first + 1] = words[first + 1], words[first]
            text = " ".join(words)
        return Labelled(text, good)

    return _on_side(rng, side, draw, lambda item: item.text)


# ------------------------------------------------------------------------------------------------ sentence pairs
@dataclass(frozen=True)
class Pair:
    """Two sentences and whether the second says the same as the first."""

    first: str
    second: str
    label: bool


def paraphrase(rng: Rng, *, side: Side, label: bool | None = None) -> Pair:
    """Two sentences: the same event in synonyms and another order, or one that differs in one or two parts."""

    def draw(rng: Rng) -> Pair:
        same = bool(rng.integers(2)) if label is None else label
        event = Event.draw(rng)
        other = event if same else event.changed(rng, int(rng.integers(1, 3)))
        return Pair(event.say(rng, vary=True), other.say(rng, vary=True), same)

    return _on_side(rng, side, draw, lambda item: f"{item.first}|{item.second}")


@dataclass(frozen=True)
class Graded:
    """Two sentences and in how many of five parts they differ (0 to 5)."""

    first: str
    second: str
    changes: int


def similarity(rng: Rng, *, side: Side, changes: int | None = None) -> Graded:
    """Two sentences of one form that differ in 0 to 5 of their five content words."""

    def draw(rng: Rng) -> Graded:
        count = int(rng.integers(6)) if changes is None else changes
        event = Event.draw(rng)
        return Graded(event.say(rng, vary=False), event.changed(rng, count).say(rng, vary=False), count)

    return _on_side(rng, side, draw, lambda item: f"{item.first}|{item.second}")


@dataclass(frozen=True)
class Grounded:
    """A question, a sentence, and whether the sentence answers it; `answer` is the word that does."""

    question: str
    sentence: str
    label: bool
    answer: str


def answers_question(rng: Rng, *, side: Side, label: bool | None = None) -> Grounded:
    """Does the sentence say where somebody is, or what colour something has, as the question asks?"""

    def draw(rng: Rng) -> Grounded:
        yes = bool(rng.integers(2)) if label is None else label
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

    return _on_side(rng, side, draw, lambda item: f"{item.question}|{item.sentence}")


# ------------------------------------------------------------------------------------------------ choices
@dataclass(frozen=True)
class Choice:
    """A context, its options in order, and which of them is right. `topic` names the relation asked for."""

    context: str
    options: tuple[str, ...]
    correct: int
    topic: str = ""

    @property
    def answer(self) -> str:
        return self.options[self.correct]


def place_correct(rng: Rng, answer: str, wrong: Sequence[str], correct: int | None) -> tuple[tuple[str, ...], int]:
    """Options with `answer` at position `correct` (drawn if None) among `wrong` in random order."""
    at = int(rng.integers(len(wrong) + 1)) if correct is None else correct
    options = shuffled(rng, list(wrong))
    options.insert(at, answer)
    return tuple(options), at


def _choice_key(item: Choice) -> str:
    return f"{item.topic}|{item.context}|{'/'.join(item.options)}"


def fact(rng: Rng, *, side: Side, options: int = 4, correct: int | None = None) -> Choice:
    """One relation of one thing: `context` is the thing, `topic` the relation, the options values of the relation."""

    def draw(rng: Rng) -> Choice:
        thing, relation = pick(rng, list(FACTS)), pick(rng, RELATIONS)
        answer = FACTS[thing][relation]
        wrong = shuffled(rng, [v for v in VALUES[relation] if v != answer])[: options - 1]
        return Choice(thing, *place_correct(rng, answer, wrong, correct), relation)

    return _on_side(rng, side, draw, _choice_key)


def two_facts(rng: Rng, *, side: Side, options: int = 4, correct: int | None = None) -> Choice:
    """Which thing has this colour and is of this kind? Wrong options share one of the two where possible.

    `context` is "<color> <kind>", the options are things; exactly one has both.
    """

    def draw(rng: Rng) -> Choice:
        thing = pick(rng, list(FACTS))
        color, kind = FACTS[thing]["color"], FACTS[thing]["kind"]
        near: list[str] = []
        far: list[str] = []
        for other, facts in FACTS.items():
            matches = (facts["color"] == color) + (facts["kind"] == kind)
            if matches < 2:
                (near if matches else far).append(other)
        wrong = (shuffled(rng, near)[: options - 2] + shuffled(rng, far))[: options - 1]
        return Choice(f"{color} {kind}", *place_correct(rng, thing, wrong, correct), "thing")

    return _on_side(rng, side, draw, _choice_key)


def _from_table(
    rng: Rng,
    table: Sequence[tuple[str, str]],
    topic: str,
    side: Side,
    options: int,
    correct: int | None,
    subjects: Sequence[str] = ("",),
) -> Choice:
    def draw(rng: Rng) -> Choice:
        context, answer = pick(rng, table)
        wrong = shuffled(rng, sorted({a for _, a in table if a != answer}))[: options - 1]
        subject = pick(rng, subjects)
        return Choice(f"{subject} {context}".strip(), *place_correct(rng, answer, wrong, correct), topic)

    return _on_side(rng, side, draw, _choice_key)


def solution(rng: Rng, *, side: Side, options: int = 2, correct: int | None = None) -> Choice:
    """`context` is a goal ("cut the paper"), the options are things of which one serves it."""
    return _from_table(rng, SOLUTIONS, "solution", side, options, correct)


def ending(rng: Rng, *, side: Side, options: int = 4, correct: int | None = None) -> Choice:
    """`context` is the beginning of an event with its subject ("the girl opened the book"), the options continue it."""
    return _from_table(rng, ENDINGS, "ending", side, options, correct, [f"the {p}" for p in PEOPLE])


def feeling(rng: Rng, *, side: Side, options: int = 3, correct: int | None = None) -> Choice:
    """`context` says what somebody went through ("tom won the race"), the options how they feel."""
    return _from_table(rng, FEELINGS, "feeling", side, options, correct, NAMES)


def fit(rng: Rng, *, side: Side, correct: int | None = None) -> Choice:
    """Pronoun resolution: "the ball does not fit in the box because it is too big": what is too big?

    The options are the thing and its holder in random order; `topic` is "big" or "small".
    """

    def draw(rng: Rng) -> Choice:
        thing, holder = pick(rng, FITS)[0], pick(rng, FITS)[1]
        size = pick(rng, ["big", "small"])
        answer, other = (thing, holder) if size == "big" else (holder, thing)
        verb = pick(rng, ["does not fit in", "did not go into"])
        context = f"the {thing} {verb} the {holder} because it was too {size}"
        return Choice(context, *place_correct(rng, answer, [other], correct), size)

    return _on_side(rng, side, draw, _choice_key)


# ------------------------------------------------------------------------------------------------ passages
@dataclass(frozen=True)
class Passage:
    """A passage of a few statements and one statement about it that is true or false."""

    text: str
    statement: tuple[str, str]
    label: bool


def passage(rng: Rng, *, side: Side, label: bool | None = None, length: int | None = None) -> Passage:
    """Who is where: `statement` is (person, place), true if the passage says so, else another place it mentions."""

    def draw(rng: Rng) -> Passage:
        true = bool(rng.integers(2)) if label is None else label
        count = length or int(rng.integers(2, 4))
        people, places = shuffled(rng, PEOPLE)[:count], shuffled(rng, PLACES)[:count]
        form = pick(rng, ["the {} is in the {}", "the {} went to the {}"])
        text = ". ".join(form.format(who, where) for who, where in zip(people, places, strict=True)) + "."
        asked = int(rng.integers(count))
        place = places[asked] if true else pick(rng, [p for i, p in enumerate(places) if i != asked])
        return Passage(text, (people[asked], place), true)

    return _on_side(rng, side, draw, lambda item: f"{item.text}|{item.statement}")
