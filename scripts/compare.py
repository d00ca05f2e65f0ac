"""Which tasks differ between two runs, and is it more than noise?

    python scripts/compare.py RUN_A RUN_B [--json FILE]

RUN is the folder of a finished run, or its predictions.jsonl. Runs on different data sets are compared on the tasks
that they share. Paired by test row: McNemar's test per task (by whole media where rows share them), Holm's correction
over the tasks, paired intervals for categories and the macro score.
Ends with status 2 and one line where the runs cannot be compared.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lime.config.scripts import errors_in_one_line, run_script, script_parser, takes_metrics
from lime.data.tasks import joined, table_of
from lime.evaluation.comparison import compare, comparison_table
from lime.evaluation.predictions import read_predictions
from lime.evaluation.report import stored_metrics
from lime.system.atomic import write_json
from lime.system.ownership import check_output
from lime.system.printing import plain

SCHEMA = "lime-comparison/1"


@errors_in_one_line()
def main(arguments: list[str]) -> int:
    parser = script_parser(__doc__)
    parser.add_argument("run_a", type=Path)
    parser.add_argument("run_b", type=Path)
    parser.add_argument("--json", type=Path, help="also write the comparison to this file")
    takes_metrics(parser)
    args = parser.parse_args(arguments)
    if args.json is not None:
        check_output(args.json, overwrite=args.overwrite)
    runs = [read_predictions(path) for path in (args.run_a, args.run_b)]
    table = joined(table_of(args.run_a), table_of(args.run_b))
    found = compare(*runs, table.scored_by(_metrics(args.run_a, args.run_b)))
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(plain(f"A: {args.run_a}\nB: {args.run_b}"), highlight=False, markup=False)
    console.print(comparison_table(found, table.groups))
    if args.json is not None:
        write_json(args.json, {"schema": SCHEMA, **dataclasses.asdict(found)})
    return 0


def _metrics(run_a: Path, run_b: Path) -> dict[str, str]:
    """The metrics by which both runs were scored."""
    a, b = stored_metrics(run_a), stored_metrics(run_b)
    for split in a.keys() & b.keys():
        if a[split] != b[split]:
            raise ValueError(
                f"{split}: A was scored by {a[split]}, B by {b[split]}; score one of them again "
                "(python eval.py predictions=RUN evaluation.metrics={TASK:METRIC})"
            )
    return a | b


if __name__ == "__main__":
    run_script(main)
