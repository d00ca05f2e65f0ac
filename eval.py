"""Evaluate an adapter, a frozen backbone or saved predictions: python eval.py --help"""

from pathlib import Path

from lime.config.cli import launch
from lime.config.schema import EvalConfig


def run(config: EvalConfig, output_dir: Path, overrides: list[str]) -> None:
    from lime.training.evaluate import (
        evaluate,
    )  # after the configuration was checked: this imports the model libraries

    evaluate(config, output_dir, overrides)


if __name__ == "__main__":
    launch(run, EvalConfig, Path(__file__).parent / "conf", "eval")
