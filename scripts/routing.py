"""How much of a mixture LiME's routing without parameters is: on a frozen backbone, and in finished runs.

    python scripts/routing.py                                  the embedded backbone and data
    python scripts/routing.py data=mmt47_mini_small --runs RUN RUN_B   and what these two runs made of it
    python scripts/routing.py model=qwen2vl_2b data=mmt47 data.root=FOLDER --rows 12

Takes every option of train.py. One pass over a few test rows of each task keeps the frozen output of each adapted
layer; norms, features, numbers of experts, gamma_routing and temperature are then tried on these. --runs adds the
routing of finished runs on the same backbone. Writes tables/NAME.md and .csv and figures/NAME_….png.
docs/routing.md says how to read them. Ends with status 2 and one line where there is nothing to measure.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lime.config.schema import TrainConfig  # noqa: E402
from lime.config.scripts import errors_in_one_line, parse_mixed, run_script, script_parser, show_log  # noqa: E402
from lime.jobs.compose import composed  # noqa: E402
from lime.system.printing import print  # noqa: E402


@errors_in_one_line()
def main(arguments: list[str]) -> int:
    parser = script_parser(__doc__)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="options of train.py")
    parser.add_argument("--runs", type=Path, nargs="+", default=[], metavar="RUN", help="folders of finished runs")
    parser.add_argument("--rows", type=int, default=3, help="test rows of each task (default 3)")
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="folder of tables/ and figures/")
    parser.add_argument("--name", help="beginning of the files' names (default: routing_ and the backbone's)")
    options = parse_mixed(parser, arguments)
    show_log()
    config = composed(options.overrides, ROOT / "conf", "train", TrainConfig)

    from lime.analysis.decisions.study import Wanted, study

    name = options.name or f"routing_{config.model.name}"
    for path in study(config, Wanted(options.rows, tuple(options.runs), options.out, name), options.overwrite):
        print(path)
    return 0


if __name__ == "__main__":
    run_script(main)
