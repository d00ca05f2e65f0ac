"""In a sweep the terminal shows a line or two for each run; all that a run says stands in its own log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_alone = False


@contextmanager
def warnings_alone() -> Iterator[None]:
    """Handlers of the root logger that write to a stream, not to a file, show warnings and errors only inside."""
    global _alone
    shown = [h for h in logging.getLogger().handlers if _is_terminal(h)]
    levels = [handler.level for handler in shown]
    before, _alone = _alone, True
    for handler in shown:
        handler.setLevel(max(handler.level, logging.WARNING))
    try:
        yield
    finally:
        _alone = before
        for handler, level in zip(shown, levels, strict=True):
            handler.setLevel(level)


def tables_are_shown() -> bool:
    """Whether results may be printed as tables; not inside :func:`warnings_alone`."""
    return not _alone


def _is_terminal(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
