"""Neither the question's text nor the order of options gives answers of image and video tasks away.

A naive Bayes classifier sees the words of the question and which word stands behind which letter, and must stay at
chance. That it would find a leak is shown on tasks with one.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from lime.embedded.benchmark.items import Item, MiniTask
from lime.embedded.benchmark.tasks import MINI_TASKS

SHOWN, ASKED = 300, 200


def features(question: str) -> set[str]:
    words = set(re.findall(r"\w+", question.lower()))
    options = re.findall(r"^\(?([A-F])[.)] (.+)$", question, re.MULTILINE)
    order = {f"{letter}={option}" for letter, option in options}
    before = {f"{a}<{b}" for i, (_, a) in enumerate(options) for _, b in options[i + 1 :]}
    return words | order | before


def text_only_accuracy(task: MiniTask) -> float:
    rng = np.random.default_rng(11)
    answers = [task.answers[i % len(task.answers)] for i in rng.permutation(SHOWN + ASKED)]
    rows = [(features(task.draw(rng, a, "train" if i < SHOWN else "test").question), a) for i, a in enumerate(answers)]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    prior = Counter(answer for _, answer in rows[:SHOWN])
    for words, answer in rows[:SHOWN]:
        counts[answer].update(words)

    def score(words: set[str], answer: str) -> float:
        n = prior[answer]
        return math.log(n + 1) + sum(math.log((counts[answer][w] + 0.5) / (n + 1)) for w in words)

    right = sum(max(task.answers, key=lambda a: score(words, a)) == answer for words, answer in rows[SHOWN:])
    return right / ASKED


def bound(task: MiniTask) -> float:
    chance = 1 / len(task.answers)
    return chance + 3.5 * math.sqrt(chance * (1 - chance) / ASKED)


@pytest.mark.parametrize("split", [s for s, t in MINI_TASKS.items() if t.source_type == "image"])
def test_text_alone_stays_at_chance_in_image_tasks(split: str) -> None:
    assert text_only_accuracy(MINI_TASKS[split]) <= bound(MINI_TASKS[split])


def test_video_questions_are_all_the_same() -> None:
    rng = np.random.default_rng(0)
    tasks = [task for task in MINI_TASKS.values() if task.source_type == "video"]
    assert len(tasks) == 19
    questions = {task.draw(rng, answer, "train").question for task in tasks for answer in "ABCDEF"}
    assert len(questions) == 1


@pytest.mark.parametrize("leak", ["word", "order"])
def test_the_classifier_finds_a_leak_where_there_is_one(leak: str) -> None:
    def draw(rng: np.random.Generator, answer: str, part: str) -> Item:
        if leak == "word":
            hint = answer if rng.random() < 0.7 else "AB"[int(rng.integers(2))]
            return Item(f"Which one, perhaps hint{hint}?\n\nOptions:\nA. cat\nB. dog")
        options = ("cat", "dog") if (answer == "A") == (rng.random() < 0.85) else ("dog", "cat")
        return Item(f"Which one?\n\nOptions:\nA. {options[0]}\nB. {options[1]}")

    task = MiniTask("image_test_leaky", "image", ("A", "B"), draw)
    assert text_only_accuracy(task) > bound(task)


def test_wrong_options_do_not_betray_the_right_one() -> None:
    """No option word is right more often than its share among the options shown, in choices over pictures."""
    rng = np.random.default_rng(5)
    for split in ("image_test_scienceqa", "image_test_seed_bench"):
        shown, right = Counter[str](), Counter[str]()
        for i in range(600):
            letter = "ABCD"[i % 4]
            options = dict(re.findall(r"^([A-D])\. (.+)$", MINI_TASKS[split].draw(rng, letter, "train").question, re.M))
            assert len(set(options.values())) == 4
            shown.update(options.values())
            right[options[letter]] += 1
        for word, count in shown.items():
            share, spread = 0.25, math.sqrt(0.25 * 0.75 / count)
            assert right[word] / count == pytest.approx(share, abs=4 * spread), (split, word)


def test_every_text_choice_has_one_position_per_letter() -> None:
    """The right option stands where the letter says, equally often everywhere."""
    rng = np.random.default_rng(6)
    for task in MINI_TASKS.values():
        if task.source_type == "text" and task.answers[0] == "A" and task.name != "boolq":
            for letter in task.answers:
                question = task.draw(rng, letter, "train").question
                letters = re.findall(r"^([A-D])\. ", question, re.M)
                assert tuple(letters) == task.answers, task.split
