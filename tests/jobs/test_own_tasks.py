"""Tasks of one's own, one with a closed set of answers and one of free text, behind an opened data set: what is
computed and shown for the 47 is computed and shown for them.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lime.config.check import ConfigError, build
from lime.config.schema import EvalConfig
from lime.config.sweeps import Plan, PlannedRun
from lime.data.config import DataConfig
from lime.data.datasets import open_dataset
from lime.data.tasks import mmt47, table_of
from lime.evaluation.metrics import METRICS, row_metric
from lime.evaluation.predictions import Prediction
from lime.evaluation.report import read_results
from lime.experiments.collection import read_sweep
from lime.experiments.figures.catalogue import draw
from lime.experiments.tables import WRITERS, make_table
from lime.inference.evaluation import report
from lime.integrations.hub import export_adapter
from lime.jobs.evaluate import evaluate
from lime.jobs.train import train
from lime.loggers.wandb import PREDICTIONS
from lime.report.render import write_report_page
from lime.runs.record import read_record
from scripts.analyse import main as analyse
from scripts.compare import main as compare
from scripts.data import main as list_tasks
from tests.data import tiny
from tests.experiments.made import record
from tests.experiments.made import sweep as made_sweep
from tests.training.parts import config
from tests.training.wandb_file import merged, records_at_end

TASKS = """
files: {train: train.csv, test: test.csv}
columns: {task: task, kind: kind, image: picture, question: question, answer: answer}
categories: {looks: Looks of pets, facts: Facts to know}
tasks:
  - {split: pets, name: cat_or_dog, modality: image, category: looks, answer_type: label, answers: [cat, dog]}
  - {split: capitals, modality: text, category: facts, answer_type: text, metric: first_letter}
"""
CITIES = {"France": "Paris", "Peru": "Lima", "Japan": "Tokyo", "Kenya": "Nairobi"}


def write_rows(root: Path, part: str, count: int) -> None:
    rows = []
    for i in range(count):
        animal, country = ("cat", "dog")[i % 3 == 0], [*CITIES][i % 3 if i < count - 1 else 3]
        tiny.write_image(root / f"{part}-{i}.png", 40 + i, 48, seed=i)
        rows.append(["pets", "image", f"{part}-{i}.png", "Which animal is it?", animal])
        rows.append(["capitals", "text", "", f"{part} {i}: the capital of {country}?", CITIES[country]])
    with (root / f"{part}.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["task", "kind", "picture", "question", "answer"], *rows])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    write_rows(folder, "train", 8)
    write_rows(folder, "test", 6)
    (folder / "tasks.yaml").write_text(TASKS)
    return folder


@pytest.fixture(scope="module", autouse=True)
def first_letter() -> Iterator[None]:
    """A metric of one's own, which the table names."""

    @row_metric("first_letter", "first letter")
    def score(answer: str | None, truth: str) -> float:
        return float((answer or " ")[0] == truth[0])

    yield
    METRICS.pop("first_letter")


def own(root: Path, **changes: Any) -> Any:
    return config(
        data__name="own", data__root=str(root), data__train_rows=8, trainer__max_steps=2,
        **{"evaluation__max_new_tokens": 3, **changes},
    )  # fmt: skip


def evaluation_of(**values: Any) -> EvalConfig:
    return build(EvalConfig, {"data": {"root": "anywhere"}, "cache_dir": None, **values})


def rescored(run: Path, folder: Path, **evaluation: Any) -> Any:
    return evaluate(evaluation_of(predictions=str(run), evaluation=evaluation), folder)


def test_names_and_metrics_are_checked_before_a_model_is_trained(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.splits: unknown split 'pet'; did you mean 'pets'"):
        train(own(root, evaluation__splits=["pet"]), tmp_path / "a")
    with pytest.raises(ConfigError, match=r"evaluation\.metrics: unknown split 'sst2'"):
        train(own(root, evaluation__metrics={"sst2": "accuracy"}), tmp_path / "b")
    with pytest.raises(ValueError, match=r"test split capitals: capitals, row 0: truth 'Paris' is not a number"):
        train(own(root, evaluation__metrics={"facts": "correlation"}), tmp_path / "c")
    other = shutil.copytree(root, tmp_path / "other")
    (other / "tasks.yaml").write_text(TASKS.replace("first_letter", "last_letter"))
    with pytest.raises(ValueError, match=r"test split capitals: metric 'last_letter': expected one of accuracy"):
        train(own(other), tmp_path / "d")
    assert not (tmp_path / "d" / "adapter").exists()


def test_the_table_is_part_of_what_makes_a_run_the_same(root: Path, tmp_path: Path) -> None:
    other = shutil.copytree(root, tmp_path / "other")
    before = open_dataset(DataConfig(name="own", root=str(other))).fingerprint
    (other / "tasks.yaml").write_text(TASKS.replace("answers: [cat, dog]", "answers: [cat, dog, cow]"))
    assert open_dataset(DataConfig(name="own", root=str(other))).fingerprint != before


@pytest.fixture(scope="module")
def sweep(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two methods, the first of them at W&B."""
    folder = tmp_path_factory.mktemp("sweeps") / "made"
    points = [{"method": "lime_lora", "seed": 1}, {"method": "lora", "seed": 1}]
    Plan(folder, (), tuple(PlannedRun(point["method"], point) for point in points)).write()  # type: ignore[arg-type]
    train(own(root, logger__wandb={"mode": "offline", "samples": 4}), folder / "lime_lora")
    train(own(root, method="lora", lime__enabled=False), folder / "lora")
    return folder


@pytest.mark.slow
def test_chance_majority_frozen_and_intervals(root: Path, sweep: Path) -> None:
    evaluation, _ = read_results(sweep / "lime_lora")
    pets, capitals = evaluation.splits
    assert (pets.split, pets.name, pets.category, pets.metric, pets.n) == ("pets", "cat_or_dog", "looks", "accuracy", 6)
    assert (capitals.name, capitals.category, capitals.metric, capitals.n) == ("capitals", "facts", "first_letter", 6)
    assert (pets.chance, capitals.chance) == (50.0, None)
    assert pets.majority_answer == "cat"
    assert pets.majority == pytest.approx(100 * 4 / 6)
    truths = [row.answer for row in open_dataset(own(root).data).tests["capitals"]]
    assert capitals.majority == pytest.approx(100 * max(Counter(truths).values()) / 6)
    for score in evaluation.splits:
        assert score.frozen is not None
        assert score.low is not None
        assert score.high is not None
        assert score.low <= score.value <= score.high
    assert [group.name for group in evaluation.categories] == ["looks", "facts"]
    assert evaluation.macro.score.value == pytest.approx((pets.value + capitals.value) / 2)
    assert evaluation.macro.over_frozen is not None
    assert not evaluation.absent
    text = (sweep / "lime_lora" / "results.md").read_text()
    assert "| Looks of pets | 1 | 6 |" in text
    assert "Score (accuracy; first letter for capitals), macro over 2 tasks" in text
    assert "STS-B" not in text


@pytest.mark.slow
def test_a_run_keeps_its_table(root: Path, sweep: Path, tmp_path: Path) -> None:
    table = open_dataset(own(root).data).table
    run = sweep / "lime_lora"
    assert table_of(run) == table_of(run / "predictions.jsonl") == read_record(run).table == table
    assert not table.is_mmt47
    again = rescored(run, tmp_path / "a", splits="looks")
    assert [score.split for score in again.splits] == ["pets"]
    assert again.splits[0] == read_results(run)[0].splits[0]
    assert table_of(tmp_path / "a") == table
    exact = rescored(run, tmp_path / "b", metrics={"facts": "accuracy"})
    assert [score.metric for score in exact.splits] == ["accuracy", "accuracy"]
    with pytest.raises(ConfigError, match=r"unknown split 'glue'"):
        rescored(run, tmp_path / "c", splits="glue")
    config = evaluation_of(adapter=str(run / "adapter"), evaluation={"splits": ["cat_or_dog"]})
    scores = evaluate(config, tmp_path / "d", ["evaluation.splits=[cat_or_dog]"])
    assert scores.splits[0] == again.splits[0]


@pytest.mark.slow
def test_reports_comparisons_tables_and_figures(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [sweep / "lime_lora", sweep / "lora"]
    for folder, target in ((runs[0], tmp_path / "run.html"), (sweep, tmp_path / "sweep.html")):
        page = write_report_page(folder, target).read_text()
        assert "Looks of pets" in page
        assert "GLUE" not in page
    assert "cat_or_dog" in (tmp_path / "run.html").read_text()
    assert compare([*map(str, runs), "--json", str(tmp_path / "c.json")]) == 0
    shown = capsys.readouterr().out
    assert "cat_or_dog" in shown
    assert "Looks of pets" in shown
    assert [task["split"] for task in json.loads((tmp_path / "c.json").read_text())["tasks"]] == ["pets", "capitals"]
    table = make_table(read_sweep(sweep))
    assert table.groups == ("looks", "facts", "macro")
    text = WRITERS["md"](table)
    assert "| method | seeds | parameters | Looks of pets | Facts to know | All tasks (macro) |" in text
    assert "Score (accuracy, first letter for capitals)" in text
    assert "Published" not in text
    assert table.published(table.rows[0], "macro") is None
    figure = draw(read_sweep(sweep))
    assert not any(line.get_markerfacecolor() == "none" for axes in figure.axes for line in axes.lines)
    card = (export_adapter(runs[0], tmp_path / "export") / "README.md").read_text()
    assert "own (2 tasks: cat_or_dog, capitals)" in card
    assert "MMT-47" not in card


@pytest.mark.slow
def test_wandb_has_the_scores_and_the_pictures(sweep: Path) -> None:
    (folder,) = (sweep / "lime_lora" / "wandb").glob("offline-run-*")
    written = records_at_end(folder)
    summary, history = merged(written, "summary"), merged(written, "history")
    evaluation, _ = read_results(sweep / "lime_lora")
    for score in evaluation.splits:
        assert summary[f"score/{score.split}"] == pytest.approx(score.value)
    assert summary["score/looks"] == pytest.approx(evaluation.splits[0].value)
    content = json.loads((folder / "files" / history[PREDICTIONS]["path"]).read_text())
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    assert {row["task"]: row["picture"] is not None for row in rows} == {"pets": True, "capitals": False}


@pytest.mark.slow
def test_the_analysis_names_the_tasks(sweep: Path, tmp_path: Path) -> None:
    assert analyse([str(sweep / "lime_lora"), "--rows", "3", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "analysis.md").read_text()
    for group in ("| task | cat_or_dog | 3 |", "| category | Looks of pets | 3 |", "| modality | text | 3 |"):
        assert group in text
    assert json.loads((tmp_path / "analysis.json").read_text())["rows"]["splits"] == ["pets", "capitals"]


@pytest.mark.slow
def test_runs_of_other_tasks_are_not_averaged(sweep: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    for name in ("lime_lora", "lora"):
        shutil.copytree(sweep / name, folder / name)
    content = yaml.safe_load((folder / "lora" / "tasks.yaml").read_text())
    content["tasks"][0]["answers"] = ["cat", "dog", "cow"]
    record = json.loads((folder / "lora" / "record.json").read_text())
    (folder / "lora" / "record.json").write_text(json.dumps(record | {"tasks": content}))
    with pytest.raises(ValueError, match="mixed: its runs lime_lora and lora have different tables of tasks"):
        read_sweep(folder, everything=True)
    (folder / "lora" / "tasks.yaml").write_text(yaml.safe_dump(content))
    assert compare([str(folder / "lime_lora"), str(folder / "lora")]) == 2
    content["tasks"][0]["answers"] = ["cat", "dog"]
    content["tasks"].append({**content["tasks"][0], "split": "more", "name": "more"})
    (folder / "lora" / "tasks.yaml").write_text(yaml.safe_dump(content))
    assert compare([str(folder / "lime_lora"), str(folder / "lora")]) == 0


def test_a_command_and_the_dashboard_name_them(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list_tasks(["tasks", str(root)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["cat_or_dog", "pets", "accuracy"] in lines
    table = open_dataset(DataConfig(name="own", root=str(root))).table
    pytest.importorskip("wandb_workspaces")
    from lime.integrations.wandb_dashboard import panels

    titles = [panel.title for panel in panels(table)["Categories"]]
    assert titles == ["Looks of pets (points)", "Facts to know (points)"]


def test_one_category_is_not_told_twice(root: Path, tmp_path: Path) -> None:
    other = shutil.copytree(root, tmp_path / "other")
    (other / "tasks.yaml").write_text(
        TASKS.replace("category: facts", "category: looks").replace(", facts: Facts to know", "")
    )
    table = open_dataset(DataConfig(name="own", root=str(other))).table
    assert table.groups == {}
    rows = [Prediction(f"{s}/{i}", s, "q", "", "cat", "cat", "cat", True) for s in table.tasks for i in range(3)]
    report(rows, table, {}, evaluation_of(), tmp_path, {})
    text = (tmp_path / "results.md").read_text()
    assert "Looks of pets" not in text
    assert "All tasks (macro)" in text
    assert "100.0" in text


def test_mmt47_alone_is_compared_with_the_paper(tmp_path: Path) -> None:
    marks = {"glue_test_sst2": "1100"}
    content = mmt47().content()
    shorter = {**content, "tasks": [row for row in content["tasks"] if row["split"] in marks]}
    for tasks, quoted in ((None, True), (shorter, False)):
        run = record(1, marks, tasks=tasks)
        found = read_sweep(
            made_sweep(tmp_path / str(quoted), [({"method": name}, {1: run}) for name in ("lora", "dora")])
        )
        table = make_table(found)
        assert (table.published(table.rows[0], "macro") is not None) == quoted
        assert ("Published" in WRITERS["md"](table)) == quoted
        assert bool(draw(found).axes[1].lines) == quoted
    assert mmt47().groups == mmt47().categories
