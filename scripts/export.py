"""Write a run's adapter with a model card into a folder ready for the hub.

python scripts/export.py RUN FOLDER [--licence apache-2.0] [--title TEXT]

Then, where you are logged in: hf upload ORG/NAME FOLDER
Back again: python eval.py adapter=FOLDER   or   python eval.py adapter=ORG/NAME
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lime.config.scripts import errors_in_one_line, run_script, script_parser
from lime.integrations.hub import export_adapter
from lime.system.printing import print


@errors_in_one_line()
def main(arguments: list[str]) -> int:
    parser = script_parser(__doc__, "replace the folder, whatever is in it")
    parser.add_argument("run", type=Path, help="folder of a finished run of train.py")
    parser.add_argument("out", type=Path, help="folder to write; one that holds something else is refused")
    parser.add_argument("--licence", default="other", help="the hub's name of the licence you choose")
    parser.add_argument("--title", help="heading of the model card (default: the run's name)")
    options = parser.parse_args(arguments)
    folder = export_adapter(**vars(options))
    print(f"{folder}: " + ", ".join(sorted(path.name for path in folder.iterdir())))
    return 0


if __name__ == "__main__":
    run_script(main)
