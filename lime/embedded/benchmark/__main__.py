"""`python -m lime.embedded.benchmark --root data/mmt47_mini`: generate the embedded benchmark."""

from __future__ import annotations

import argparse
import logging
import sys

from lime.embedded.benchmark.builder import Settings, ensure, generate
from lime.system import interrupts


def main() -> None:
    defaults = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m lime.embedded.benchmark", description="Generate the embedded benchmark."
    )
    parser.add_argument("--root", default="data/mmt47_mini", help="folder to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--train-per-task", type=int, default=defaults.train_per_task)
    parser.add_argument("--test-per-task", type=int, default=defaults.test_per_task)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--force", action="store_true", help="generate even where the same content is there already")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run = generate if options.force else ensure
    try:
        run(
            options.root,
            seed=options.seed,
            train_per_task=options.train_per_task,
            test_per_task=options.test_per_task,
            workers=options.workers,
        )
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    with interrupts.taken():
        try:
            main()
        except interrupts.Interrupted as stop:
            sys.stderr.write(f"\n{stop}; the same command begins anew\n")
            raise
