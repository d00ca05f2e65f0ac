"""Ask a trained run about a picture, a clip or a text.

python scripts/ask.py RUN "What is this?" --image cat.jpg
python scripts/ask.py RUN "What happens?" --video clip.mp4 --frozen --show-routing
python scripts/ask.py RUN --interactive

RUN is the folder of a run of train.py, of its adapter, or an adapter's name on the hub. Another's adapter needs its
backbone: model=NAME. --interactive reads questions line by line; a line "image FILE", "video FILE" or "text" says what
the next questions are about, "quit" ends.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lime.config.scripts import from_home, run_script, script_parser
from lime.data.files import MediaError
from lime.jobs.light import light_imports
from lime.system.printing import plain, print

if TYPE_CHECKING:
    from lime.jobs.asking import AdaptedRun

OVERRIDE = re.compile(r"[+~]?[a-z_]+(\.\w+)*=\S*")
SHOWN = 4  # experts of a token


def main(arguments: list[str] | None = None) -> int:
    parser = script_parser(__doc__, overwrite=None)
    parser.add_argument("run", metavar="RUN", help="folder of a run or of its adapter, or ORG/NAME[@REVISION]")
    parser.add_argument("words", nargs="*", metavar="QUESTION", help="in quotes; settings of eval.py as KEY=VALUE")
    parser.add_argument("--image", type=Path, metavar="FILE", help="the picture it is about")
    parser.add_argument("--video", type=Path, metavar="FILE", help="the clip it is about")
    parser.add_argument("--frozen", action="store_true", help="print the answer of the backbone without adapter, too")
    parser.add_argument("--show-routing", action="store_true", help="print the experts that acted on the answer")
    parser.add_argument("--interactive", action="store_true", help="ask again and again, with the model loaded once")
    options = parser.parse_intermixed_args(arguments)
    overrides = [word for word in options.words if OVERRIDE.fullmatch(word)]
    question = " ".join(word for word in options.words if word not in overrides)
    if not question and not options.interactive:
        parser.error("a question is needed, in quotes, or --interactive")
    media = {kind: file for kind, file in (("image", options.image), ("video", options.video)) if file is not None}
    try:
        run = _open(options.run, overrides)
        if question:
            _answer(run, question, media, options)
        if options.interactive:
            _interactive(run, media, options)
    except (ValueError, OSError, MediaError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _open(run: str, overrides: list[str]) -> AdaptedRun:
    with light_imports():  # after the arguments were checked
        import transformers

        from lime.jobs.asking import open_run

        transformers.utils.logging.disable_progress_bar()
        logging.basicConfig(level=logging.ERROR, format="%(message)s")
        warnings.filterwarnings("ignore", message=".*base_model_name_or_path. was renamed.*")  # checked by fingerprint
        return open_run(run, *overrides)


def _answer(run: AdaptedRun, question: str, media: dict[str, Path], options: argparse.Namespace) -> None:
    answer = run.ask(question, **media)
    if options.frozen:
        print(f"frozen:  {plain(run.ask(question, **media, frozen=True))}")
    print(f"adapted: {plain(answer)}" if options.frozen else plain(answer))
    if options.show_routing:
        for token in run.routing(question, answer, **media):
            shares = sorted(enumerate(token.weights_E), key=lambda pair: -pair[1])[:SHOWN]
            experts = "  ".join(f"expert {expert}: {share:4.0%}" for expert, share in shares)
            print(f"  {plain(token.token, ''):<14} {experts}")


def _interactive(run: AdaptedRun, media: dict[str, Path], options: argparse.Namespace) -> None:
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        kind, _, file = line.partition(" ")
        if kind in ("image", "video") and from_home(file.strip()).is_file():
            media = {kind: Path(file.strip())}
        elif line == "text":
            media = {}
        elif line in ("quit", "exit"):
            return
        elif line:
            try:
                _answer(run, line, media, options)
            except (ValueError, OSError, MediaError) as error:
                print(f"error: {error}", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
