"""docs/configuration.md says what every key does, and is what its program writes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lime.config.check import known_keys
from lime.config.schema import EvalConfig, TrainConfig
from scripts.configuration_page import TARGET, page
from tests.config.line import ROOT


def test_the_page_is_up_to_date() -> None:
    assert TARGET.read_text(encoding="utf-8") == page(), "python scripts/configuration_page.py"


@pytest.mark.parametrize("schema", [TrainConfig, EvalConfig])
def test_every_key_is_on_it_and_explained(schema: type) -> None:
    rows = [line.split(" | ") for line in TARGET.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    explained = {row[0].strip("| `") for row in rows if len(row[2].strip(" |")) > 8}
    sections = {key.rpartition(".")[0] for key in known_keys(schema)}
    assert {key for key in known_keys(schema) if key not in sections} <= explained


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not there")
def test_the_tab_key_completes_names_and_keys() -> None:
    """As its page says, in Bash: what is offered after ``python train.py meth`` and the like."""
    shell = """
        eval "$(python train.py --shell-completion install=bash)"
        for text in "method=lime_s" "lime.num_e"; do
            COMP_LINE="python train.py $text"; COMP_POINT=$((16 + ${#text})); COMP_CWORD=2
            hydra_bash_completion
            printf "%s\\n" "${COMPREPLY[@]}"
        done
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", shell], cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["method=lime_slicefine", "lime.num_experts="], done.stderr
