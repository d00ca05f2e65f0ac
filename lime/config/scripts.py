"""Command lines of the scripts: options and overrides (KEY=VALUE) in any order."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


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
