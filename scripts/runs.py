"""The runs of a folder: method, model, seed, state and score of each.

python scripts/runs.py multirun/table2            print the table
python scripts/runs.py multirun/table2 --watch    print it again as runs go on, until all have ended
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lime.config.scripts import errors_in_one_line, run_script, script_parser
from lime.experiments.listing import WAITING, runs_below, runs_table


@errors_in_one_line()
def main(arguments: list[str]) -> int:
    parser = script_parser(__doc__, overwrite=None)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("outputs"), help="default: %(default)s")
    parser.add_argument("--watch", action="store_true", help="follow the runs until all have ended (Ctrl-C ends it)")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="default: %(default)s")
    options = parser.parse_args(arguments)
    from rich.console import Console
    from rich.live import Live

    console = Console()
    runs = runs_below(options.folder)
    if not options.watch:
        console.print(runs_table(runs, options.folder))
        return 0
    with Live(runs_table(runs, options.folder), console=console, auto_refresh=False) as live:
        while any(run.state.startswith("running") or run.state == WAITING for run in runs):
            time.sleep(options.every)
            runs = runs_below(options.folder)
            live.update(runs_table(runs, options.folder), refresh=True)
    return 0


if __name__ == "__main__":
    run_script(main)
