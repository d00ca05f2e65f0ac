"""Write a run's adapter with a model card into a folder ready for the hub.

python scripts/export.py RUN FOLDER [--licence apache-2.0] [--title TEXT]

Then, where you are logged in: hf upload ORG/NAME FOLDER
Back again: python eval.py adapter=FOLDER   or   python eval.py adapter=ORG/NAME
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lime.config.scripts import run_script
from lime.integrations.hub import export_adapter
from lime.system.printing import print


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run of train.py")
    parser.add_argument("out", type=Path, help="folder to write; one that holds something else is refused")
    parser.add_argument("--licence", default="other", help="the hub's name of the licence you choose")
    parser.add_argument("--title", help="heading of the model card (default: the run's name)")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder, whatever is in it")
    options = parser.parse_args(arguments)
    try:
        folder = export_adapter(
            options.run, options.out, licence=options.licence, title=options.title, overwrite=options.overwrite
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{folder}: " + ", ".join(sorted(path.name for path in folder.iterdir())))
    return 0


if __name__ == "__main__":
    run_script(main)
