"""Estimates, tables, the choice of a search and figures, from made-up records."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import lime.config.searched
from lime.config.searched import searched
from lime.data.tasks import TASKS
from lime.evaluation.aggregation import MACRO
from lime.experiments.collection import read_sweep
from lime.experiments.estimates import CannotCompare, difference, seed_mean, splits_of
from lime.experiments.figures.catalogue import FIGURES, draw
from lime.experiments.figures.style import save
from lime.experiments.published import published
from lime.experiments.search import choose, write_choices
from lime.experiments.tables import csv_text, latex, make_table, markdown
from lime.runs.record import Identity, Items, Parameters, Record, Training, write_record
from tests.experiments.made import CHARTQA, SST2, STSB, failed, record, sweep

ROOT = Path(__file__).parents[2]


def test_mean_over_seeds_is_the_mean_over_tasks() -> None:
    records = [record(1, {SST2: "1100", CHARTQA: "1111"}), record(2, {SST2: "1000", CHARTQA: "1110"})]
    mean = seed_mean(records, MACRO)
    assert mean is not None
    assert mean.by_seed == (75.0, 50.0)
    assert mean.value == 62.5
    assert mean.deviation == pytest.approx(np.std([75, 50], ddof=1))
    assert mean.low <= 62.5 <= mean.high
    text = seed_mean(records, "text")
    assert text is not None
    assert text.value == 37.5
    assert seed_mean(records[:1], MACRO).deviation is None  # type: ignore[union-attr]
    assert seed_mean([], MACRO) is None
    assert seed_mean(records, "video") is None


def test_groups() -> None:
    one = record(1, dict.fromkeys((SST2, CHARTQA, STSB, "video_test_action_count"), "10"))
    assert splits_of([one], "vision") == [CHARTQA, "video_test_action_count"]
    assert splits_of([one], "glue") == [SST2, STSB]
    assert splits_of([one], CHARTQA) == [CHARTQA]


def test_correlation_tasks_count_by_pearson() -> None:
    truths = [0.0, 1.0, 2.0, 3.0]
    given: list[float | None] = [0.0, 1.0, None, 3.0]
    items = Items([0, 1, 2, 3], "1101", None, given, truths)
    one = record(1, {STSB: "1101"})
    one.items[STSB] = dataclasses.asdict(items)
    filled = [0.0, 1.0, 4 / 3, 3.0]
    mean = seed_mean([one], STSB)
    assert mean is not None
    assert mean.value == pytest.approx(100 * np.corrcoef(filled, truths)[0, 1])
    exact = seed_mean([one], STSB, "exact_match")
    assert exact is not None
    assert exact.value == 75.0


def test_difference_is_paired_by_seed_and_item() -> None:
    rng = np.random.default_rng(0)
    hard = rng.uniform(size=400)

    def made(seed: int, gain: float) -> Record:
        marks = hard + np.random.default_rng(seed).normal(0, 0.02, 400) < 0.5 + gain
        return record(seed, {SST2: "".join("1" if mark else "0" for mark in marks)})

    ours, theirs = [made(seed, 0.05) for seed in (1, 2, 3)], [made(seed, 0.0) for seed in (2, 3, 4)]
    found = difference(ours, theirs, MACRO)
    assert found is not None
    assert found.seeds == (2, 3)
    means = [seed_mean([one for one in side if one.seed in (2, 3)], MACRO) for side in (ours, theirs)]
    assert found.value == pytest.approx(means[0].value - means[1].value)  # type: ignore[union-attr]
    assert found.clear
    assert found.high - found.low < means[0].high - means[0].low  # type: ignore[union-attr]
    same = difference(ours, ours, MACRO)
    assert same is not None
    assert (same.value, same.low + same.high, same.clear) == (0.0, 0.0, False)  # no certainty about other rows
    assert -2 < same.low < 0
    assert difference(ours[:1], theirs, MACRO) is None


def test_rows_of_one_medium_move_together() -> None:
    def width(clusters: list[int] | None) -> float:
        one = record(1, {CHARTQA: "1100" * 10})
        one.items[CHARTQA]["clusters"] = clusters
        mean = seed_mean([one], MACRO)
        assert mean is not None
        return mean.high - mean.low

    apart = width(list(range(40)))
    assert apart == pytest.approx(width(None), rel=0.25)
    assert width([i // 2 for i in range(40)]) > 1.15 * apart


def test_other_rows_or_data_cannot_be_compared() -> None:
    data = dataclasses.replace(record().identity, data="x")
    with pytest.raises(CannotCompare, match="other data"):
        difference([record()], [record(identity=data)], MACRO)
    with pytest.raises(CannotCompare, match=f"rows of {SST2}"):
        seed_mean([record(1, {SST2: "10"}), record(2, {SST2: "101"})], MACRO)


@pytest.fixture
def table2(tmp_path: Path) -> Path:
    good, fair = {SST2: "1111", CHARTQA: "1110"}, {SST2: "1110", CHARTQA: "1110"}
    return sweep(
        tmp_path / "table2",
        [
            ({"method": "lime_lora"}, {1: record(1, good), 2: record(2, good)}),
            ({"method": "lora"}, {1: record(1, fair), 2: failed(2)}),
            ({"method": "mola"}, {1: None, 2: None}),
        ],
    )


def test_table_shows_failed_and_missing_runs(table2: Path) -> None:
    table = make_table(read_sweep(table2))
    assert table.baseline == "lime_lora"
    text = markdown(table)
    assert "| lime_lora | 2 | 1,000 | _75.0 ± 0.0_ |" not in text  # alike in a column: nobody is best
    assert "**100.0 ± 0.0**" in text
    assert "| lora | 1 of 2 (1 failed) | 1,000 |" in text
    assert "| mola | 0 of 2 (2 missing) | – | – |" in text
    assert "- lora: 1 failed" in text
    assert re.search(r"\| lora \| \+0\.0 \(-(\d+\.\d) to \+\1\) \| -25\.0 \(", text)
    assert "Published (arXiv 2604.02338v1" in text
    assert "| lime_lora | 78.0 | 91.0 |" in text


def test_csv_and_latex_hold_the_same_numbers(table2: Path) -> None:
    table = make_table(read_sweep(table2))
    rows = list(csv.DictReader(io.StringIO(csv_text(table))))
    assert len(rows) == 3 * 3
    glue = {row["point"]: row for row in rows if row["group"] == "glue"}
    assert float(glue["lora"]["mean"]) == 75.0
    assert float(glue["lora"]["difference"]) == -25.0
    assert glue["mola"]["mean"] == ""
    assert glue["mola"]["unfinished"] == "2 missing"
    assert float(glue["mola"]["published"]) == published().table2["mola"]["glue"]
    text = latex(table)
    assert r"lime\_lora & 2 & 1,000 & 75.0\,$\pm$\,0.0 & \textbf{100.0\,$\pm$\,0.0}" in text
    assert r"lora & 1 of 2 (1 failed) & 1,000 & 75.0 & \underline{75.0}" in text


def test_runs_without_scores_show_what_training_took(tmp_path: Path) -> None:
    def cost(seconds: float, memory: float) -> Record:
        measured = Training(seconds, steps=5, rows=40, tokens=400, samples_per_second=40 / seconds, loss=1.0)
        return record(1, {}, training=dataclasses.replace(measured, peak_memory_mb=memory))

    points: list[Any] = [({"method": "lime_lora"}, {1: cost(10, 1000)}), ({"method": "moe_lora"}, {1: cost(20, 2000)})]
    found = read_sweep(sweep(tmp_path / "efficiency", points))
    table = make_table(found)
    assert "| moe_lora | 1 | 1,000 | 4 | 2 | 2 |" in markdown(table)
    assert r"moe\_lora & 1 & 1,000 & 4 & 2 & 2 \\" in latex(table)
    assert "validation loss" not in markdown(table)
    validated = dataclasses.replace(cost(10, 1000).training or Training(), validation=[{"step": 5, "loss": 0.51234}])
    searched = sweep(tmp_path / "search", [({"method": "lora"}, {1: record(1, {}, training=validated)})])
    assert "| lora | 1 | 1,000 | 0.5123 | 2 |" in markdown(make_table(read_sweep(searched)))
    rows = list(csv.DictReader(io.StringIO(csv_text(table))))
    assert [float(row["step_seconds"]) for row in rows] == [2.0, 4.0]
    time, _, memory, _ = draw(found).axes
    assert [bar.get_width() for bar in time.patches] == [2.0, 4.0]
    paper = published().efficiency
    marks = [1.0, paper["moe_lora"][0] / paper["lime_lora"][0]]  # as ratios to LiME LoRA
    assert time.lines[-1].get_xdata() == pytest.approx([2.0 * mark for mark in marks])
    assert memory.patches[1].get_width() == pytest.approx(2000e6 / 2**30)


def test_unknown_baseline_names_the_points(table2: Path) -> None:
    with pytest.raises(ValueError, match="no point 'dora' to compare with; it has lime_lora, lora, mola"):
        make_table(read_sweep(table2), baseline="dora")


def test_records_of_other_commands_are_told_or_taken(table2: Path) -> None:
    write_record(table2 / "stray", record(3, config={"seed": 3, "model": {"name": "big"}}))
    assert "1 runs of other commands" in markdown(make_table(read_sweep(table2)))
    every = read_sweep(table2, everything=True)
    assert every.axes == ["model.name"]
    assert {point.settings["model.name"] for point in every.points} == {"tiny", "big"}


def sized(method: str, size: int, trainable: int, right: int, key: str = "r") -> Record:
    """A run of a method at a size; every configuration has both sizes, as composed ones do."""
    config = {"seed": 1, "method": method, "peft": {"r": 8, "num_virtual_tokens": 20, key: size}}
    marks = "1" * right + "0" * (10 - right)
    made = Identity(config=f"{method}{size}", code="code", data="data")
    return record(1, {SST2: marks}, identity=made, config=config, parameters=Parameters(trainable, 100_000, 4))


def test_score_over_parameters(tmp_path: Path) -> None:
    """Commands of several methods in one folder: each method's points by what its own runs differ in; the frontier."""
    runs = [
        sized("lora", 2, 100, 3), sized("lora", 16, 200, 5), sized("moe_lora", 2, 400, 4), sized("moe_lora", 4, 800, 7),
        sized("prompt_tuning", 5, 10, 1, "num_virtual_tokens"), sized("prompt_tuning", 10, 20, 1, "num_virtual_tokens"),
        sized("dora", 2, 300, 1),
    ]  # fmt: skip
    folder = tmp_path / "pareto"
    for one in runs:
        write_record(folder / one.identity.config, one)
    sweep = read_sweep(folder, everything=True)
    assert [point.label for point in sweep.points] == [
        "method=lora, r=2", "method=lora, r=16", "dora",
        "method=prompt_tuning, num_virtual_tokens=5", "method=prompt_tuning, num_virtual_tokens=10",
        "method=moe_lora, r=2", "method=moe_lora, r=4",
    ]  # fmt: skip
    assert "Published" not in markdown(make_table(sweep, baseline="method=lora, r=2"))
    figure = draw(sweep)
    (axes,) = figure.axes
    front = next(line for line in axes.lines if line.get_label() == "frontier")
    assert [*front.get_xdata()] == [10, 100, 200, 800]
    assert [*front.get_ydata()] == [10, 30, 50, 70]
    assert {text.get_text() for text in axes.texts} == {"2", "4", "5", "10", "16", ""}


def test_published_macro_follows_from_the_categories() -> None:
    scores = published().table2["lime_lora"]
    assert scores["parameters"] == 3.49e6
    sizes = {
        name: sum(task.category == name for task in TASKS.values())
        for name in scores
        if name not in ("parameters", MACRO)
    }
    assert sum(sizes.values()) == 47
    assert scores[MACRO] == pytest.approx(sum(sizes[n] * scores[n] for n in sizes) / 47)
    assert len(published().table2) == 17


def searching(folder: Path, losses: dict[str, dict[float, float | None]]) -> Path:
    def run(loss: float | None) -> Record:
        return record(7, {}, training=Training(steps=5, validation=[{"step": 5, "loss": loss}]), scores=[])

    points: list[Any] = [
        ({"method": method, "optim.peft_lr": rate}, {7: run(loss)})
        for method, tried in losses.items()
        for rate, loss in tried.items()
    ]
    return sweep(folder, points)


def test_search_takes_the_lowest_validation_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: dict[str, dict[float, float | None]] = {
        "lora": {1e-3: 1.0, 2e-3: 0.5, 4e-3: None},
        "dora": {1e-3: 0.9, 2e-3: 0.8, 4e-3: 0.7},
    }
    found = read_sweep(searching(tmp_path / "table2_search", losses))
    choices = choose(found)
    assert [(c.method, c.rate, c.at_edge) for c in choices] == [("lora", 2e-3, False), ("dora", 4e-3, True)]
    write_choices(tmp_path / "searched/table2.yaml", found, choices)
    content = yaml.safe_load((tmp_path / "searched/table2.yaml").read_text())
    assert content["at_the_edge_of_the_grid"] == ["dora"]
    assert content["losses"]["lora"][4e-3] is None
    monkeypatch.setattr(lime.config.searched, "ROOT", tmp_path)
    assert searched("searched/table2.yaml", "lora") == 2e-3
    with pytest.raises(ValueError, match="no rate for mola; it has lora, dora"):
        searched("searched/table2.yaml", "mola")


def test_unfair_or_unfinished_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did not try the same rates"):
        choose(read_sweep(searching(tmp_path / "a", {"lora": {1e-3: 1.0}, "dora": {2e-3: 1.0}})))
    with pytest.raises(ValueError, match="no run of lora has a validation loss"):
        choose(read_sweep(searching(tmp_path / "b", {"lora": {1e-3: None}})))
    folder = sweep(tmp_path / "c", [({"method": "lora", "optim.peft_lr": 1e-3}, {7: None})])
    with pytest.raises(ValueError, match=r"unfinished \(1 missing\)"):
        choose(read_sweep(folder))


def made_sweep(folder: Path, name: str) -> Path:
    """A small grid over the axes that the figure of an experiment needs, one run missing."""
    drawer: Any = FIGURES[name]
    named = getattr(drawer, "keywords", {"axis": "method"})
    axes = [named[key] for key in ("by", "x", "y", "axis") if named.get(key)]
    choices: dict[str, list[Any]] = {"method": ["lora", "lime_lora"], "lime.selection": ["auto", "topk"]}
    numbers = {
        f"{key}": [1, 2] if key.endswith(("experts", "r", "rows", "n_gram", "top_k")) else [0.1, 1.0] for key in axes
    }
    grid = [{}]
    for axis in axes:
        values = choices.get(axis, numbers[axis] if "x" in named else ["a", "b"])
        grid = [{**point, axis: value} for point in grid for value in values]
    correct = {SST2: "1100", CHARTQA: "1110", "video_test_action_count": "1010"}
    points = [(point, {1: record(1, correct), 2: record(2, correct) if i else None}) for i, point in enumerate(grid)]
    return sweep(folder / name, points)


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_every_experiment_has_a_figure(tmp_path: Path, name: str) -> None:
    figure = draw(read_sweep(made_sweep(tmp_path, name)))
    texts = " ".join(text.get_text() for axes in figure.axes for text in [axes.title, *axes.texts])
    assert texts.strip()
    assert (ROOT / "experiments" / f"{name}.yaml").is_file()


def test_a_figure_is_chosen_by_what_a_sweep_holds(tmp_path: Path) -> None:
    """Not by its name: another experiment's, or none that is known."""

    def titles(folder: Path) -> list[str]:
        return [axes.get_title() for axes in draw(read_sweep(folder)).axes]

    numbers = [({"lime.num_experts": n}, {1: record(1)}) for n in (1, 2)]
    assert titles(sweep(tmp_path / "table2", numbers)) == titles(sweep(tmp_path / "mine", numbers))
    assert titles(sweep(tmp_path / "num_experts", numbers)) == titles(tmp_path / "mine")
    unscored = [({"method": m}, {1: record(1, {})}) for m in ("lora", "lime_lora")]
    labels = [axes.get_xlabel() for axes in draw(read_sweep(sweep(tmp_path / "a" / "table2", unscored))).axes]
    assert labels[0] == "seconds a step"
    scored = [({"method": m}, {1: record(1)}) for m in ("lora", "lime_lora")]
    assert titles(sweep(tmp_path / "b" / "mine", scored))[0] == "These runs: all tasks"
    with pytest.raises(ValueError, match="not evaluated"):
        draw(read_sweep(sweep(tmp_path / "c" / "num_experts", [({"lime.num_experts": 1}, {1: record(1, {})})])))
    words = [({"lime.num_experts": n}, {1: record(1)}) for n in (2, None)]
    assert titles(sweep(tmp_path / "d" / "num_experts", words))  # no number: dots


def test_a_radar_shows_negative_scores(tmp_path: Path) -> None:
    def made(seed: int) -> Record:
        one = record(seed, dict.fromkeys((SST2, STSB, CHARTQA), "1100"))
        one.items[STSB] = dataclasses.asdict(
            Items([0, 1, 2, 3], "0000", None, [3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0])
        )
        return one

    points = [({"lime.selection": value}, {1: made(1)}) for value in ("auto", "topk")]
    (axes,) = draw(read_sweep(sweep(tmp_path / "mine", points))).axes
    low = min(float(min(line.get_ydata())) for line in axes.lines)
    assert low == pytest.approx(-100)
    assert axes.get_ylim()[0] <= low


def test_figures_are_the_same_bytes_twice(tmp_path: Path) -> None:
    found = read_sweep(made_sweep(tmp_path, "num_experts"))
    first, second = (save(draw(found), tmp_path / part, "f") for part in ("a", "b"))
    assert [path.suffix for path in first] == [".png", ".pdf"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_scripts_print_tables_and_tell_errors(table2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(script: str, *arguments: str) -> int:
        old, sys.argv = sys.argv, [script, *arguments]
        try:
            runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
        except SystemExit as stop:
            return int(stop.code or 0)
        finally:
            sys.argv = old
        return 0

    out = table2.parent / "out"
    assert call("collect.py", str(table2), "--out", str(out)) == 0
    assert {path.name for path in out.iterdir()} == {"table2.md", "table2.csv", "table2.tex"}
    assert call("figures.py", str(table2), "--out", str(out)) == 0
    assert (out / "table2.png").stat().st_size > 10_000
    capsys.readouterr()
    assert call("collect.py", str(table2 / "nowhere")) == 2
    assert call("figures.py", str(table2 / "nowhere")) == 2
    assert capsys.readouterr().err.count("nowhere: no such folder") == 2
