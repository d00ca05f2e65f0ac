"""Every overlay of experiments/ from its command to its table and figure, at reduced sizes on the embedded default."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from omegaconf import OmegaConf
from PIL import Image

import lime.config.searched
from lime.experiments.collection import read_sweep, shown
from lime.experiments.figures.catalogue import draw
from lime.experiments.figures.efficiency import label
from tests.end_to_end.command import ROOT, Program

pytestmark = pytest.mark.slow

EXPERIMENTS = sorted(path.stem for path in (ROOT / "experiments").glob("*.yaml"))
ALONE = [name for name in EXPERIMENTS if name not in ("table2", "table2_search", "tuned_search")]
TRAIN_ROWS = "32,64"

Call = Callable[..., str]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and frozen results that all experiments share."""
    return tmp_path_factory.mktemp("experiments")


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs a program in the test's own folder; gives what it printed."""
    return Program(tmp_path, monkeypatch, capfd).must


def reduced(shared: Path) -> list[str]:
    """Three steps, two test rows a task."""
    return [
        "debug=fast", "data.mini.train_per_task=4", "data.mini.test_per_task=2", "data.mini.workers=1",
        f"data.root={shared / 'data'}", f"cache_dir={shared / 'cache'}",
        "trainer.num_threads=1", "trainer.preflight=false", "callbacks.progress=false", "callbacks.checkpoint=false",
    ]  # fmt: skip


def two_points(name: str) -> list[str]:
    """The overlay's grid cut to the first and last value of its first axis, the first of any other, and one seed."""
    params = OmegaConf.load(ROOT / "experiments" / f"{name}.yaml").hydra.sweeper.params
    cut = {key: str(values).split(",") for key, values in params.items() if key != "seed"}
    first, *others = cut
    chosen = {first: [cut[first][0], cut[first][-1]], **{key: cut[key][:1] for key in others}}
    if first == "data.train_rows":
        chosen[first] = TRAIN_ROWS.split(",")
    return [*(f"{key}={','.join(values)}" for key, values in chosen.items()), "seed=42"]


def texts(figure: Figure) -> set[str]:
    """What is written in a figure; of ``key=value`` the value."""
    FigureCanvasAgg(figure).draw()  # tick labels are known after this
    return {text.get_text().rpartition("=")[2] for text in figure.findobj(Text)}  # type: ignore[attr-defined]


def check(name: str, call: Call, tmp_path: Path) -> None:
    """Tables and figure of the sweep, made by the scripts, name every point."""
    sweep = read_sweep(tmp_path / "multirun" / name)
    assert sweep.name == name
    assert [run.status for point in sweep.points for run in point.runs] == ["finished"] * 2
    printed = call("scripts/collect.py", f"multirun/{name}", "--out", "tables")
    rows = list(csv.DictReader((tmp_path / "tables" / f"{name}.csv").open(encoding="utf-8")))
    latex = (tmp_path / "tables" / f"{name}.tex").read_text(encoding="utf-8")
    written = (tmp_path / "tables" / f"{name}.md").read_text(encoding="utf-8")
    assert written.partition("\n<!--")[0] in printed  # all but the mark of the program
    assert {row["point"] for row in rows} == {point.label for point in sweep.points}
    call("scripts/figures.py", f"multirun/{name}", "--out", "figures")
    with Image.open(tmp_path / "figures" / f"{name}.png") as image:
        assert min(image.size) > 300
        assert len(image.convert("L").getcolors()) > 20  # something is drawn
    assert (tmp_path / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    drawn = texts(draw(sweep))
    for point in sweep.points:
        for value in map(shown, point.settings.values()):
            assert value in printed
            assert value.replace("_", r"\_") in latex
            assert drawn & {value, label(value)}, (value, drawn)


@pytest.mark.parametrize("name", ALONE)
def test_experiment(name: str, call: Call, shared: Path, tmp_path: Path) -> None:
    call("train.py", "-m", f"+experiment={name}", *reduced(shared), f"name={name}", *two_points(name))
    check(name, call, tmp_path)


def test_search_of_settings_shows_its_validation_loss(call: Call, shared: Path) -> None:
    name = "tuned_search"
    sizes = [*reduced(shared), "data.validation_fraction=0.2", f"name={name}"]
    call("train.py", "-m", f"+experiment={name}", *sizes, *two_points(name)[:-1])
    printed = call("scripts/collect.py", f"multirun/{name}")
    assert "validation loss" in printed
    assert "| false, 0.004, 0.1 | 1 |" in printed


def test_table2_after_its_search(call: Call, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rates for two methods, the choice by validation loss, and the table with the chosen rates."""
    monkeypatch.setattr(lime.config.searched, "ROOT", tmp_path)
    sizes = [*reduced(shared), "data.validation_fraction=0.2", "method=moe_lora,lime_lora"]
    call(
        "train.py", "-m", "+experiment=table2_search", *sizes, "name=table2_search", "optim.peft_lr=1e-3,8e-3",
        "trainer.max_epochs=1", "data.train_rows=32", "trainer.max_steps=null",
    )  # fmt: skip
    call("scripts/collect.py", "multirun/table2_search", "--select", "experiments/searched/table2.yaml")
    assert set(_chosen(tmp_path)) == {"moe_lora", "lime_lora"}
    call("train.py", "-m", "+experiment=table2", *sizes, "name=table2", "seed=42")
    check("table2", call, tmp_path)
    rates = {
        record.config["method"]: record.config["optim"]["peft_lr"]
        for point in read_sweep(tmp_path / "multirun/table2").points
        for record in point.records
    }
    assert rates == _chosen(tmp_path)


def _chosen(root: Path) -> dict[str, float]:
    choices: Sequence[str] | dict[str, float] = OmegaConf.to_container(  # type: ignore[assignment]
        OmegaConf.load(root / "experiments/searched/table2.yaml").chosen
    )
    assert isinstance(choices, dict)
    return choices
