"""The 14 text tasks: commonsense choices answered by letter, and GLUE with its label words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from lime.embedded.benchmark import sentences
from lime.embedded.benchmark.chance import Rng, pick, pick_other
from lime.embedded.benchmark.items import BEST, LETTERS, Item, MiniTasks, Part, choice, part_of
from lime.embedded.benchmark.sentences import NAMES, Choice, Drawn, Pair

TEXT_TASKS = MiniTasks("text")
task = TEXT_TASKS.task
T = TypeVar("T", bound=Drawn)

_FACT_QUESTIONS = {
    "color": "Which color does a {} usually have?",
    "kind": "A {} is a type of",
    "place": "You would find a {} in the",
    "use": "Which word goes best with a {}?",
}


def _draw(rng: Rng, part: Part, skill: Callable[..., T], topics: Sequence[str] = (), **wanted: Any) -> T:
    """An item of the skill that belongs to `part`, on one of `topics` where any are given."""
    for _ in range(10_000):
        item = skill(rng, side="benchmark", **wanted)
        if (not topics or item.topic in topics) and part_of(item.key) == part:
            return item
    raise RuntimeError(f"10000 draws of {skill.__name__} gave no item of part {part!r}")


def _choose(rng: Rng, answer: str, part: Part, skill: Callable[..., Choice], topics: Sequence[str] = ()) -> Choice:
    return _draw(rng, part, skill, topics, correct=LETTERS.index(answer))


@task("text_test_arc_challenge", "ABCD")
def _arc_challenge(rng: Rng, answer: str, part: Part) -> Item:
    item = _choose(rng, answer, part, sentences.two_facts)
    color, kind = item.context.split()
    return Item(choice(BEST, f"Which of these is {color} and is a {kind}?", item.options))


@task("text_test_arc_easy", "ABCD")
def _arc_easy(rng: Rng, answer: str, part: Part) -> Item:
    item = _choose(rng, answer, part, sentences.fact, ("color", "kind"))
    return Item(choice(BEST, _FACT_QUESTIONS[item.topic].format(item.context), item.options))


@task("text_test_boolq", "AB")
def _boolq(rng: Rng, answer: str, part: Part) -> Item:
    item = _draw(rng, part, sentences.passage, label=answer == "A")
    who, where = item.statement
    return Item(choice("Choose yes or no.", f"{item.text} Is the {who} in the {where}?", ("yes", "no")))


@task("text_test_hellaswag", "ABCD")
def _hellaswag(rng: Rng, answer: str, part: Part) -> Item:
    item = _choose(rng, answer, part, sentences.ending)
    return Item(choice("Choose the best ending.", f"{item.context} and", item.options))


@task("text_test_openbookqa", "ABCD")
def _openbookqa(rng: Rng, answer: str, part: Part) -> Item:
    item = _choose(rng, answer, part, sentences.fact, ("place", "use"))
    return Item(choice(BEST, _FACT_QUESTIONS[item.topic].format(item.context), item.options))


@task("text_test_piqa", "AB")
def _piqa(rng: Rng, answer: str, part: Part) -> Item:
    item = _choose(rng, answer, part, sentences.solution)
    return Item(choice(BEST, f"{pick(rng, NAMES)} wants to {item.context} and will use the", item.options))


@task("text_test_social_i_qa", "ABC")
def _social_i_qa(rng: Rng, answer: str, part: Part) -> Item:
    item = _choose(rng, answer, part, sentences.feeling)
    name = item.context.split()[0]
    return Item(choice(BEST, f"{item.context}. How does {name} feel?", item.options))


@task("text_test_winogrande", "AB")
def _winogrande(rng: Rng, answer: str, part: Part) -> Item:
    item = _choose(rng, answer, part, sentences.fit)
    question = f"{pick(rng, NAMES)} says {item.context}. Which one was too {item.topic}?"
    return Item(choice(BEST, question, item.options))


@task("glue_test_sst2", ("positive", "negative"))
def _sst2(rng: Rng, answer: str, part: Part) -> Item:
    item = _draw(rng, part, sentences.sentiment, label=answer == "positive")
    return Item(f"Decide whether the review is positive or negative.\nReview: {item.text}")


@task("glue_test_qnli", ("entailment", "not_entailment"))
def _qnli(rng: Rng, answer: str, part: Part) -> Item:
    """Beside the sentence in question stands another one, about somebody else and never about a place."""
    item = _draw(rng, part, sentences.answers_question, label=answer == "entailment")
    mentioned = f"{item.question} {item.sentence}".split()
    aside = f"the {pick_other(rng, sentences.PEOPLE, *mentioned)} saw a {pick(rng, sentences.ANIMALS)}"
    first, second = (item.sentence, aside) if rng.random() < 0.5 else (aside, item.sentence)
    return Item(
        "Does the text answer the question? Reply entailment or not_entailment.\n"
        f"Question: {item.question}\nText: {first}. {second}."
    )


def _pair(rng: Rng, part: Part, same: bool) -> Pair:
    return _draw(rng, part, sentences.paraphrase, label=same)


@task("glue_test_qqp", ("duplicate", "not_duplicate"))
def _qqp(rng: Rng, answer: str, part: Part) -> Item:
    item = _pair(rng, part, answer == "duplicate")
    return Item(
        "Are these questions duplicate or not_duplicate?\n"
        f"Question 1: is it true that {item.first}?\nQuestion 2: is it true that {item.second}?"
    )


@task("glue_test_cola", ("acceptable", "unacceptable"))
def _cola(rng: Rng, answer: str, part: Part) -> Item:
    item = _draw(rng, part, sentences.acceptability, label=answer == "acceptable")
    return Item(f"Decide whether the sentence is acceptable or unacceptable.\nSentence: {item.text}")


@task("glue_test_mrpc", ("equivalent", "not_equivalent"))
def _mrpc(rng: Rng, answer: str, part: Part) -> Item:
    item = _pair(rng, part, answer == "equivalent")
    return Item(
        f"Are these sentences equivalent or not_equivalent?\nSentence 1: {item.first}\nSentence 2: {item.second}"
    )


@task("glue_test_stsb", ("0.0", "1.0", "2.0", "3.0", "4.0", "5.0"))
def _stsb(rng: Rng, answer: str, part: Part) -> Item:
    item = _draw(rng, part, sentences.similarity, changes=5 - round(float(answer)))
    return Item(
        f"Rate how similar the sentences are, from 0.0 to 5.0.\nSentence 1: {item.first}\nSentence 2: {item.second}"
    )
