"""Adapt a frozen vision-language model and evaluate it: python train.py --help"""

import signal
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # until `launch` takes Ctrl-C over: nothing is lost yet
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from lime.config.schema import TrainConfig
from lime.experiments.resume import ResumingSweep
from lime.jobs.command_line import launch


def run(config: TrainConfig, output_dir: Path, overrides: list[str]) -> None:
    # after the configuration was checked: this imports the model libraries
    from lime.jobs.train import train

    train(config, output_dir, overrides)


def report(folder: Path) -> Path:
    from lime.report.render import write_report_page

    return write_report_page(folder)


if __name__ == "__main__":
    root = Path(__file__).resolve().parent  # a profiler gives a relative one
    launch(run, TrainConfig, root / "conf", "train", experiments=root / "experiments", sweep=ResumingSweep(report))
