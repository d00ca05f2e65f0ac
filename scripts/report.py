"""One HTML file about a run or a sweep, with everything inside: python scripts/report.py RUN_OR_SWEEP [--out FILE]

Opens without a network. Media are read from the data root of a run of yours; for one of somebody else, or where the
data moved, name it with --data-root.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lime.config.scripts import errors_in_one_line, run_script, script_parser, takes_metrics
from lime.report.render import write_report_page
from lime.system.printing import print


@errors_in_one_line()
def main(arguments: list[str]) -> int:
    parser = script_parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder of a run, or of a sweep with runs below it")
    parser.add_argument("--out", type=Path, help="file to write (default: report.html in that folder)")
    parser.add_argument("--samples", type=int, default=2, help="predictions shown of each task (default 2)")
    parser.add_argument("--data-root", type=Path, help="where the media lie, in place of the run's data.root")
    takes_metrics(parser)
    args = parser.parse_args(arguments)
    print(
        write_report_page(
            args.folder,
            args.out,
            samples_per_task=args.samples,
            data_root=args.data_root,
            overwrite=args.overwrite,
        )
    )
    return 0


if __name__ == "__main__":
    run_script(main)
