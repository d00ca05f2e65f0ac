"""What is shown is text: names, paths and answers of strangers neither steer a terminal nor break a table.

`plain` is for terminals and logs, `markdown`, `latex` and `csv_cell` are for tables. Escape sequences, other control
characters and marks that turn the direction of writing are shown as Python writes them (`\\x1b`).
"""

from __future__ import annotations

import builtins
import io
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_ALLOWED = "\n\t"
_MARKDOWN = re.compile(r"[\\|*`<>\[\]&~$]|(?<![^\W_])_|_(?![^\W_])|^[#+\-=](?=\D)|^\d+(?=[.)]\s)")
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", **{letter: "\\" + letter for letter in "&%$#_{}"},
}  # fmt: skip
_FORMULA = re.compile(r"[=+\-@\t\r]")
_PLAIN_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?%?")


def plain(text: object, allowed: str = _ALLOWED) -> str:
    """Text without control characters but those `allowed` (line ends and tabs)."""
    return _CONTROL.sub(lambda match: match[0] if match[0] in allowed else _written(match[0]), str(text))


def _written(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def one_line(text: object) -> str:
    """As `plain`, line ends and tabs as spaces."""
    return plain(re.sub(r"\r\n|[\r\n\t]", " ", str(text)))


def markdown(text: object) -> str:
    """Text as a cell or an item of a list in Markdown."""
    return _MARKDOWN.sub(lambda match: match[0] + "\\" if match[0].isdigit() else "\\" + match[0], one_line(text))


def latex(text: object) -> str:
    """Text as a cell in LaTeX."""
    return "".join(_LATEX.get(char, char) for char in one_line(text))


def csv_cell(value: object) -> object:
    """A value for a cell of a CSV file: text that a spreadsheet would take for a formula gets an apostrophe before it;
    numbers stay."""
    if not isinstance(value, str):
        return value
    text = plain(value.replace("\n", "\\n"), "")
    formula = _FORMULA.match(value) and not _PLAIN_NUMBER.fullmatch(value)
    return f"'{text}" if formula else text


def print(*values: object, **options: Any) -> None:  # scripts import it in place of Python's own
    """As Python's own, with the values as `plain` text."""
    builtins.print(*map(plain, values), **options)  # noqa: T201


def flush() -> None:
    """Write out what was printed; where nobody reads it any more, Python need not say so at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class PlainRecord(logging.LogRecord):
    """A log record whose message is plain text."""

    def getMessage(self) -> str:
        """The message with its arguments, without control characters."""
        return plain(super().getMessage())


class LogFile(logging.FileHandler):
    """A run's log. Where a link stands in its place, which the run then refuses, nothing is written."""

    def _open(self) -> io.TextIOWrapper:
        if Path(self.baseFilename).is_symlink():
            self.baseFilename = os.devnull
        return super()._open()


def plain_logging() -> None:
    """From now on every log of this process, whatever its handlers, gets plain text."""
    logging.setLogRecordFactory(PlainRecord)
