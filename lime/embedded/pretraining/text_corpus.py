"""Pretraining dialogues over text: the skills of `lime.embedded.benchmark.sentences` under prompts of their own.

`text_dialogue(rng)` returns the turns of one conversation, (user, assistant) pairs. Several turns about one list or
passage give several answers to learn from for one reading; retrieval (which letter stands with this word) is only
learned in reasonable time when it is asked for that densely. No prompt and no item of the embedded benchmark occurs:
items come from the pretraining side of the item split, prompts are worded differently, and labels are other words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lime.embedded.benchmark import sentences as skill
from lime.embedded.benchmark.chance import Rng, pick, shuffled
from lime.embedded.benchmark.items import LETTERS

Dialogue = tuple[str, str]
SIDE: skill.Side = "pretraining"
GENERAL = Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split()
"""Single words as any pretraining corpus would hold them, for the tokenizer and for copying; never in the form of a
task, a prompt or a label set."""
NUMBERS = "zero one two three four five six seven eight nine".split()
COMMON = sorted(
    {*GENERAL, *skill.POSITIVE, *skill.NEGATIVE, *skill.ANIMALS, *skill.PEOPLE, *skill.PLACES, *skill.FACTS}
    | {v for values in skill.VALUES.values() for v in values}
)

# How options are listed, and what an answer by marker looks like. The benchmark lists them in yet another way.
STYLES = [
    ("{letter}: {option}", "\n"), ("{letter}) {option}", "\n"), ("({letter}) {option}", " "),
    ("{option} is {letter}", ", "), ("{option} - {letter}", "\n"),
]  # fmt: skip


def listed(rng: Rng, options: Sequence[str]) -> str:
    """The options in one of the styles, each with its letter."""
    form, between = pick(rng, STYLES[:3] if rng.random() < 0.8 else STYLES)
    return between.join(form.format(letter=m, option=o) for m, o in zip(LETTERS, options, strict=False))


def choice(rng: Rng, question: str, options: Sequence[str], correct: int) -> Dialogue:
    """A multiple-choice dialogue, answered mostly by the letter, else by the option's words."""
    by_letter = rng.random() < 0.8
    ask = pick(rng, ["pick one:", "letter?", "which one?"] if by_letter else ["say which:", "in words:"])
    return f"{question} {ask}\n{listed(rng, options)}", (LETTERS if by_letter else options)[correct]


# what a fact is asked by
FACT_QUESTIONS = {
    "color": ["what color has a {} ?", "{} : color ?", "the color of a {}"],
    "kind": ["what is a {} ?", "{} : kind ?", "the kind of thing a {} is"],
    "place": ["where do you see a {} ?", "{} : place ?", "the place of a {}"],
    "use": ["what goes with a {} ?", "{} : verb ?", "the verb for a {}"],
}


def choice_turns(rng: Rng, question: str, options: Sequence[str], correct: int, extra: float = 0.5) -> list[Dialogue]:
    """A multiple-choice dialogue, now and then with questions about where the options stand."""
    first, answer = choice(rng, question, options, correct)
    turns = [(first, answer)]
    if rng.random() < extra:
        in_words = answer == options[correct]  # asked next is the form that was not given
        turns.append(("its letter ?", LETTERS[correct]) if in_words else ("in words ?", options[correct]))
        for at in shuffled(rng, range(len(options)))[:2]:
            turns.append((f"letter of {options[at]} ?", LETTERS[at]))
    return turns


def _fact(rng: Rng) -> Dialogue | list[Dialogue]:
    item = skill.fact(rng, side=SIDE, options=int(rng.integers(2, 5)))
    question = pick(rng, FACT_QUESTIONS[item.topic]).format(item.context)
    return (question, item.answer) if rng.random() < 0.3 else choice_turns(rng, question, item.options, item.correct)


def _two_facts(rng: Rng) -> list[Dialogue]:
    item = skill.two_facts(rng, side=SIDE, options=int(rng.integers(3, 5)))
    question = pick(rng, ["{} among these ?", "find the {}", "one is a {}"]).format(item.context)
    return choice_turns(rng, question, item.options, item.correct)


def _know(rng: Rng) -> Dialogue:
    """A thing from all it is, and all it is from the thing."""
    thing = pick(rng, list(skill.FACTS))
    facts = skill.FACTS[thing]
    if rng.random() < 0.5:
        return f"tell me of a {thing}", f"{facts['color']} {facts['kind']} {facts['place']} {facts['use']}"
    return f"about {thing}", f"a {facts['color']} {facts['kind']}, {facts['place']}, {facts['use']}"


def _table(rng: Rng) -> Dialogue | list[Dialogue]:
    draw, forms = pick(
        rng,
        [
            (skill.solution, ["to {} take a", "i want to {}", "tool: {}"]),
            (skill.ending, ["{} and then", "next: {}", "go on: {}"]),
            (skill.feeling, ["{} and is now", "mood: {}", "{} ."]),
        ],
    )
    item = draw(rng, side=SIDE, options=int(rng.integers(2, 5)))
    question = pick(rng, forms).format(item.context)
    return (question, item.answer) if rng.random() < 0.25 else choice_turns(rng, question, item.options, item.correct)


def _fit(rng: Rng) -> Dialogue | list[Dialogue]:
    item = skill.fit(rng, side=SIDE)
    question = f"{item.context}. {pick(rng, ['the ' + item.topic + ' one', 'too ' + item.topic + ' is the'])}"
    return (question, item.answer) if rng.random() < 0.4 else choice_turns(rng, question, item.options, item.correct)


def _passage(rng: Rng) -> list[Dialogue]:
    item = skill.passage(rng, side=SIDE)
    who, where = item.statement
    places = {c.split()[1]: c.split()[-1] for c in item.text.rstrip(".").split(". ")}
    form = pick(rng, ["place of the {} ?", "{} : where ?"])
    asked = [(form.format(person), place) for person, place in shuffled(rng, list(places.items()))]
    words = pick(rng, [("right", "wrong"), ("so it is", "not so"), ("agree", "differ")])
    claim = (f"{pick(rng, ['claim:', 'check:'])} {who} in {where}", words[not item.label])
    if rng.random() < 0.3:
        options = shuffled(rng, list(words))
        claim = choice(rng, claim[0], options, options.index(claim[1]))
    turns = [claim, *asked] if rng.random() < 0.5 else [*asked, claim]
    return [(f"{item.text} {turns[0][0]}", turns[0][1]), *turns[1:]]


def _sentiment(rng: Rng) -> Dialogue:
    item = skill.sentiment(rng, side=SIDE)
    asks = [
        ("is this praise or complaint ? {}", ("praise", "complaint")),
        ("how does the writer feel ? {}", ("happy", "sad")),
        ("opinion: {}", ("likes it", "hates it")),
        ("{} - thumbs ?", ("up", "down")),
    ]
    prompt, words = pick(rng, asks)
    return prompt.format(item.text), words[not item.label]


def _paraphrase(rng: Rng) -> list[Dialogue]:
    event = skill.Event.draw(rng)
    item = skill.paraphrase(rng, side=SIDE)
    prompt = pick(rng, ["compare: {} | {}", "same thing ? {} / {}", "one: {}\ntwo: {}"])
    words = pick(rng, [("same", "other"), ("match", "mismatch")])
    if rng.random() < 0.35:  # one event in two wordings: say it plainly
        plain = event.say(rng, vary=False)
        varied = event.say(rng, vary=True)
        if rng.random() < 0.5:
            return [(f"plainly: {varied}", plain)]
        return [(f"plainly: {varied}", plain), (f"compare: {plain} | {varied}", "same")]
    return [(prompt.format(item.first, item.second), words[not item.label])]


def _parts(text: str) -> list[str]:
    """The five content words of an event in plain words: adjective, animal, verb, person, place."""
    plain = {b: a for a, b in [*skill.ADJECTIVE_PAIRS, *skill.VERB_PAIRS]}
    words = [plain.get(w, w) for w in text.split()]
    if words[0] == "in":
        words = [*words[3:], *words[:3]]
    return [words[1], words[2], words[3], words[5], words[8]]


def _contrast(rng: Rng) -> list[Dialogue]:
    """What two wordings have in common and in what they differ, part by part, then the verdict."""
    item = skill.paraphrase(rng, side=SIDE)
    first, second = _parts(item.first), _parts(item.second)
    edits = ", ".join(f"{a} {b}" for a, b in zip(first, second, strict=True) if a != b) or "nothing"
    turns = [(f"differs: {item.first} | {item.second}", edits), ("same or other ?", "same" if item.label else "other")]
    if rng.random() < 0.4:
        turns.insert(0, (f"parts of {item.first}", " ".join(first)))
    return turns


def _similarity(rng: Rng) -> Dialogue:
    item = skill.similarity(rng, side=SIDE)
    prompt = pick(rng, ["how many changes ? {} | {}", "count edits: {} / {}", "one: {}\ntwo: {}\nedits ?"])
    return prompt.format(item.first, item.second), NUMBERS[item.changes]


def _difference(rng: Rng) -> Dialogue:
    """Which words changed: what counting and judging rest on."""
    item = skill.similarity(rng, side=SIDE)
    old, new = item.first.split(), item.second.split()
    swaps = [f"{a} {b}" for a, b in zip(old, new, strict=True) if a != b]
    return f"list edits: {item.first} | {item.second}", ", ".join(swaps) or "nothing"


def _acceptability(rng: Rng) -> list[Dialogue]:
    item = skill.acceptability(rng, side=SIDE)
    prompt = pick(rng, ["is the order right ? {}", "grammar: {}", "{} - well formed ?"])
    words = pick(rng, [("fine", "broken"), ("ordered", "mixed")])
    return [(prompt.format(item.text), words[not item.label])]


def _repair(rng: Rng) -> list[Dialogue]:
    """Put two exchanged words back in order: what judging the order rests on."""
    sentence = skill.Event.draw(rng).say(rng, vary=True)
    broken = skill.swapped(rng, sentence)
    if rng.random() < 0.25:
        return [(f"repair: {sentence}", sentence), ("was it fine ?", "fine")]
    return [(f"repair: {broken}", sentence), ("was it fine ?", "broken")]


def _grounded(rng: Rng) -> Dialogue:
    item = skill.answers_question(rng, side=SIDE)
    if rng.random() < 0.3:
        return f"{item.sentence}. {item.question}", item.answer if item.label else "unknown"
    words = pick(rng, [("told", "untold"), ("solved", "unsolved")])
    prompt = pick(rng, ["ask: {} reply: {}", "{} / {} - solved ?"])
    return prompt.format(item.question, item.sentence), words[not item.label]


def _instructed(rng: Rng) -> Dialogue:
    """The label words are given in the instruction: say X if …, else Y."""
    yes, no = shuffled(rng, COMMON)[:2]
    draw, form, conditions = pick(
        rng,
        [
            (skill.sentiment, "{0.text}", ("praise", "complaint")),
            (skill.paraphrase, "{0.first} | {0.second}", ("same", "other")),
            (skill.acceptability, "{0.text}", ("fine", "broken")),
            (skill.answers_question, "{0.question} / {0.sentence}", ("told", "untold")),
        ],
    )
    item: Any = draw(rng, side=SIDE)
    text = form.format(item)
    return f"say {yes} if {conditions[0]} and {no} if {conditions[1]} : {text}", yes if item.label else no


def _lookup(rng: Rng) -> list[Dialogue]:
    """Induction: which letter stands with this word, which word with this letter."""
    options = shuffled(rng, COMMON)[: int(rng.integers(2, 6))]
    listing = listed(rng, options)
    forward = ["letter of {} ?", "find {}", "where is {} ?"]
    turns = []
    for at in shuffled(rng, range(len(options)))[:4]:
        if rng.random() < 0.7:
            turns.append((pick(rng, forward).format(options[at]), LETTERS[at]))
        else:
            turns.append((f"what is at {LETTERS[at]} ?", options[at]))
    question, answer = turns[0]
    first = f"{question}\n{listing}" if rng.random() < 0.7 else f"{listing}\n{question}"
    return [(first, answer), *turns[1:]]


def _copy(rng: Rng) -> list[Dialogue]:
    words = shuffled(rng, COMMON)[: int(rng.integers(1, 12))]
    kind = int(rng.integers(3))
    if kind == 0:
        return [(f"repeat: {' '.join(words)}", " ".join(words))]
    if kind == 1:
        letters = "".join(chr(65 + int(i)) for i in rng.integers(0, 26, int(rng.integers(2, 7))))
        return [(f"repeat: {letters}", letters)]
    following = [*words[1:], "end"]
    turns = [(f"after {words[at]} ?", following[at]) for at in shuffled(rng, range(len(words)))[:3]]
    return [(f"{' '.join(words)}: {turns[0][0]}", turns[0][1]), *turns[1:]]


SKILLS: dict[str, tuple[float, Callable[[Rng], Dialogue | list[Dialogue]]]] = {
    "fact": (1.5, _fact),
    "two_facts": (1.0, _two_facts),
    "know": (0.3, _know),
    "table": (1.5, _table),
    "fit": (0.7, _fit),
    "passage": (1.0, _passage),
    "sentiment": (0.4, _sentiment),
    "paraphrase": (1.3, _paraphrase),
    "similarity": (0.7, _similarity),
    "difference": (0.3, _difference),
    "contrast": (0.8, _contrast),
    "acceptability": (0.9, _acceptability),
    "repair": (0.6, _repair),
    "grounded": (0.8, _grounded),
    "instructed": (1.5, _instructed),
    "lookup": (1.8, _lookup),
    "copy": (0.8, _copy),
}
_NAMES = list(SKILLS)
_WEIGHTS = [weight / sum(w for w, _ in SKILLS.values()) for weight, _ in SKILLS.values()]


def text_dialogue(rng: Rng, skill_name: str | None = None) -> list[Dialogue]:
    """The turns of one conversation of the named skill, or of one drawn by weight."""
    name = skill_name or _NAMES[int(rng.choice(len(_NAMES), p=_WEIGHTS))]
    turns = SKILLS[name][1](rng)
    return turns if isinstance(turns, list) else [turns]
