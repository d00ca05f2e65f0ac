"""Figures of sweeps from their records: python scripts/figures.py multirun/num_experts [more folders] --out FOLDER"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lime.config.scripts import run_script, script_parser, takes_metrics
from lime.experiments.collection import read_sweep
from lime.experiments.figures.catalogue import draw
from lime.experiments.figures.style import figure_files, save
from lime.system.ownership import check_output
from lime.system.printing import print


def main(arguments: list[str] | None = None) -> int:
    parser = script_parser(__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of sweeps, multirun/NAME")
    parser.add_argument("--out", type=Path, default=Path("outputs/figures"), help="folder for NAME.png and NAME.pdf")
    parser.add_argument("--all", action="store_true", help="every record in a folder, not only the last command's")
    takes_metrics(parser)
    options = parser.parse_args(arguments)
    failed = 0
    for folder in options.folders:
        try:
            sweep = read_sweep(folder, everything=options.all)
            for path in figure_files(options.out, sweep.name):
                check_output(path, overwrite=options.overwrite)
            for path in save(draw(sweep), options.out, sweep.name):
                print(path)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            failed = 2
    return failed


if __name__ == "__main__":
    run_script(main)
