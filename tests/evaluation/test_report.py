"""What is written can be read, scored again, and looked at."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from lime.data.tasks import CATEGORIES, TASKS
from lime.evaluation import predictions, scoring
from lime.evaluation.aggregation import Evaluation
from lime.evaluation.predictions import (
    Prediction,
    PredictionError,
    collect,
    read_predictions,
    rescore,
    score_predictions,
    write_predictions,
)
from lime.evaluation.report import (
    SCHEMA,
    ResultsError,
    read_results,
    stored_allowed_answers,
    write_report,
)
from lime.evaluation.tables import markdown_table, results_table, summary_lines
from tests.evaluation import tasks as small
from tests.evaluation.tasks import SmallRow

RAW = ["The answer is A.", "(B)", "", "D or B", None, "duplicate", "not duplicate", "3.0", "so 1.5", "none"]
ROWS = [
    *[SmallRow(f"{small.ARC.split}/{i}", small.ARC.split, truth) for i, truth in enumerate("ABCDA")],
    SmallRow(f"{small.QQP.split}/0", small.QQP.split, "duplicate", "ähnlich?\n“ja”"),
    SmallRow(f"{small.QQP.split}/1", small.QQP.split, "duplicate"),
    SmallRow(f"{small.STSB.split}/0", small.STSB.split, "3"),
    SmallRow(f"{small.STSB.split}/1", small.STSB.split, "1.25"),
    SmallRow(f"{small.STSB.split}/2", small.STSB.split, "4.5"),
]
FROZEN = ["A"] * 5 + ["not_duplicate"] * 2 + ["3", None, "4.5"]


def records(frozen: bool = True) -> list[Prediction]:
    return collect(ROWS, RAW, small.TASKS, small.ALLOWED, FROZEN if frozen else None)


def evaluation(frozen: bool = True) -> Evaluation:
    return score_predictions(records(frozen), small.TASKS, small.ALLOWED)


def test_records_hold_what_was_said_found_and_right() -> None:
    found = records()
    assert [record.extracted for record in found] == [
        *["A", "B", None, None, None],
        *["duplicate", "not_duplicate", "3.0", "1.5", None],
    ]
    assert [record.correct for record in found] == [
        *[True, True, False, False, False],
        *[True, False, True, False, False],
    ]
    assert found[0].raw == "The answer is A."
    assert found[5].question == "ähnlich?\n“ja”"
    assert [record.frozen_correct for record in found] == [True, *[False] * 3, True, *[False] * 2, True, False, True]


def test_an_answer_is_extracted_and_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def counted(module: ModuleType, name: str) -> None:
        original = getattr(module, name)

        def call(*arguments: Any) -> Any:
            calls[f"{module.__name__.rpartition('.')[2]}.{name}"] += 1
            return original(*arguments)

        monkeypatch.setattr(module, name, call)

    for module in (predictions, scoring):
        for name in ("extract", "matches"):
            counted(module, name)
    evaluation()
    rows, correlated = len(ROWS), 3
    assert calls["predictions.extract"] == 2 * rows + correlated  # of a correlation the frozen numbers are read again
    assert calls["predictions.matches"] == 2 * rows
    truths = len({(row.split, row.answer) for row in ROWS})
    assert calls["scoring.extract"] == truths  # whether an answer could give them
    assert calls["scoring.matches"] == rows + truths  # the majority answer's marks, and the same question


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(5)), st.lists(st.sampled_from([*RAW, "C", "not A"]), min_size=5, max_size=5))
def test_extraction_does_not_depend_on_the_truth(order: list[int], raw: list[str | None]) -> None:
    rows = ROWS[:5]
    others = [SmallRow(row.id, row.split, rows[place].answer) for row, place in zip(rows, order, strict=True)]
    one = collect(rows, raw, small.TASKS, small.ALLOWED)
    other = collect(others, raw, small.TASKS, small.ALLOWED)
    assert [record.extracted for record in one] == [record.extracted for record in other]


def test_everything_written_is_read_back(tmp_path: Path) -> None:
    for frozen in (True, False):
        folder = tmp_path / str(frozen)
        scored = evaluation(frozen)
        paths = write_report(
            folder, scored, records(frozen), allowed=small.ALLOWED, info={"seed": 1, "mode": "generate"}
        )
        assert sorted(paths) == ["predictions.jsonl", "results.csv", "results.json"]
        assert read_predictions(folder) == records(frozen)
        back, record = read_results(folder)
        assert back == scored
        assert record["schema"] == SCHEMA
        assert record["info"] == {"seed": 1, "mode": "generate"}
        assert stored_allowed_answers(paths["predictions.jsonl"]) == {
            split: answers for split, answers in small.ALLOWED.items() if answers
        }
        with paths["results.csv"].open(newline="") as file:
            lines = list(csv.DictReader(file))
        assert [line["level"] for line in lines] == ["split"] * 3 + ["category"] * 2 + ["macro"]
        assert float(lines[0]["score"]) == pytest.approx(scored.splits[0].value, abs=1e-4)
        assert float(lines[-1]["exact_match"]) == pytest.approx(scored.macro.exact_match.value, abs=1e-4)
        assert (lines[0]["frozen"] == "") is not frozen


def test_scoring_again_needs_no_model(tmp_path: Path) -> None:
    paths = write_report(tmp_path, evaluation(), records(), allowed=small.ALLOWED)
    path = paths["predictions.jsonl"]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:  # whatever an older version had found
        line["extracted"], line["correct"], line["frozen_correct"] = "x", True, False
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    allowed = stored_allowed_answers(path)
    assert allowed is not None
    again = rescore(read_predictions(path), small.TASKS, allowed)
    assert again == records()
    assert score_predictions(again, small.TASKS, allowed) == evaluation()
    assert stored_allowed_answers(tmp_path / "elsewhere" / "predictions.jsonl") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prediction"),
        ('{"id": "a"}\n', "line 1: expected an object with split, question"),
        ("[1]\n", "line 1: expected an object"),
        ('{"id": "a", "spl', "line 1: not JSON"),
    ],
)
def test_a_damaged_predictions_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text(text)
    with pytest.raises(PredictionError, match=message):
        read_predictions(path)
    with pytest.raises(PredictionError, match="no such file"):
        read_predictions(tmp_path / "absent")


def test_a_field_of_another_type_is_named(tmp_path: Path) -> None:
    path = write_predictions(tmp_path / "predictions.jsonl", records())
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].replace('"raw": "(B)"', '"raw": 3')]))
    with pytest.raises(PredictionError, match="line 2: raw is 3, expected text or null"):
        read_predictions(path)


def test_results_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no such file"):
        read_results(tmp_path)
    path = tmp_path / "results.json"
    for text, message in (
        ("{", "not JSON"),
        ('{"schema": "lime-results/0"}', "expected 'lime-results/2'"),
        (f'{{"schema": "{SCHEMA}"}}', "not a complete"),
    ):
        path.write_text(text)
        with pytest.raises(ResultsError, match=message):
            read_results(path)


def test_wrong_records_are_refused() -> None:
    with pytest.raises(ValueError, match="occurs twice"):
        score_predictions([*records(), records()[0]], small.TASKS, small.ALLOWED)
    with pytest.raises(ValueError, match="no task has a split"):
        score_predictions(records(), {small.ARC.split: small.ARC}, small.ALLOWED)
    with pytest.raises(ValueError, match="10 rows, 9 answers"):
        collect(ROWS, RAW[:-1], small.TASKS, small.ALLOWED)


def full(frozen: bool) -> Evaluation:
    """All 47 tasks, two rows each."""
    rows, raw = [], []
    for split, task in TASKS.items():
        truths = ["1.0", "2.5"] if task.metric == "correlation" else list(task.labels or "AB")[:2]
        rows += [SmallRow(f"{split}/{i}", split, truth) for i, truth in enumerate(truths)]
        raw += truths
    allowed = {split: task.labels for split, task in TASKS.items()}
    found = collect(rows, raw, TASKS, allowed, raw[::-1] if frozen else None)
    return score_predictions(found, TASKS, allowed, categories=CATEGORIES)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(frozen: bool, width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(results_table(full(frozen), CATEGORIES))
    text = console.export_text()
    table = text[: text.index("Scores in points")]
    assert "…" not in table
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    names = [line.split()[0].lstrip("*") for line in table.splitlines() if line.strip()]
    assert all(task.name in names for task in TASKS.values())
    for name in (*CATEGORIES.values(), "Macro"):
        assert any(line.strip().startswith(name) for line in table.splitlines())
    assert ("frozen" in table) is frozen
    order = [next(i for i, line in enumerate(table.splitlines()) if name in line) for name in CATEGORIES.values()]
    assert order == sorted(order)


def test_the_summary_tells_notes_and_absent_splits() -> None:
    lines = "\n".join(summary_lines(score_predictions(records(), {**TASKS, **small.TASKS}, small.ALLOWED)))
    assert "Not scored (44): " in lines
    assert "image_test_chartqa" in lines
    assert "Rows without an answer, counted as wrong: 4 (arc_easy 3, stsb 1)." in lines
    assert "stsb: 1 of 3 rows without a number" in lines
    assert "Spearman" in lines
    assert "frozen" in lines


def test_markdown_has_a_row_per_category_and_the_macro() -> None:
    lines = markdown_table(full(True), CATEGORIES).splitlines()
    assert len(lines) == 2 + 7 + 1
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| Vision benchmark | 8 | 16 | 100.0 |")
    assert lines[-1].startswith("| **All tasks (macro)** | 47 | 94 | **100.0** |")
    assert "frozen" not in markdown_table(full(False), CATEGORIES)
