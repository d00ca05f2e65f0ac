"""A W&B sweep from an experiment: python scripts/wandb_sweep.py num_experts [key=value …] --out sweep.yaml

Writes the grid of experiments/NAME.yaml as a sweep configuration of W&B: the same values, and train.py as the program.
Then `wandb sweep sweep.yaml` makes the sweep and `wandb agent ENTITY/PROJECT/ID` runs its points, on as many machines
as you like. Overrides are passed on; a swept one (seed=1,2) replaces the experiment's values.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lime.config.scripts import errors_in_one_line, parse_mixed, run_script, script_parser
from lime.integrations.wandb_sweep import sweep_config
from lime.system.atomic import write_text
from lime.system.ownership import MADE_BY, check_output
from lime.system.printing import print

ROOT = Path(__file__).resolve().parents[1]


@errors_in_one_line()
def main(arguments: list[str]) -> int:
    parser = script_parser(__doc__)
    parser.add_argument("experiment", help="name of an overlay in experiments/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="further overrides, as for train.py")
    parser.add_argument("--project", default="lime", help="project of the sweep (default: lime)")
    parser.add_argument("--out", type=Path, help="file to write (default: print)")
    options = parse_mixed(parser, arguments)
    if options.out is not None:
        check_output(options.out, overwrite=options.overwrite)
    import yaml

    content = sweep_config(options.experiment, options.overrides, options.project, ROOT)
    text = yaml.safe_dump(content, sort_keys=False, width=1000)
    if options.out is None:
        print(text, end="")
        return 0
    write_text(options.out, f"# {MADE_BY}\n{text}")
    print(options.out)
    return 0


if __name__ == "__main__":
    run_script(main)
