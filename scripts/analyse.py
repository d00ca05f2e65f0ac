"""What a run learned: its experts, its updates and its hidden states, on a few test rows of each task.

    python scripts/analyse.py RUN                              routing, information, maps, probes by position
    python scripts/analyse.py RUN --against MOE_LORA_RUN       CKA between the two, and modulators fitted to the second
    python scripts/analyse.py multirun/num_experts             task information against the number of experts

RUN is the folder of a finished run of train.py. Writes analysis.json, analysis.md and figures (PNG and PDF).
docs/analysis.md says how to read them. Ends with status 2 and one line where there is nothing to analyse.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lime.config.scripts import errors_in_one_line, run_script, script_parser, show_log
from lime.system.printing import print


@errors_in_one_line()
def main(arguments: list[str]) -> int:
    parser = script_parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder of a run, or of a sweep over lime.num_experts")
    parser.add_argument("--against", type=Path, help="second run on the same backbone, as a rule of method=moe_lora")
    parser.add_argument("--rows", type=int, default=12, help="test rows of each task (default 12)")
    parser.add_argument("--splits", nargs="+", help="test splits, tasks or categories to take (default: all)")
    parser.add_argument("--window", type=int, default=3, help="tokens of a window for the probes (default 3)")
    parser.add_argument("--out", type=Path, help="folder to write into (default: analysis/ in the given folder)")
    parser.add_argument("--data-root", type=Path, help="where the data lie, in place of the run's data.root")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    options = parser.parse_args(arguments)
    show_log()
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    for path in _written(options, options.out or options.folder / "analysis"):
        print(path)
    return 0


def _written(options: argparse.Namespace, out: Path) -> list[Path]:
    from lime.analysis.study.opening import Choice
    from lime.analysis.study.record import WRITTEN
    from lime.analysis.study.run import Study, study_run
    from lime.analysis.study.sweep import is_sweep, study_sweep
    from lime.system.ownership import check_output

    if not options.folder.is_dir():
        raise ValueError(f"{options.folder}: no such folder; expected that of a run or of a sweep")
    splits = None if options.splits is None else tuple(" ".join(options.splits).replace(",", " ").split())
    study = Study(Choice(options.rows, splits, options.data_root), options.window, options.threads)
    for name in WRITTEN:
        check_output(out / name, overwrite=options.overwrite)
    if not is_sweep(options.folder):
        return study_run(options.folder, options.against, out, study)
    if options.against is not None:
        raise ValueError("--against: compares one run with another; give the folder of a run, not of a sweep")
    return study_sweep(options.folder, out, study)


if __name__ == "__main__":
    run_script(main)
