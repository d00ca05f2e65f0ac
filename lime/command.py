"""The command `lime`: one name for train.py, eval.py and every script.

lime                        the commands
lime train model=qwen2vl    the same as python train.py model=qwen2vl
lime collect --help         the options of scripts/collect.py
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "train": ("train.py", "adapt a frozen model, evaluate it, print the table"),
    "eval": ("eval.py", "evaluate a run, an adapter, a frozen model or saved answers"),
    "ask": ("scripts/ask.py", "put a question of your own to a run"),
    "runs": ("scripts/runs.py", "list the runs of a folder, or follow them"),
    "report": ("scripts/report.py", "an HTML page of a run or a sweep"),
    "collect": ("scripts/collect.py", "the table of a sweep, as Markdown, CSV and LaTeX"),
    "figures": ("scripts/figures.py", "the figures of a sweep"),
    "compare": ("scripts/compare.py", "which tasks differ between two runs"),
    "analyse": ("scripts/analyse.py", "routing, updates and hidden states of a run"),
    "routing": ("scripts/routing.py", "how much of a mixture routing is, frozen and trained"),
    "data": ("scripts/data.py", "download, prepare, verify and describe data"),
    "export": ("scripts/export.py", "a run's adapter with a model card, ready for the hub"),
    "count": ("scripts/count_parameters.py", "trainable parameters by method and model"),
    "preflight": ("scripts/preflight.py", "memory and time of a run, before it"),
    "benchmark": ("scripts/benchmark.py", "speed and memory, interleaved"),
    "search": ("scripts/optuna_search.py", "a search with Optuna"),
    "wandb-sweep": ("scripts/wandb_sweep.py", "a sweep of Weights & Biases"),
    "wandb-dashboard": ("scripts/wandb_dashboard.py", "its dashboard"),
    "random-checkpoint": ("scripts/random_checkpoint.py", "a published architecture with random weights"),
}


def main() -> None:
    """Run the command that the first argument names; without one, or with --help, list them."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        sys.stdout.write(_listed())
        return
    if name not in COMMANDS:
        sys.stderr.write(f"lime: no command {name[:40]!r}\n\n{_listed()}")
        sys.exit(2)
    path = ROOT / COMMANDS[name][0]
    if not path.is_file():
        sys.stderr.write(f"lime: {path} is absent: install from a checkout, with pip install --editable\n")
        sys.exit(2)
    sys.argv = [str(path), *sys.argv[2:]]
    runpy.run_path(str(path), run_name="__main__")


def _listed() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  lime {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["usage: lime COMMAND [OPTIONS]", "", *lines, "", "lime COMMAND --help: its options", ""])


if __name__ == "__main__":
    main()
