"""Tables from the records of a sweep, and the choice of a search.

python scripts/collect.py multirun/table2                       print the table
python scripts/collect.py multirun/table2 --out docs/tables     write table2.md, .csv and .tex
python scripts/collect.py multirun/num_experts --baseline num_experts=1
python scripts/collect.py multirun/table2_search --select experiments/searched/table2.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lime.config.scripts import errors_in_one_line, run_script, script_parser, takes_metrics
from lime.experiments.collection import Sweep, read_sweep
from lime.experiments.estimates import MEASURES
from lime.experiments.search import choose, write_choices
from lime.experiments.tables import WRITERS, make_table
from lime.system.atomic import write_text
from lime.system.ownership import MADE_BY, check_output
from lime.system.printing import print

SIGNED = {"md": f"\n<!-- {MADE_BY} -->\n", "tex": f"% {MADE_BY}\n"}


@errors_in_one_line()
def main(arguments: list[str]) -> int:
    parser = script_parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder of a sweep, multirun/NAME")
    parser.add_argument("--baseline", help="point to compare with, as num_experts=1 (default: lime_lora or reference)")
    parser.add_argument("--metric", choices=MEASURES, default="score", help="score: accuracy, 100 x Pearson for STS-B")
    parser.add_argument("--all", action="store_true", help="every record in the folder, not only the last command's")
    parser.add_argument("--out", type=Path, help="folder to write NAME.md, NAME.csv and NAME.tex into")
    parser.add_argument("--select", type=Path, metavar="FILE", help="choose each method's rate by validation loss")
    takes_metrics(parser)
    options = parser.parse_args(arguments)
    sweep = read_sweep(options.folder, everything=options.all)
    if options.select is not None:
        check_output(options.select, overwrite=options.overwrite)
        return _select(sweep, options.select)
    paths = {} if options.out is None else {kind: options.out / f"{sweep.name}.{kind}" for kind in WRITERS}
    for path in paths.values():
        check_output(path, overwrite=options.overwrite)
    table = make_table(sweep, options.metric, options.baseline)
    print(WRITERS["md"](table))
    for kind, path in paths.items():
        write_text(path, WRITERS[kind](table) + SIGNED.get(kind, ""))
        print(path)
    return 0


def _select(sweep: Sweep, path: Path) -> int:
    choices = choose(sweep)
    for choice in choices:
        tried = ", ".join(f"{r:g}: {'none' if loss is None else f'{loss:.4f}'}" for r, loss in choice.losses.items())
        edge = "  (at the edge of the grid)" if choice.at_edge else ""
        print(f"{choice.method:20} {choice.rate:g}  validation loss {choice.loss:.4f}  [{tried}]{edge}")
    write_choices(path, sweep, choices)
    print(path)
    return 0


if __name__ == "__main__":
    run_script(main)
