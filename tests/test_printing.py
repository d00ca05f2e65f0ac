"""Names of strangers neither steer a terminal nor break a table."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lime.experiments.collection import read_sweep
from lime.experiments.tables import csv_text, latex, make_table, markdown
from lime.system.printing import csv_cell, plain, plain_logging
from lime.system.printing import latex as tex
from lime.system.printing import markdown as md
from tests.data import tiny
from tests.experiments.made import CHARTQA, SST2, record, sweep

ROOT = Path(__file__).parents[1]
RED = "\x1b[31mred\x1b[0m"
NASTY = ["\x1b]0;title\x07", RED, "\x9b31m", "a\rb", "a\x08b", "\x7f", "\u202egnp.exe", "a\u2028b", "\x00", "\udce9"]
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
ODD = [
    r"a|b",
    "a\\b",
    "R&B",
    "_x_",
    "*x*",
    "`x`",
    "#1",
    "100%",
    "$x$",
    "x^2~y",
    "{a}",
    "<b>",
    "[a](b)",
    "two\nlines",
    RED,
]
FORMULAS = ["=1+1", "+cmd", "-cmd|' /C calc'!A0", "@sum(A1)", "\tx", "\r=x", "=", "--"]


@pytest.mark.parametrize("text", NASTY)
def test_control_characters_are_shown(text: str) -> None:
    shown = plain(f"before {text}\n\tafter é 👍 日本")
    assert not CONTROL.search(shown)
    assert shown.startswith("before ")
    assert shown.endswith("\n\tafter é 👍 日本")
    for cell in (md(text), tex(text), str(csv_cell(text))):
        assert not CONTROL.search(cell)
        assert "\n" not in cell


def test_ordinary_text_stays() -> None:
    for text in (
        "lime_lora",
        "a-b.c/d",
        "q_proj, k_proj",
        "1,234.5 (1.0 to 2.0)",
        "–5",
        "Ünï 日本 👍",
        "learning rate 1e-3",
    ):
        assert plain(text) == md(text) == csv_cell(text) == text
    assert [csv_cell(value) for value in (-5, 1.5, None, "-5.25", "+3", "-1e-5", "-.5", "-5%")] == [
        -5, 1.5, None, "-5.25", "+3", "-1e-5", "-.5", "-5%",
    ]  # fmt: skip


@pytest.mark.parametrize("text", FORMULAS)
def test_a_spreadsheet_takes_nothing_for_a_formula(text: str) -> None:
    file = io.StringIO()
    csv.writer(file).writerow([csv_cell(text), "next"])
    (row,) = csv.reader(io.StringIO(file.getvalue(), newline=""))
    assert row[0][0] == "'"
    assert row[1] == "next"


@pytest.fixture
def odd_sweep(tmp_path: Path) -> Path:
    points = []
    for index, label in enumerate([*ODD, *FORMULAS]):
        points.append(({"method": label}, {1: record(1, {SST2: "1100", CHARTQA: f"11{index % 2}1"})}))
    return sweep(tmp_path / "odd", points)


def test_every_table_of_a_sweep_keeps_its_columns(odd_sweep: Path) -> None:
    table = make_table(read_sweep(odd_sweep), baseline=ODD[0])
    rows = [line for line in markdown(table).splitlines() if line.startswith("|")]
    bars = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in rows}
    assert len(bars) <= 2  # means, differences
    assert len(rows) == 2 * (2 + len(ODD) + len(FORMULAS)) - 1
    read = list(csv.DictReader(io.StringIO(csv_text(table), newline="")))
    assert {line["metric"] for line in read} == {"score"}
    assert not [line["point"] for line in read if re.match(r"[=+\-@\t\r]", line["point"])]
    body = latex(table).split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(ODD) + len(FORMULAS)
    for line in body:
        assert line.endswith(r"\\")
        assert len(re.findall(r"(?<!\\)&", line)) == len(re.findall(r"(?<!\\)&", body[0]))
        cells = line.removesuffix(r"\\")
        assert not re.search(r"(?<!\\)[%#_]|[|<>~^]|\\(?![%&#_${},]|pm|text|underline)", cells)
    assert not CONTROL.search(markdown(table) + csv_text(table) + latex(table))


def test_log_lines_are_text(caplog: pytest.LogCaptureFixture) -> None:
    before = logging.getLogRecordFactory()
    try:
        plain_logging()
        with caplog.at_level(logging.INFO):
            logging.getLogger("lime.some").warning("row %s: %s\nsecond line", RED, {"a": 1})
    finally:
        logging.setLogRecordFactory(before)
    assert caplog.messages == ["row \\x1b[31mred\\x1b[0m: {'a': 1}\nsecond line"]


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, cwd=ROOT, check=False)
    said = (done.stdout + done.stderr).decode("utf-8", errors="surrogateescape")
    assert "Traceback" not in said
    return said


@pytest.fixture
def nasty_root(tmp_path: Path) -> Path:
    splits = tiny.splits(train=6, test=2)
    next(row for row in splits["train"] if row["source_type"] == "image")["media_path"] = f"media/{RED}\x9b2J.png"
    root = tiny.write_root(tmp_path / "root", splits)
    (root / f"media/{RED}\x9b2J.png").unlink()
    return root


def test_verify_and_collect_print_text(nasty_root: Path, odd_sweep: Path) -> None:
    said = run("scripts/data.py", "verify", str(nasty_root), "--workers", "1")
    assert "\\x1b[31mred" in said
    assert not CONTROL.search(said)
    assert not CONTROL.search(run("scripts/collect.py", str(odd_sweep)))
    assert not CONTROL.search(run("scripts/compare.py", f"{RED}/a", f"[bold]{RED}/b"))


@pytest.mark.slow
def test_training_logs_text(nasty_root: Path, tmp_path: Path) -> None:
    said = run(
        "train.py", f"model.path={tiny.checkpoint('llava_onevision')}", "data=mmt47", f"data.root={nasty_root}",
        "data.validation_fraction=0.0", "data.on_missing_media=skip", "trainer.max_steps=1", "trainer.batch_size=2",
        "evaluation.mode=none", "cache_dir=null", f"hydra.run.dir={tmp_path / 'out'}",
    )  # fmt: skip
    assert "\\x1b[31mred" in said
    assert not CONTROL.search(said)
    assert not CONTROL.search((tmp_path / "out" / "train.log").read_text(encoding="utf-8"))
    json.loads((tmp_path / "out" / "status.json").read_text())
