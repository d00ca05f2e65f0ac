"""Command lines of eval.py and the scripts: options, errors in one line, overrides in any order, runs as adapters."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lime.system import interrupts
from lime.system.printing import flush, plain_logging, print
from lime.system.threads import spin_briefly

WITH_A_VALUE = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p", "--cfg", "-c")
"""Options of Hydra that take the next word."""
Main = Callable[..., int]
_PLAIN = re.compile(r"[\w./+@-]+")


def run_script(main: Callable[[list[str]], Any]) -> NoReturn:
    """Run a script's ``main(arguments)`` and exit with the code that it returns; a signal ends it with a line."""
    spin_briefly()
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # a retry of the hub is worth no line, let alone two
    with interrupts.taken():
        try:
            sys.exit(main(sys.argv[1:]))
        except interrupts.Interrupted as stop:
            sys.stderr.write(f"\n{stop}\n")
            raise
        finally:
            flush()


def script_parser(
    description: str | None, overwrite: str | None = "replace files that this program did not write"
) -> argparse.ArgumentParser:
    """A parser that shows the script's docstring line by line, with ``--overwrite`` unless its help is None."""
    parser = argparse.ArgumentParser(
        description=folded(description or ""), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if overwrite is not None:
        parser.add_argument("--overwrite", action="store_true", help=overwrite)
    return parser


def folded(text: str) -> str:
    """The text for this terminal: prose filled anew, commands and lists line by line, none cut within a word."""
    fold = functools.partial(
        textwrap.fill, width=shutil.get_terminal_size().columns - 2, break_long_words=False, break_on_hyphens=False
    )
    shown = []
    for part in text.strip().split("\n\n"):
        prose = not re.search("^(python| )", part, re.MULTILINE)
        lines = [part] if prose else part.splitlines()
        shown.append("\n".join(fold(line, subsequent_indent="" if prose else "      ") for line in lines))
    return "\n\n".join(shown)


def takes_metrics(parser: argparse.ArgumentParser) -> None:
    """Add ``--module``, which imports a module of the user's own that registers metrics."""

    def imported(module: str) -> str:
        from lime.evaluation.metrics import import_metrics

        try:
            import_metrics(module, "--module")
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return module

    parser.add_argument("--module", type=imported, help="module that registers metrics of your own (docs/records.md)")


def errors_in_one_line() -> Callable[[Callable[[list[str]], int]], Main]:
    """Decorates the ``main`` of a script: what the user can fix (ValueError, OSError) is printed as ``error: …`` and
    ends it with 2, as argparse does. Without arguments it takes those of the command line."""

    def decorate(main: Callable[[list[str]], int]) -> Main:
        @functools.wraps(main)
        def run(arguments: Sequence[str] | None = None) -> int:
            try:
                return main(list(sys.argv[1:] if arguments is None else arguments))
            except BrokenPipeError:  # whoever reads has seen enough
                return 0
            except (ValueError, OSError) as error:
                print(f"error: {error}", file=sys.stderr)
                return 2

        return run

    return decorate


def show_log() -> None:
    """The log on the terminal, with the time of day."""
    plain_logging()
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")


def parse_mixed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """As ``parse_args``, with overrides before, between and after the options, also of a subcommand.

    argparse takes a run of positional arguments for all there are; what comes after an option is left over.
    """
    options, rest = parser.parse_known_args(arguments)
    odd = [text for text in rest if text.startswith("-") or "=" not in text]
    if odd or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(odd or rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def from_home(path: str | Path) -> Path:
    """The path with `~` as the home folder; of a user who is not there it stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def with_run(arguments: Sequence[str]) -> list[str]:
    """The command line of eval.py with ``RUN`` (also ``adapter=RUN``) as the adapter that the run RUN saved."""
    found: list[str] = []
    for before, text in zip(["", *arguments], arguments, strict=False):
        key, equals, value = text.partition("=")
        place = value if key == "adapter" and equals else text
        folder = from_home(place)
        named = place is value or not (text.startswith("-") or before in WITH_A_VALUE)
        if not named or not place or not folder.is_dir():
            lost = named and not equals and _PLAIN.fullmatch(text)  # told as an adapter that is not there
            found.append(f"adapter={text}" if lost else text)
            continue
        inside = folder / "adapter"
        chosen = str(inside if inside.is_dir() and not (folder / "run.yaml").is_file() else folder)
        found.append(f"adapter={chosen}" if _PLAIN.fullmatch(chosen) else f"adapter='{chosen}'")
    return found
