"""The embedded backbones' pretraining dialogues share skills with the benchmark, but no prompt and no item."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from lime.embedded.benchmark.tasks import MINI_TASKS
from lime.embedded.pretraining.text_corpus import text_dialogue

LONG = 3
"""Words from which a line is a prompt or a sentence, and no mere option."""


def lines(text: str) -> frozenset[str]:
    """Long lines and sentences of a text, without case, punctuation and options."""
    text = re.sub(r"^[A-F]\. .*$", "", text, flags=re.MULTILINE)
    parts = re.split(r"\n|[.?!:]\s", text.lower())
    plain = (" ".join(re.findall(r"\w+", part)) for part in parts)
    return frozenset(line for line in plain if len(line.split()) >= LONG)


def test_no_prompt_and_no_item_of_the_benchmark_occurs_in_pretraining() -> None:
    """A line of every third question is a prompt; in the GLUE tasks the others are the item: a sentence, or a pair, of
    which one half alone may occur in another pair."""
    rng = np.random.default_rng(6)
    shown = [user for _ in range(4000) for user, _ in text_dialogue(rng)]
    where: dict[str, set[int]] = {}
    for place, user in enumerate(shown):
        for line in lines(user):
            where.setdefault(line, set()).add(place)
    prompts, items = 0, 0
    for split, task in MINI_TASKS.items():
        if task.source_type != "text":
            continue
        asked = [
            task.draw(rng, task.answers[i % len(task.answers)], part).question
            for part in ("train", "test") for i in range(150)
        ]  # fmt: skip
        counts = Counter(line for question in asked for line in lines(question))
        for question in asked:
            assert question not in shown
            common = {line for line in lines(question) if counts[line] > 100}
            assert not common & where.keys(), split
            item = lines(question) - common if split.startswith("glue") else frozenset()
            prompts, items = prompts + len(common), items + bool(item)
            if item:
                assert not set.intersection(*(where.get(line, set()) for line in item)), (split, question)
    assert prompts > 1000
    assert items > 1000
