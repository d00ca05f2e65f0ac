"""The commands of docs/data.md in their order: from a folder as it was fetched to an exported adapter."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from lime.data.tools.sample import write_sample
from tests.data import tiny
from tests.data.conftest import REAL
from tests.end_to_end.command import ROOT
from tests.processes import run

NOT_HERE = ("download", "hf ", "ORG/NAME", "/tmp/pictures")
"""Parts of commands that need a network, and the one that measures speed."""
SHORT = [
    "data.num_workers=0", "trainer.max_steps=2", "trainer.batch_size=4", "trainer.accelerator=cpu",
    "data.rows_per_split=2", "evaluation.max_new_tokens=3", "cache_dir=null",
    "data.frame_cache.dir=frames",
]  # fmt: skip


OWN = "\n## Your own data\n"


def commands(own: bool = False) -> list[str]:
    """The commands of the page's code blocks, comments left out: those on MMT-47, or on one's own data."""
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").split(OWN)[own]
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip()]


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["made", "real"])
def test_every_command_of_the_page(rows: str, tmp_path: Path) -> None:
    if rows == "made":
        root = write_sample(tmp_path / "root", images=12, clips=6, texts=12)
    elif REAL.is_dir():
        root = Path(shutil.copytree(REAL, tmp_path / "root"))
    else:
        pytest.skip("the real sample rows (../shared/real_mmt) are not here")
    done = []
    for command in commands():
        if any(part in command for part in NOT_HERE):
            continue
        family = "qwen2_vl" if "model=qwen2vl" in command else "llava_onevision"
        places = {
            "FOLDER": root, "CHECKPOINT": tiny.checkpoint(family), "RUN": tmp_path / "run",
            "SHARED": tmp_path / "shared", "LICENCE": "mit",
        }  # fmt: skip
        for name, value in places.items():
            command = re.sub(rf"\b{name}\b", str(value), command)
        python, script, *arguments = shlex.split(command)
        assert python == "python", command
        arguments += SHORT if script in ("train.py", "scripts/preflight.py") else []
        if script == "eval.py":
            arguments.append(f"hydra.run.dir={tmp_path / 'again'}")
        ran = run([sys.executable, str(ROOT / script), *arguments], tmp_path)
        assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
        done.append(Path(script).name)
    assert done == ["data.py"] * 5 + ["preflight.py", "train.py", "eval.py", "export.py"]
    first, again = ((tmp_path / name / "predictions.jsonl").read_bytes() for name in ("run", "again"))
    assert first == again
