"""The 14 text tasks: commonsense choices answered by letter, and GLUE with its label words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from lime.embedded.benchmark import sentences
from lime.embedded.benchmark.items import LETTERS, Item, MiniTask, Part, choice, part_of
from lime.embedded.benchmark.sentences import NAMES, Choice, pick

BEST = "Choose the best option."
Rng = np.random.Generator
T = TypeVar("T")

_FACT_QUESTIONS = {
    "color": "Which color does a {} usually have?",
    "kind": "A {} is a type of",
    "place": "You would find a {} in the",
    "use": "Which word goes best with a {}?",
}


def _of_part(
    part: Part, draw: Callable[[], T], key: Callable[[T], str], wanted: Callable[[T], bool] | None = None
) -> T:
    """Draw until the item belongs to `part` (and is `wanted`)."""
    for _ in range(10_000):
        item = draw()
        if (wanted is None or wanted(item)) and part_of(key(item)) == part:
            return item
    raise RuntimeError(f"10000 draws of {draw} gave no item of part {part!r}")


def _key(item: Choice) -> str:
    return f"{item.topic}|{item.context}|{'/'.join(item.options)}"


def _choose(
    rng: Rng,
    answer: str,
    part: Part,
    skill: Callable[..., Choice],
    topics: Sequence[str] = (),
    **options: Any,
) -> Choice:
    correct = LETTERS.index(answer)
    return _of_part(
        part,
        lambda: skill(rng, side="benchmark", correct=correct, **options),
        _key,
        (lambda item: item.topic in topics) if topics else None,
    )


def _arc_easy(rng: Rng, answer: str, part: Part) -> Item:
    item = _choose(rng, answer, part, sentences.fact, ("color", "kind"))
    return Item(choice(BEST, _FACT_QUESTIONS[item.topic].format(item.context), item.options))


def _openbookqa(rng: Rng, answer: str, part: Part) -> Item:
    item = _choose(rng, answer, part, sentences.fact, ("place", "use"))
    return Item(choice(BEST, _FACT_QUESTIONS[item.topic].format(item.context), item.options))


def _arc_challenge(rng: Rng, answer: str, part: Part) -> Item:
    item = _choose(rng, answer, part, sentences.two_facts)
    color, kind = item.context.split()
    return Item(choice(BEST, f"Which of these is {color} and is a {kind}?", item.options))


def _hellaswag(rng: Rng, answer: str, part: Part) -> Item:
    item = _choose(rng, answer, part, sentences.ending)
    return Item(choice("Choose the best ending.", f"{item.context} and", item.options))


def _piqa(rng: Rng, answer: str, part: Part) -> Item:
    item = _choose(rng, answer, part, sentences.solution)
    return Item(choice(BEST, f"{pick(rng, NAMES)} wants to {item.context} and will use the", item.options))


def _social_i_qa(rng: Rng, answer: str, part: Part) -> Item:
    item = _choose(rng, answer, part, sentences.feeling)
    name = item.context.split()[0]
    return Item(choice(BEST, f"{item.context}. How does {name} feel?", item.options))


def _winogrande(rng: Rng, answer: str, part: Part) -> Item:
    item = _choose(rng, answer, part, sentences.fit)
    question = f"{pick(rng, NAMES)} says {item.context}. Which one was too {item.topic}?"
    return Item(choice(BEST, question, item.options))


def _boolq(rng: Rng, answer: str, part: Part) -> Item:
    item = _of_part(
        part,
        lambda: sentences.passage(rng, side="benchmark", label=answer == "A"),
        lambda passage: f"{passage.text}|{passage.statement}",
    )
    who, where = item.statement
    return Item(choice("Choose yes or no.", f"{item.text} Is the {who} in the {where}?", ("yes", "no")))


def _sst2(rng: Rng, answer: str, part: Part) -> Item:
    item = _of_part(
        part,
        lambda: sentences.sentiment(rng, side="benchmark", label=answer == "positive"),
        lambda review: review.text,
    )
    return Item(f"Decide whether the review is positive or negative.\nReview: {item.text}")


def _cola(rng: Rng, answer: str, part: Part) -> Item:
    item = _of_part(
        part,
        lambda: sentences.acceptability(rng, side="benchmark", label=answer == "acceptable"),
        lambda sentence: sentence.text,
    )
    return Item(f"Decide whether the sentence is acceptable or unacceptable.\nSentence: {item.text}")


def _qnli(rng: Rng, answer: str, part: Part) -> Item:
    """Beside the sentence in question stands another one, about somebody else and never about a place."""
    item = _of_part(
        part,
        lambda: sentences.answers_question(rng, side="benchmark", label=answer == "entailment"),
        lambda pair: f"{pair.question}|{pair.sentence}",
    )
    mentioned = set(f"{item.question} {item.sentence}".split())
    other = pick(rng, [person for person in sentences.PEOPLE if person not in mentioned])
    aside = f"the {other} saw a {pick(rng, sentences.ANIMALS)}"
    first, second = (item.sentence, aside) if rng.random() < 0.5 else (aside, item.sentence)
    return Item(
        "Does the text answer the question? Reply entailment or not_entailment.\n"
        f"Question: {item.question}\nText: {first}. {second}."
    )


def _pair(rng: Rng, part: Part, label: bool) -> tuple[str, str]:
    item = _of_part(
        part,
        lambda: sentences.paraphrase(rng, side="benchmark", label=label),
        lambda pair: f"{pair.first}|{pair.second}",
    )
    return item.first, item.second


def _qqp(rng: Rng, answer: str, part: Part) -> Item:
    first, second = _pair(rng, part, answer == "duplicate")
    return Item(
        "Are these questions duplicate or not_duplicate?\n"
        f"Question 1: is it true that {first}?\nQuestion 2: is it true that {second}?"
    )


def _mrpc(rng: Rng, answer: str, part: Part) -> Item:
    first, second = _pair(rng, part, answer == "equivalent")
    return Item(f"Are these sentences equivalent or not_equivalent?\nSentence 1: {first}\nSentence 2: {second}")


def _stsb(rng: Rng, answer: str, part: Part) -> Item:
    item = _of_part(
        part,
        lambda: sentences.similarity(rng, side="benchmark", changes=5 - round(float(answer))),
        lambda pair: f"{pair.first}|{pair.second}",
    )
    return Item(
        f"Rate how similar the sentences are, from 0.0 to 5.0.\nSentence 1: {item.first}\nSentence 2: {item.second}"
    )


_TABLE: list[tuple[str, tuple[str, ...], Callable[[Rng, str, Part], Item]]] = [
    ("text_test_arc_challenge", tuple("ABCD"), _arc_challenge),
    ("text_test_arc_easy", tuple("ABCD"), _arc_easy),
    ("text_test_boolq", tuple("AB"), _boolq),
    ("text_test_hellaswag", tuple("ABCD"), _hellaswag),
    ("text_test_openbookqa", tuple("ABCD"), _openbookqa),
    ("text_test_piqa", tuple("AB"), _piqa),
    ("text_test_social_i_qa", tuple("ABC"), _social_i_qa),
    ("text_test_winogrande", tuple("AB"), _winogrande),
    ("glue_test_sst2", ("positive", "negative"), _sst2),
    ("glue_test_qnli", ("entailment", "not_entailment"), _qnli),
    ("glue_test_qqp", ("duplicate", "not_duplicate"), _qqp),
    ("glue_test_cola", ("acceptable", "unacceptable"), _cola),
    ("glue_test_mrpc", ("equivalent", "not_equivalent"), _mrpc),
    ("glue_test_stsb", ("0.0", "1.0", "2.0", "3.0", "4.0", "5.0"), _stsb),
]
TEXT_TASKS = [MiniTask(split, "text", answers, draw) for split, answers, draw in _TABLE]
