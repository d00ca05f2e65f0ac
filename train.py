"""Adapt a frozen vision-language model and evaluate it: python train.py --help"""

from pathlib import Path

from lime.config.cli import launch
from lime.config.schema import TrainConfig
from lime.experiments.resume import ResumingSweep


def run(config: TrainConfig, output_dir: Path, overrides: list[str]) -> None:
    from lime.training.job import (
        train,
    )  # after the configuration was checked: this imports the model libraries

    train(config, output_dir, overrides)


if __name__ == "__main__":
    root = Path(__file__).parent
    launch(run, TrainConfig, root / "conf", "train", experiments=root / "experiments", sweep=ResumingSweep())
