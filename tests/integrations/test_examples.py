"""The programs of docs/library.md are those in examples/, and they run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lime.processors.config import ModelConfig

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ARGUMENTS = {"apply_lime": [], "train_lime": ["2"]}  # short settings


@pytest.mark.parametrize("program", EXAMPLES, ids=lambda path: path.stem)
def test_the_page_prints_it_word_for_word(program: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/library.md").read_text(encoding="utf-8"), re.DOTALL)
    assert program.read_text(encoding="utf-8") in blocks


@pytest.mark.parametrize("page", ["docs/start.md", "docs/records.md"])
def test_no_printed_command_writes_into_the_checkout(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert [place for place in re.findall(r"--out (\S+)", text) if place.startswith("docs/")] == []


def test_the_shipped_adapter_is_small_and_says_where_it_comes_from() -> None:
    folder = ROOT / "examples" / "adapter"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 400_000
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "Made by the main job, `python train.py`" in card


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES} == ARGUMENTS.keys() | {"lmms_eval_lime"}  # by test_lmms_eval.py


@pytest.mark.slow
def test_the_notebook_adapts_asks_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "committed without outputs"
    for name, value in {
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "HF_HUB_OFFLINE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = "".join(output.get("text", "") for output in outputs)
    assert "parameters train" in said
    assert "'adapter_model.safetensors'" in said
    assert "adapted: 7 | frozen: A" in said
    assert [output for output in outputs if "image/png" in output.get("data", {})], "a figure"


@pytest.mark.skipif(
    not (Path(ModelConfig().location) / "model.safetensors").is_file(), reason="the embedded backbone is not there"
)
@pytest.mark.parametrize("program", [path for path in EXAMPLES if path.stem in ARGUMENTS], ids=lambda path: path.stem)
def test_it_runs(program: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, program, *ARGUMENTS[program.stem]],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "parameters train" in done.stdout
    if program.stem == "apply_lime":
        assert "Warning" not in done.stderr
        # the shipped adapter's answers; the frozen backbone knows neither
        assert re.findall(r"-> (\w+) \(frozen backbone: (\w+)", done.stdout) == [("7", "A"), ("A", "tree")]
    (adapter,) = tmp_path.glob(f"outputs/{program.stem}/adapter_model.safetensors")
    assert adapter.stat().st_size > 1000
