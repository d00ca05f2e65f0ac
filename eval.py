"""Evaluate an adapter, a frozen backbone or saved predictions: python eval.py --help"""

import signal
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # until `launch` takes Ctrl-C over: nothing is lost yet
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from lime.config.schema import EvalConfig
from lime.config.scripts import with_run
from lime.jobs.command_line import launch


def run(config: EvalConfig, output_dir: Path, overrides: list[str]) -> None:
    # after the configuration was checked: this imports the model libraries
    from lime.jobs.evaluate import evaluate

    evaluate(config, output_dir, overrides)


if __name__ == "__main__":
    launch(run, EvalConfig, Path(__file__).resolve().parent / "conf", "eval", prepare=with_run)
