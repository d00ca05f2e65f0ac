"""Evaluate an adapter, a frozen backbone or saved predictions: python eval.py --help"""

import sys
from pathlib import Path

try:
    from lime.jobs.command_line import launch
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] == "lime":
        raise
    sys.stderr.write(
        f"error: {error.name} is not installed for {sys.executable}: run `make setup` once, then `source "
        ".venv/bin/activate` in every new terminal (or .venv/bin/python in place of python)\n"
    )
    sys.exit(2)
from lime.config.schema import EvalConfig
from lime.config.scripts import with_run


def run(config: EvalConfig, output_dir: Path, overrides: list[str]) -> None:
    from lime.jobs.evaluate import (
        evaluate,
    )  # after the configuration was checked: this imports the model libraries

    evaluate(config, output_dir, overrides)


if __name__ == "__main__":
    launch(run, EvalConfig, Path(__file__).resolve().parent / "conf", "eval", prepare=with_run)
