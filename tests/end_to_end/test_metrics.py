"""A metric of one's own, registered by a module outside the package: from training to collected table and report."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import scripts.collect
import scripts.compare
import scripts.report
from lime.evaluation.metrics import METRICS
from tests.end_to_end.command import Command

pytestmark = pytest.mark.slow

CHARTQA = "image_test_chartqa"


MODULE = """
from lime.evaluation.metrics import row_metric


@row_metric("same_length", "shared length")
def same_length(answer, truth):
    return min(len(answer or ""), len(truth)) / max(len(answer or ""), len(truth))
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "my_same_length.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_same_length"
    del METRICS["same_length"], sys.modules["my_same_length"]


def test_a_metric_of_ones_own(tmp_path: Path, command: Command, module: str) -> None:
    outcome = command(
        "train.py", "-m", "method=lime_lora,lora", "debug=fast", "name=mine", "evaluation.splits=[chartqa,sst2,stsb]",
        "evaluation.metrics={chartqa:same_length}", f"evaluation.module={module}", "data.rows_per_split=6",
        "data.mini.train_per_task=4", "data.mini.test_per_task=6", "data.mini.workers=1",
        f"data.root={tmp_path / 'data'}", f"cache_dir={tmp_path / 'cache'}", "trainer.num_threads=1",
        "trainer.preflight=false", "callbacks.progress=false",
    )  # fmt: skip
    assert outcome.code == 0, outcome.said
    runs = {
        json.loads(path.read_text())["config"]["method"]: path.parent
        for path in tmp_path.glob("multirun/*/*/record.json")
    }
    assert set(runs) == {"lime_lora", "lora"}
    results = json.loads((runs["lora"] / "results.json").read_text())
    chartqa = next(one for one in results["splits"] if one["split"] == CHARTQA)
    record = json.loads((runs["lora"] / "record.json").read_text())
    values = record["items"][CHARTQA]["values"]
    assert (chartqa["metric"], len(values)) == ("same_length", 6)
    assert chartqa["value"] == pytest.approx(100 * sum(values) / 6)
    assert record["items"]["glue_test_sst2"]["values"] is None

    folder = str(runs["lora"].parent)
    assert scripts.collect.main([folder, "--out", str(tmp_path / "tables")]) == 0
    (table,) = (tmp_path / "tables").glob("*.csv")
    with table.open(newline="") as file:
        rows = {(row["point"], row["group"]): row for row in csv.DictReader(file)}
    collected = rows["lora", "vision_benchmark"]
    for column, key in (("mean", "value"), ("low", "low"), ("high", "high")):
        assert float(collected[column]) == pytest.approx(chartqa[key], abs=1e-4)
    compared = tmp_path / "compare.json"
    assert scripts.compare.main([str(runs["lime_lora"]), str(runs["lora"]), "--json", str(compared)]) == 0
    task = next(one for one in json.loads(compared.read_text())["tasks"] if one["split"] == CHARTQA)
    assert task["b"] == pytest.approx(chartqa["value"])
    assert scripts.report.main([str(runs["lora"])]) == 0
    assert "score is shared length" in (runs["lora"] / "report.html").read_text()
