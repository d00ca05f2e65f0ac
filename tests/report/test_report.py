"""The pages: whole without a network, readable by keyboard, on a phone, light and dark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from lime.data.tasks import CATEGORIES, TASKS
from lime.evaluation.authors import score_as_authors
from lime.evaluation.authors_report import write_authors_scores
from lime.evaluation.predictions import Prediction, score_predictions
from lime.evaluation.report import write_report
from lime.report.charts import Line, line_chart
from lime.runs.folders import sign_configuration
from lime.system.ownership import MARKER
from scripts.report import main
from tests.experiments.made import record, sweep
from tests.report.browser import CHROMIUM, DESKTOP, PHONE, Browser

TEXT, IMAGE = "glue_test_sst2", "image_test_caltech101"


def make_run(folder: Path, share: float, seed: int = 0) -> Path:
    """A finished run's folder with two tasks."""
    folder.mkdir(parents=True)
    media = folder.parent / "media"
    media.mkdir(exist_ok=True)
    records = []
    for i in range(20):
        right = i < 20 * share
        Image.fromarray(np.full((40, 48, 3), 10 * i, dtype=np.uint8)).save(media / f"{i}.png")
        for split, truth, path in ((TEXT, "positive", ""), (IMAGE, "<b>cat</b>", f"media/{i}.png")):
            given = truth if right else "other"
            records.append(Prediction(f"{split}/{i}", split, "What?", path, given, given, truth, right, "dog", False))
    allowed = {TEXT: ["positive", "negative"], IMAGE: None}
    evaluation = score_predictions(records, TASKS, allowed, categories=CATEGORIES)
    write_report(folder, evaluation, records, allowed=allowed, info={"trainable_parameters": 1234})
    write_authors_scores(folder, score_as_authors(records, TASKS, {s.split: s.value for s in evaluation.splits}))
    config = {"name": "small", "seed": seed, "data": {"root": str(folder.parent), "name": "mini"}, "lime": {"n": 4}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    sign_configuration(folder, "run")
    (folder / "status.json").write_text(json.dumps({"status": "finished", "seconds": 1.5}))
    (folder / "metrics.csv").write_text("step,loss/task,val/loss\n1,2.5,\n2,1.5,1.9\n3,0.5,\n")
    usage = {"model.layers.0.q": [0.7, 0.3], "model.layers.1.q": [0.5, 0.5]}
    (folder / "routing.jsonl").write_text(json.dumps({"step": 3, "usage": usage}) + "\n")
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("sweep")
    for index, share in enumerate((0.4, 0.8)):
        make_run(root / str(index), share, seed=index)
    assert main([str(root / "0")]) == 0
    assert main([str(root), "--out", str(root / "sweep.html")]) == 0
    return root / "0" / "report.html", root / "sweep.html"


def test_a_page_holds_everything_of_a_run(pages: tuple[Path, Path]) -> None:
    page = pages[0].read_text(encoding="utf-8")
    for part in ("40.0", "caltech101", "authors", "loss/task", "data:image/jpeg;base64,", "70.0", "lime.n", "1,234"):
        assert part in page
    assert "<b>cat</b>" not in page  # what a model or a data set says is text, never markup
    assert "&lt;b&gt;cat&lt;/b&gt;" in page
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    assert "<script" not in page


def test_a_sweep_names_what_differs(pages: tuple[Path, Path]) -> None:
    page = pages[1].read_text(encoding="utf-8")
    assert '<th scope="col">seed</th>' in page
    assert "80.0" in page


def test_a_sweep_with_records_shows_means_over_seeds_and_its_figure(tmp_path: Path) -> None:
    marks = {"lime_lora": "1110", "lora": "1100"}
    points: list[Any] = [
        ({"method": method}, {seed: record(seed, {TEXT: good, IMAGE: good}) for seed in (1, 2)})
        for method, good in marks.items()
    ]
    folder = sweep(tmp_path / "table2", [*points, ({"method": "mola"}, {1: None})])
    for path in folder.glob("*/record.json"):
        method, seed = path.parent.name.rsplit("-", 1)
        (path.parent / "config.yaml").write_text(yaml.safe_dump({"method": method, "seed": int(seed)}))
    assert main([str(folder)]) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert 'src="data:image/png;base64,' in page
    means = page[page.index('id="means-title"') : page.index('id="runs-title"')]
    assert "75.0 ± 0.0" in means
    assert "50.0 ± 0.0" in means
    assert "0 (1 missing)" in means


def test_lacking_media_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0.5)
    assert main([str(run), "--data-root", str(tmp_path / "elsewhere")]) == 0
    assert "No picture" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("change", ["config", "signature", "mark"])
def test_a_strangers_run_does_not_say_where_pictures_are_read(tmp_path: Path, change: str) -> None:
    run = make_run(tmp_path / "run", 0.5)
    mark = json.loads((run / MARKER).read_text())
    if change == "config":
        (run / "config.yaml").write_text((run / "config.yaml").read_text() + "note: changed\n")
    elif change == "signature":
        (run / MARKER).write_text(json.dumps(mark | {"signature": "0" * 64}))
    else:
        (run / MARKER).unlink()
    assert main([str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "data:image/jpeg" not in page
    assert "name the folder of the data with --data-root" in page
    assert main([str(run), "--data-root", str(tmp_path)]) == 0
    assert "data:image/jpeg" in (run / "report.html").read_text(encoding="utf-8")


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_a_chart_of_one_step_shows_its_point() -> None:
    def marks(*points: tuple[float, float]) -> int:
        """Markers of the first curve, by the uses of its symbol."""
        drawn = line_chart("Loss", [Line("train", points)])
        curve = drawn[drawn.index("var(--accent)") :]
        return curve[: curve.index('id="patch')].count("<use ")

    assert marks((5.0, 1.5)) == 1
    assert marks((1.0, 1.0), (2.0, 2.0)) == 0
    assert marks((1.0, 1.0), (2.0, 2.0), (3.0, float("nan")), (4.0, 1.0)) == 1


def test_charts_take_the_colours_of_the_page() -> None:
    drawn = line_chart("<t>", [Line("a", ((0.0, 1.0), (1.0, 4.0))), Line("b", ((0.0, 2.0), (1.0, 3.0)))])
    assert "&lt;t&gt;: a ends at 4; b ends at 3" in drawn
    assert all(f"var({colour})" in drawn for colour in ("--accent", "--second", "--soft", "--rule"))
    assert "#0b5fa5" not in drawn
    assert ">step</text>" in drawn
    with pytest.raises(ValueError, match="nothing to draw"):
        line_chart("t", [Line("a", ((0.0, float("nan")),))])


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome on the PATH")
def test_in_a_browser(pages: tuple[Path, Path], tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        for page in pages:
            grounds = set()
            for size in (PHONE, DESKTOP):
                for dark in (False, True):
                    browser.open(page, size, dark)
                    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
                    grounds.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert len(grounds) == 2
        browser.open(pages[0], DESKTOP, dark=False)
        browser.press("Tab", 9)
        assert browser.evaluate("document.activeElement.className") == "skip"
        summary = "document.querySelector('#configuration summary')"
        browser.evaluate(f"{summary}.focus()")
        browser.press("Enter", 13, "\r")
        assert browser.evaluate(f"{summary}.parentElement.open")
        assert browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        assert browser.messages == []
        assert browser.requests == []


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome on the PATH")
def test_a_sweep_over_all_categories_hides_no_column(tmp_path: Path) -> None:
    answers = dict.fromkeys({task.category: split for split, task in reversed(TASKS.items())}.values(), "1110")
    points: list[Any] = [
        ({"lime.num_experts": count, "lime.gamma_routing": 0.25}, {seed: record(seed, answers) for seed in (1, 2)})
        for count in (4, 16)
    ]
    folder = sweep(tmp_path / "num_experts", points)
    for path in folder.glob("*/record.json"):
        (path.parent / "config.yaml").write_text(yaml.safe_dump({"name": path.parent.name, "seed": 1}))
    assert main([str(folder)]) == 0
    with Browser(tmp_path / "profile") as browser:
        browser.open(folder / "report.html", DESKTOP, False)
        hidden = "[...document.querySelectorAll('*')].filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1)"
        assert browser.evaluate(f"{hidden}.map(e => e.tagName + ' ' + e.textContent.slice(0, 80))") == []
