"""Write a checkpoint of a published architecture with random weights: python scripts/random_checkpoint.py NAME FOLDER

For trying what fits and how fast it runs, where the real weights are not at hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lime.config.scripts import errors_in_one_line, run_script, script_parser
from lime.models.architectures import ARCHITECTURES
from lime.models.random_checkpoint import write_random_checkpoint
from lime.system.printing import print


@errors_in_one_line()
def main(arguments: list[str]) -> int:
    parser = script_parser(__doc__, "replace the folder, whatever is in it")
    parser.add_argument("name", choices=sorted(ARCHITECTURES), metavar="NAME", help=", ".join(sorted(ARCHITECTURES)))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="blocks of each tower (default: all)")
    parser.add_argument("--small-vocabulary", action="store_true", help="embeddings of the embedded tokenizer's size")
    options = parser.parse_args(arguments)
    folder = write_random_checkpoint(
        options.name,
        options.folder,
        layers=options.layers,
        full_vocabulary=not options.small_vocabulary,
        overwrite=options.overwrite,
    )
    print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir()) / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    run_script(main)
