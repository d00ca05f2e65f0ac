"""A metric is one file; a run has one interval, wherever it is shown."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import scripts.collect
import scripts.compare
import scripts.report
from lime.config.check import ConfigError, build
from lime.config.schema import EvalConfig
from lime.data.tasks import TASKS, mmt47
from lime.evaluation import intervals
from lime.evaluation.intervals import interval_text, mean_sample
from lime.evaluation.metrics import METRICS, metric_of, register, row_metric
from lime.evaluation.metrics.accuracy import Accuracy
from lime.evaluation.predictions import Prediction, collect, read_predictions, write_predictions
from lime.evaluation.report import csv_rows, read_results
from lime.jobs.evaluate import evaluate
from lime.runs.status import items_of
from tests.evaluation.tasks import SmallRow
from tests.experiments.made import CHARTQA, SST2, STSB, record, sweep

VIDEO = "video_test_action_sequence"
TOKEN_F1 = """
from lime.evaluation.metrics import row_metric


@row_metric("token_f1", "token F1")
def token_f1(answer, truth):
    given, expected = (answer or "").lower().split(), truth.lower().split()
    shared = sum(min(given.count(word), expected.count(word)) for word in set(given))
    return 2 * shared / (len(given) + len(expected)) if shared else 0.0
"""


def answers(seed: int, skill: float) -> list[Prediction]:
    """Forty rows of each of four tasks; pictures and clips are shared by rows."""
    draw = np.random.default_rng(seed)
    rows, raw, frozen = [], [], []
    for split in (CHARTQA, VIDEO, SST2, STSB):
        truths = {
            CHARTQA: ["red bar", "blue bar", "a long grey line"], VIDEO: list("ABCDEF"), SST2: ["positive", "negative"],
            STSB: ["0.5", "1.0", "2.5", "3.0", "4.5"],
        }[split]  # fmt: skip
        media = {CHARTQA: "charts/{}.png", VIDEO: "masking/clip{}.mp4"}.get(split, "")
        for i in range(40):
            truth = truths[i % len(truths)]
            rows.append(SmallRow(f"{split}/{i}", split, truth, "which?", media.format(i // 3)))
            raw.append(truth if draw.random() < skill else str(draw.choice(truths)))
            frozen.append(str(draw.choice(truths)))
    return collect(rows, raw, TASKS, {split: TASKS[split].labels for split in TASKS}, frozen)


def finished_runs(root: Path, **settings: Any) -> Path:
    """A sweep of two methods with one seed each: predictions scored by eval.py's own code, and records."""
    root.mkdir(exist_ok=True)
    points: list[Any] = []
    for method, skill in (("lime_lora", 0.7), ("lora", 0.5)):
        given = write_predictions(root / f"{method}.jsonl", answers(int(10 * skill), skill))
        values = {"predictions": str(given), "evaluation": settings, "data": {"root": str(root)}}
        evaluation = evaluate(build(EvalConfig, values), root / f"{method}-scored")
        read = read_predictions(root / f"{method}-scored")
        of = {one.split: items_of([p for p in read if p.split == one.split], one.metric) for one in evaluation.splits}
        made = record(1, scores=csv_rows(evaluation), items={split: vars(items) for split, items in of.items()})
        points.append(({"method": method}, {1: made}))
    folder = sweep(root / "table2", points)
    for method in ("lime_lora", "lora"):
        run = folder / f"{method}-1"
        for file in (root / f"{method}-scored").glob("*.*"):
            if file.name.startswith(("results", "predictions")):
                (run / file.name).write_bytes(file.read_bytes())
        (run / "config.yaml").write_text(yaml.safe_dump({"method": method, "seed": 1}))
    return folder


def collected(folder: Path, out: Path, *options: str) -> dict[tuple[str, str], dict[str, str]]:
    assert scripts.collect.main([str(folder), "--out", str(out), *options]) == 0
    with (out / f"{folder.name}.csv").open(newline="") as file:
        return {(row["point"], row["group"]): row for row in csv.DictReader(file)}


def compared(folder: Path, out: Path) -> dict[str, Any]:
    a, b = (str(folder / f"{method}-1") for method in ("lime_lora", "lora"))
    assert scripts.compare.main([a, b, "--json", str(out)]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_one_run_has_one_interval_everywhere(tmp_path: Path) -> None:
    folder = finished_runs(tmp_path)
    run = folder / "lime_lora-1"
    evaluation, _ = read_results(run)
    groups = {group.name: group.score for group in (*evaluation.categories, evaluation.macro)}
    assert len(groups) == 4
    with (run / "results.csv").open(newline="") as file:
        lines = {line["name"]: line for line in csv.DictReader(file)}
    recorded = {one["name"]: one for one in json.loads((run / "record.json").read_text())["scores"]}
    table = collected(folder, tmp_path / "tables")
    assert scripts.report.main([str(run)]) == 0
    page, listed = (run / "report.html").read_text(), (run / "results.md").read_text()
    assert scripts.report.main([str(folder)]) == 0
    sweep_page = (folder / "report.html").read_text()
    assert "Exact match" not in sweep_page  # what it shows is the score
    for name, score in groups.items():
        ends = pytest.approx((score.low, score.high), abs=1e-4)
        assert (float(lines[name]["low"]), float(lines[name]["high"])) == ends
        assert (recorded[name]["low"], recorded[name]["high"]) == ends
        assert (float(table["lime_lora", name]["low"]), float(table["lime_lora", name]["high"])) == ends
        for text in (page, listed, sweep_page):
            assert interval_text(score.low, score.high) in text
    (stsb,) = (one for one in evaluation.splits if one.split == STSB)
    (video,) = (one for one in evaluation.splits if one.split == VIDEO)
    assert (video.low, video.high) == (groups[video.category].low, groups[video.category].high)  # alone in its category
    assert stsb.low is not None

    differences = compared(folder, tmp_path / "compare.json")
    for found in (*differences["categories"], differences["macro"]):
        row = table["lora", found["name"]]
        assert (float(row["difference_low"]), float(row["difference_high"])) == pytest.approx(
            (found["low"], found["high"]), abs=1e-4
        )


@pytest.fixture
def token_f1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A metric as somebody's own module, one file."""
    (tmp_path / "my_token_f1.py").write_text(TOKEN_F1)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"evaluation.metrics.chartqa: expected one of accuracy, correlation"):
        build(EvalConfig, {"evaluation": {"metrics": {"chartqa": "token_f1"}}})
    yield "my_token_f1"
    forget()


def forget() -> None:
    """As in a new process."""
    METRICS.pop("token_f1", None)
    sys.modules.pop("my_token_f1", None)


def test_a_metric_of_ones_own_is_one_file(tmp_path: Path, token_f1: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Scored with its interval, written, recorded, collected, compared and reported."""
    folder = finished_runs(tmp_path, metrics={"chartqa": "token_f1"}, module=token_f1)
    run = folder / "lime_lora-1"
    rows = [p for p in read_predictions(run) if p.split == CHARTQA]
    values = [metric_of("token_f1").score(p.extracted, p.truth) for p in rows]  # type: ignore[attr-defined]
    mean = 100 * float(np.mean(values))
    assert 0 < mean < 100
    assert mean != 100 * np.mean([p.correct for p in rows])  # partly right answers count partly

    evaluation, _ = read_results(run)
    chartqa = next(one for one in evaluation.splits if one.split == CHARTQA)
    assert (chartqa.metric, chartqa.value) == ("token_f1", pytest.approx(mean))
    assert chartqa.low < chartqa.value < chartqa.high  # type: ignore[operator]
    assert chartqa.frozen is not None
    assert chartqa.majority > chartqa.majority_exact  # of the longer truths some words are right
    line = f"chartqa: score is token F1, {mean:.1f} ({interval_text(chartqa.low, chartqa.high)})"
    assert line in (run / "results.md").read_text()
    assert f"split,{CHARTQA},vision_benchmark,token_f1,40,{mean:.4f}" in (run / "results.csv").read_text()
    assert json.loads((run / "record.json").read_text())["items"][CHARTQA]["values"] == pytest.approx(values)

    forget()
    assert scripts.collect.main([str(folder)]) == 2
    assert "metric 'token_f1': expected one of accuracy, correlation" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        scripts.collect.main([str(folder), "--module", "no_such_module"])
    assert "--module: no_such_module: cannot be imported" in capsys.readouterr().err
    row = collected(folder, tmp_path / "tables", "--module", token_f1)["lime_lora", "vision_benchmark"]
    assert (row["mean"], row["low"], row["high"]) == tuple(
        f"{value:.4f}" for value in (mean, chartqa.low, chartqa.high)
    )
    assert "(accuracy, 100 x Pearson for STS-B, token F1 for chartqa)" in (tmp_path / "tables/table2.md").read_text()
    found = next(one for one in compared(folder, tmp_path / "c.json")["tasks"] if one["split"] == CHARTQA)
    assert found["a"] == pytest.approx(mean)
    assert found["low"] < found["b"] - found["a"] < found["high"]
    assert 0 < found["p"] <= 1
    assert scripts.report.main([str(run)]) == 0
    assert line in (run / "report.html").read_text()
    assert scripts.report.main([str(folder)]) == 0
    assert "token F1 for chartqa" in (folder / "report.html").read_text()

    other = finished_runs(tmp_path / "plain") / "lora-1"
    capsys.readouterr()
    assert scripts.compare.main([str(run), str(other)]) == 2
    assert f"{CHARTQA}: A was scored by token_f1, B by accuracy" in capsys.readouterr().err
    mixed = sweep(tmp_path / "mixed", [])
    for place, name in ((run, "lime_lora-1"), (other, "lora-1")):
        (mixed / name).mkdir()
        (mixed / name / "record.json").write_bytes((place / "record.json").read_bytes())
    assert scripts.collect.main([str(mixed), "--all"]) == 2
    assert "by other metrics (token_f1, accuracy)" in capsys.readouterr().err


def test_metrics_are_chosen_by_task_or_category() -> None:
    table = mmt47().scored_by({"glue": "correlation", "glue_test_stsb": "accuracy"})
    assert {table[split].metric for split in TASKS if table[split].category == "glue" and split != STSB} == {
        "correlation"
    }
    assert table[STSB].metric == "accuracy"
    assert table.keys() == TASKS.keys()
    with pytest.raises(ConfigError, match=r"evaluation\.metrics: unknown split 'chartq'; did you mean 'chartqa'"):
        build(EvalConfig, {"evaluation": {"metrics": {"chartq": "accuracy"}}})
    with pytest.raises(ConfigError, match=r"evaluation\.module: no_such_module: cannot be imported"):
        build(EvalConfig, {"evaluation": {"module": "no_such_module"}})


def test_what_is_no_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="metric accuracy: there is another one of this name"):
        register(Accuracy("accuracy", "another"))
    with pytest.raises(ValueError, match="metric 'bleu': expected one of accuracy, correlation"):
        metric_of("bleu")
    row_metric("far_off", "far off")(lambda answer, truth: 2.0)
    try:
        with pytest.raises(ValueError, match=r"s, row 0: metric far_off gave 2\.0; expected a number from 0 to 1"):
            metric_of("far_off").read("s", ["a"], ["b"], np.zeros(1))
    finally:
        del METRICS["far_off"]


@pytest.mark.parametrize("size", [1, 3])
def test_the_interval_of_a_row_metric_covers(size: int) -> None:
    """Values that are mostly 0 or 1 with some between, as token F1 gives them; rows of a source partly alike."""
    draw = np.random.default_rng(0)
    sources = [str(i // size) for i in range(60)]
    levels, chances = np.array([0.0, 0.4, 0.67, 1.0]), np.array([0.3, 0.1, 0.2, 0.4])
    truth = 100 * float(levels @ chances)
    inside = []
    for _ in range(600):
        together = np.repeat(draw.choice(levels, 60 // size, p=chances), size)
        values = np.where(draw.random(60) < 0.5, together, draw.choice(levels, 60, p=chances))
        found = intervals.share([mean_sample(values, sources)])
        inside.append(found.low <= truth <= found.high)
    assert 0.93 <= np.mean(inside) <= 0.985
