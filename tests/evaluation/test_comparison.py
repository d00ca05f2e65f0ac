"""Two runs compared row by row; clusters of source media in intervals and in the test."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from lime.data import tasks as data_tasks
from lime.evaluation.clusters import source_media
from lime.evaluation.comparison import compare, comparison_table, reading
from lime.evaluation.predictions import Prediction, write_predictions
from scripts.compare import main
from tests.evaluation.tasks import ARC, QQP, STSB, TASKS


def records(split: str, right: list[bool], media: list[str] | None = None) -> list[Prediction]:
    return [
        Prediction(f"{split}/{i}", split, "q", media[i] if media else "", "r", "r", "t", correct)
        for i, correct in enumerate(right)
    ]


def test_source_media() -> None:
    clips = ["v/masking/Clip7.mp4", "v/rotate/clip7.mp4", "v/clip7_dropping.mp4", "v/clip7.mp4", "v/original/clip7.mp4"]
    assert {source_media(path) for path in clips} == {"v/clip7"}
    assert source_media("v/masking/clip8.mp4") != source_media("v/masking/clip7.mp4")
    assert source_media("v/clip7_rotate_2.mp4") == source_media("v/clip7_masking_2.mp4")
    assert source_media("images/original/1.jpg") == "images/original/1.jpg"  # only clips are tampered with
    assert source_media("") == ""


def test_comparison_names_what_differs() -> None:
    rng = np.random.default_rng(0)
    equal = list(rng.random(200) < 0.5)
    worse = [False] * 30 + [True] * 10 + [False] * 160
    better = [True] * 30 + [False] * 2 + [True] * 8 + [False] * 160
    a = records(ARC.split, worse) + records(QQP.split, equal)
    b = records(ARC.split, better) + records(QQP.split, equal) + records(STSB.split, [True])
    found = compare(a, b, TASKS)
    arc, qqp = found.tasks
    assert (arc.only_a, arc.only_b, arc.n, arc.difference) == (2, 30, 200, 14.0)
    assert arc.clear
    assert arc.low < 14 < arc.high
    assert (qqp.difference, qqp.p, qqp.clear) == (0.0, 1.0, False)
    assert found.macro.difference == pytest.approx(7.0)
    assert found.macro.clear
    assert found.left_out == 1
    assert "B better in 1 (text_test_arc_easy)" in reading(found)[1]
    same = compare(a, a, TASKS)
    assert not same.macro.clear
    assert "no more than noise" in reading(same)[0]


def test_shared_media_are_tested_as_one() -> None:
    media = [f"clip{i // 6}.mp4" for i in range(60)]
    a, b = records(ARC.split, [False] * 60, media), records(ARC.split, [i // 6 < 4 for i in range(60)], media)
    (clustered,) = compare(a, b, TASKS).tasks
    assert (clustered.media, clustered.n) == (10, 60)
    assert clustered.p == pytest.approx(2 * 0.5**4 - 0.5**4)  # four media, all the same way, mid-p
    (single,) = compare(records(ARC.split, [False] * 60), records(ARC.split, [i < 24 for i in range(60)]), TASKS).tasks
    assert single.p < 1e-6


def test_a_task_scored_by_correlation() -> None:
    truths = np.linspace(0, 5, 60)
    rng = np.random.default_rng(0)

    def given(noise: float) -> list[Prediction]:
        values = truths + noise * rng.normal(size=60)
        return [
            Prediction(f"{STSB.split}/{i}", STSB.split, "q", "", f"{v:.3f}", f"{v:.3f}", f"{t:.3f}", False)
            for i, (v, t) in enumerate(zip(values, truths, strict=True))
        ]

    (task,) = compare(given(4.0), given(0.1), TASKS).tasks
    assert task.b > 99 > task.a
    assert task.clear
    assert task.low < task.difference < task.high


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = "text_test_arc_easy"
    for name, right in (("a", [False] * 40), ("b", [True] * 20 + [False] * 20)):
        (tmp_path / name).mkdir()
        write_predictions(tmp_path / name / "predictions.jsonl", records(split, right))
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--json", str(tmp_path / "out.json")]) == 0
    shown = capsys.readouterr().out
    assert "*arc_easy" in shown
    assert "more than noise among test rows" in shown
    assert json.loads((tmp_path / "out.json").read_text())["tasks"][0]["only_b"] == 20
    write_predictions(tmp_path / "b" / "predictions.jsonl", records("glue_test_qqp", [True]))
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "share no test row" in capsys.readouterr().err
    assert main([str(tmp_path / "a"), str(tmp_path / "nowhere")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    split = "video_test_counterfactual_inference"
    right, wrong = records(split, [True] * 300), records(split, [False] * 300)
    console = Console(width=80, file=io.StringIO())
    console.print(comparison_table(compare(right, wrong, data_tasks.TASKS), data_tasks.CATEGORIES))
    lines = console.file.getvalue().splitlines()
    (one,) = [line.split() for line in lines if line.startswith("*counterfactual")]
    assert one[1:5] == ["300", "100.0", "0.0", "-100.0"]
    assert one[-3:] == ["300:0", "<.001", "<.001"]
    assert max(map(len, lines)) <= 80
