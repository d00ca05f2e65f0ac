"""scripts/benchmark.py, as a person runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lime.analysis.benchmark import COMMANDS
from tests.data import tiny

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import benchmark  # noqa: E402


def test_the_list_of_commands_needs_no_model_library() -> None:
    code = (
        "import sys; sys.path.insert(0, 'scripts'); import benchmark\n"
        "try: benchmark.main(['--help'])\n"
        "finally: print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False False"
    assert all(f"  {command} " in done.stdout for command in COMMANDS)


def test_a_record_and_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "layer.json"
    arguments = ["layer", "--shapes", "16x16", "--tokens", "4", "--methods", "lora,lime_lora", "--repetitions", "1"]
    assert benchmark.main([*arguments, "--output", str(output)]) == 0
    table = output.with_suffix(".md").read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() == table.strip()
    assert (
        "`python scripts/benchmark.py layer --shapes 16x16 --tokens 4 --methods lora,lime_lora --repetitions 1`"
        in table
    )
    content = json.loads(output.read_text(encoding="utf-8"))
    assert content["machine"]["threads"] >= 1
    assert len(content["rows"][0]["seconds"]) == 1


def test_the_efficiency_figure_is_kept_and_drawn_again(tmp_path: Path) -> None:
    first, again = tmp_path / "first.json", tmp_path / "again.json"
    arguments = ["--architecture", "tiny_qwen2vl", "--layers", "1", "--tokens", "4", "--repetitions", "1"]
    arguments += ["--methods", "lime_lora,moe_lora:loop", "--output", str(first)]
    assert benchmark.main(["efficiency", *arguments]) == 0
    assert benchmark.main(["efficiency", "--record", str(first), "--output", str(again)]) == 0
    assert again.read_text(encoding="utf-8") == first.read_text(encoding="utf-8")
    assert again.with_suffix(".png").read_bytes()[1:4] == b"PNG"
    assert again.with_suffix(".pdf").read_bytes()[:4] == b"%PDF"


def test_mistakes_are_told_plainly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["layer", "--methods", "lorra", "--dtypes", "float32"]) == 2
    assert capsys.readouterr().err.startswith("error: methods: unknown method 'lorra'; expected one of frozen, ")
    assert benchmark.main(["layer", "--tokens", "few"]) == 2
    assert "--tokens: expected a whole number, got 'few'" in capsys.readouterr().err
    assert benchmark.main(["efficiency", "--record", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


def test_rows_a_second(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tiny.write_root(tmp_path / "mmt", tiny.splits(train=24, test=4))
    output = tmp_path / "data.json"
    arguments = ["data", "--root", str(root), "--workers", "0", "--batch", "4", "--rows", "8", "--repetitions", "1"]
    assert benchmark.main([*arguments, "--output", str(output)]) == 0
    rows = json.loads(output.read_text(encoding="utf-8"))["rows"]
    assert [(row["modality"], row["cache"]) for row in rows] == [
        ("text", "none"),
        ("image", "none"),
        ("image", "memory"),
        ("video", "none"),
        ("video", "disk"),
        ("video", "memory"),
    ]
    assert all(row["rows_per_second"]["median"] > 0 for row in rows)


@pytest.mark.slow
def test_seconds_until_help_and_errors(tmp_path: Path) -> None:
    output = tmp_path / "start.json"
    assert benchmark.main(["start", "--no-steps", "--repetitions", "1", "--output", str(output)]) == 0
    assert len(json.loads(output.read_text(encoding="utf-8"))["rows"]) == 3


@pytest.mark.slow
def test_the_profile_accounts_for_the_whole_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "profile.json"
    overrides = (
        "debug=fast,data.mini.train_per_task=4,data.mini.test_per_task=3,evaluation.splits=[video_test_object_shuffle]"
    )
    assert benchmark.main(["profile", "--overrides", overrides, "--output", str(output)]) == 0
    rows = {row["section"]: row for row in json.loads(output.read_text(encoding="utf-8"))["rows"]}
    assert rows["training: backward"]["calls"] == 3
    assert {"training: waiting for data", "training: vision tower", "training: optimiser"} <= rows.keys()
    assert sum(row["share"] for name, row in rows.items() if name != "all") == pytest.approx(1.0)
    assert sum(row.get("training_share") or 0 for row in rows.values()) == pytest.approx(1.0)
