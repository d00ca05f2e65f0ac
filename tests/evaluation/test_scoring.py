"""Comparison of answers, scores of a split, categories and the macro mean."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from lime.evaluation.aggregation import evaluate
from lime.evaluation.scoring import SplitAnswers, majority_answer, matches, normalise
from lime.evaluation.statistics import wilson_interval
from tests.evaluation.tasks import ALLOWED, ARC, QQP, STSB, SmallTask, score


@pytest.mark.parametrize(
    ("answer", "truth", "kind", "right"),
    [
        ("B", "B", "letter", True),
        ("B", "b", "letter", True),
        ("B", "A", "letter", False),
        ("4", "4.0", "number", True),
        ("1,000", "1000", "number", True),
        ("4.00000001", "4", "number", True),
        ("4.001", "4", "number", False),
        ("-5", "5", "number", False),
        ("5%", "5", "text", True),
        ("yes", "True", "yes_no", True),
        ("no", "False", "yes_no", True),
        ("no", "yes", "yes_no", False),
        ("true", "yes", "label", False),
        ("not duplicate", "not_duplicate", "label", True),
        ("duplicate", "not_duplicate", "label", False),
        ("acceptable", "unacceptable", "label", False),
        ("Annual crop", "AnnualCrop", "label", True),
        ("virgin", "Virgin", "text", True),
        ("the kitchen", "kitchen", "text", True),
        ("kitchens", "kitchen", "text", False),
        ("3.5", "35", "text", False),
        ("a", "A", "text", True),
        ("C", "C++", "text", False),
        ("1e3", "1000", "number", True),
        ("", "", "text", True),
        (None, "B", "letter", False),
        (None, "", "text", False),
    ],
)
def test_comparison(answer: str | None, truth: str, kind: str, right: bool) -> None:
    assert matches(answer, truth, kind) is right
    if answer is not None:
        assert matches(truth, answer, kind) is right
        assert right is (normalise(answer, kind) == normalise(truth, kind)) or kind in ("number", "text")


def test_accuracy_with_its_interval_and_baselines() -> None:
    truths = ["A"] * 5 + ["B"] * 3 + ["C"] * 2
    extracted = ["A"] * 4 + [None] + ["B"] * 3 + ["A"] * 2
    found = score(SplitAnswers(ARC, truths, extracted, ["A"] * 10, ALLOWED[ARC.split]))
    assert (found.n, found.answered, found.value, found.exact_match) == (10, 9, 70.0, 70.0)
    wilson, jeffreys = wilson_interval(7, 10), stats.beta.interval(0.95, 7.5, 3.5)  # the wider at each end
    low, high = min(wilson[0], jeffreys[0]), max(wilson[1], jeffreys[1])
    assert (found.low, found.high) == pytest.approx((100 * low, 100 * high))
    assert (found.majority_answer, found.majority, found.chance) == ("A", 50.0, 25.0)
    assert found.frozen == 50.0
    assert not found.above_majority
    assert found.notes == ()


def test_an_open_split_has_no_chance_level() -> None:
    task = SmallTask("image_test_okvqa", "text")
    found = score(SplitAnswers(task, ["cat", "dog", "The cat."], ["cat", "cat", "cat"]))
    assert found.chance is None
    assert (found.majority_answer, found.majority) == ("cat", pytest.approx(200 / 3))
    assert found.frozen is None


def test_the_majority_answer_is_counted_after_normalisation() -> None:
    assert majority_answer(["3", "cat", "3.0", "cat", "03.0"], "number") == "3"
    assert majority_answer(["b", "a"], "letter") == "b"


def test_correlation_is_pearson_with_spearman_beside_it() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 5, 60).round(1)
    given = (truth + rng.normal(size=60)).round(2)
    frozen = ["2.5"] * 60
    found = score(SplitAnswers(STSB, [str(t) for t in truth], [str(g) for g in given], frozen))
    expected = stats.pearsonr(given, truth)
    assert found.pearson == pytest.approx(expected.statistic)
    assert found.value == pytest.approx(100 * expected.statistic)
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((100 * low, 100 * high), abs=1.5)
    assert found.spearman == pytest.approx(stats.spearmanr(given, truth).statistic)
    assert found.spearman_low is not None
    assert found.spearman_low < found.spearman < found.spearman_high
    assert (found.majority, found.chance, found.frozen) == (0.0, 0.0, 0.0)
    assert found.exact_match == pytest.approx(100 * np.mean(given == truth))
    assert found.majority_exact > 0
    assert found.notes == ()


def test_constant_answers_have_no_correlation_and_say_so() -> None:
    found = score(SplitAnswers(STSB, ["1.0", "2.0", "3.0", "4.0"], ["3", "3", "3", "3"]))
    assert (found.value, found.pearson, found.spearman, found.exact_match) == (0.0, 0.0, 0.0, 25.0)
    assert any("undefined" in note for note in found.notes)


def test_silence_earns_no_correlation() -> None:
    truths = ["0.0", "0.0", "0.0", "5.0", "4.0", "3.0"]
    silent = score(SplitAnswers(STSB, truths, [None, None, None, "5.0", "4.0", "3.0"]))
    answered = score(SplitAnswers(STSB, truths, truths))
    assert answered.value == pytest.approx(100)
    assert silent.value < 50
    assert silent.exact_match == 50.0
    assert any("3 of 6 rows without a number" in note for note in silent.notes)
    nothing = score(SplitAnswers(STSB, truths, [None] * 6))
    assert (nothing.value, nothing.exact_match, nothing.answered) == (0.0, 0.0, 0)


def test_a_wild_number_is_scored_not_dropped() -> None:
    truths = [str(value) for value in range(10)]
    found = score(SplitAnswers(STSB, truths, [*truths[:9], "1" + "0" * 300]))
    assert found.pearson == pytest.approx(stats.pearsonr([0] * 9 + [1], range(10)).statistic)
    evaluation = evaluate([SplitAnswers(STSB, truths, [*truths[:9], "1" + "0" * 300])])
    assert np.isfinite(evaluation.macro.score.low)


def test_a_truth_that_is_no_number_is_an_error_under_correlation() -> None:
    with pytest.raises(ValueError, match=r"glue_test_stsb, row 1: truth 'high' is not a number"):
        score(SplitAnswers(STSB, ["1.0", "high"], ["1", "2"]))


def test_truths_that_no_answer_could_match_are_told() -> None:
    task = SmallTask("text_test_boolq", "yes_no")
    found = score(SplitAnswers(task, ["A", "B", "yes"], ["yes", "no", "yes"], allowed=["yes", "no"]))
    assert any(note.startswith("2 of 3 truths cannot be given as an answer") for note in found.notes)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="text_test_arc_easy: no rows"):
        SplitAnswers(ARC, [], [])
    with pytest.raises(ValueError, match="2 truths, but 1 entries in extracted"):
        SplitAnswers(ARC, ["A", "B"], ["A"])
    with pytest.raises(ValueError, match="2 truths, but 3 entries in frozen"):
        SplitAnswers(ARC, ["A", "B"], ["A", "B"], ["A", "B", "C"])
    with pytest.raises(ValueError, match="metric 'f1'"):
        SplitAnswers(dataclasses.replace(ARC, metric="f1"), ["A"], ["A"])
    with pytest.raises(ValueError, match="no split to score"):
        evaluate([])
    with pytest.raises(ValueError, match=r"once, got \['text_test_arc_easy'"):
        evaluate([SplitAnswers(ARC, ["A"], ["A"])] * 2)


def answers(frozen: bool = True) -> list[SplitAnswers]:
    rng = np.random.default_rng(0)

    def draw(task: SmallTask, choices: list[str], n: int, share: float) -> SplitAnswers:
        truths = [choices[i] for i in rng.integers(0, len(choices), n)]

        def guess(p: float) -> list[str]:
            return [truth if rng.random() < p else choices[rng.integers(0, len(choices))] for truth in truths]

        return SplitAnswers(task, truths, guess(share), guess(0.1) if frozen else None, ALLOWED.get(task.split))

    return [
        draw(ARC, ["A", "B", "C", "D"], 100, 0.7),
        draw(QQP, ["duplicate", "not_duplicate"], 50, 0.5),
        draw(STSB, [f"{value / 2:.1f}" for value in range(11)], 80, 0.6),
    ]


def test_groups_are_unweighted_means_over_tasks() -> None:
    evaluation = evaluate(answers())
    arc, qqp, stsb = evaluation.splits
    first, second = evaluation.categories
    macro = evaluation.macro
    assert (first.name, second.name, macro.tasks, macro.n) == ("first", "second", 3, 230)
    assert second.score.value == pytest.approx((qqp.value + stsb.value) / 2)
    assert macro.score.value == pytest.approx((arc.value + qqp.value + 100 * stsb.pearson) / 3)
    assert macro.exact_match.value == pytest.approx((arc.exact_match + qqp.exact_match + stsb.exact_match) / 3)
    assert macro.majority == pytest.approx((arc.majority + qqp.majority + 0) / 3)
    assert macro.over_majority.value == pytest.approx(macro.score.value - macro.majority)
    assert macro.over_frozen is not None
    assert macro.over_frozen.value == pytest.approx(macro.score.value - macro.frozen)
    assert macro.above_majority == sum(score.above_majority for score in evaluation.splits)
    for estimate in (macro.score, macro.exact_match, macro.over_majority, macro.over_frozen):
        assert estimate.low < estimate.value < estimate.high


@pytest.mark.parametrize("right", [False, True])
def test_answers_that_are_all_alike_leave_an_interval(right: bool) -> None:
    one = answers(frozen=False)[0]
    alike = dataclasses.replace(one, extracted=list(one.truths) if right else [None] * len(one.truths))
    evaluation = evaluate([alike])
    split, (group,) = evaluation.splits[0], evaluation.categories
    assert group.exact_match.value == (100 if right else 0)
    assert (group.exact_match.low, group.exact_match.high) == pytest.approx((split.low, split.high))
    assert group.score == group.exact_match


def test_the_order_of_categories_can_be_given() -> None:
    names = {"second": "Second", "first": "First", "third": "Third"}
    assert [group.name for group in evaluate(answers(), categories=names).categories] == ["second", "first"]


def test_the_macro_interval_is_that_of_independent_tasks() -> None:
    macro = evaluate(answers()).macro
    variance = sum(np.var(r) / len(r) for r in _rows(answers())) / 9
    assert macro.exact_match.high - macro.exact_match.low == pytest.approx(2 * 1.96 * 100 * np.sqrt(variance), rel=0.05)


def _rows(splits: list[SplitAnswers]) -> list[np.ndarray]:
    return [
        np.array([matches(e, t, s.task.answer_type) for e, t in zip(s.extracted, s.truths, strict=True)], float)
        for s in splits
    ]


def test_paired_differences_are_tighter_than_unpaired_ones() -> None:
    one = answers(frozen=False)[0]
    paired = dataclasses.replace(one, frozen=[*one.extracted[:-3], None, None, None])
    over = evaluate([paired]).macro.over_frozen
    assert over is not None
    assert over.high - over.low < 9  # at most three rows differ; unpaired it would be about 24


def test_a_split_interval_does_not_depend_on_the_others() -> None:
    everything = evaluate(answers())
    alone = evaluate(answers()[:1])
    assert alone.categories[0] == everything.categories[0]
    assert evaluate(answers()) == everything


def test_without_frozen_answers_everywhere_a_group_has_no_frozen_score() -> None:
    mixed = answers()
    mixed[0] = dataclasses.replace(mixed[0], frozen=None)
    evaluation = evaluate(mixed)
    assert evaluation.macro.frozen is None
    assert evaluation.macro.over_frozen is None
    assert evaluation.categories[0].frozen is None
    assert evaluation.categories[1].frozen is not None
