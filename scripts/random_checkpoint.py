"""Write a checkpoint of a published architecture with random weights: python scripts/random_checkpoint.py NAME FOLDER

For trying what fits and how fast it runs, where the real weights are not at hand.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lime.config.scripts import run_script
from lime.models.architectures import ARCHITECTURES
from lime.models.random_checkpoint import write_random_checkpoint
from lime.system.printing import print


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(ARCHITECTURES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="blocks of each tower (default: all)")
    parser.add_argument("--small-vocabulary", action="store_true", help="embeddings of the embedded tokenizer's size")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder, whatever is in it")
    options = parser.parse_args(arguments)
    try:
        folder = write_random_checkpoint(
            options.name,
            options.folder,
            layers=options.layers,
            full_vocabulary=not options.small_vocabulary,
            overwrite=options.overwrite,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir()) / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    run_script(main)
