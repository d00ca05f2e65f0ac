"""A logger is an addition: what goes wrong with it costs a line in the log, and no run."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec

log = logging.getLogger(__name__)
P = ParamSpec("P")


def not_fatal(name: str, *errors: type[Exception]) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Decorates a method of the logger ``name``: these errors are logged, and the run goes on."""

    def decorated(method: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(method)
        def guarded(*arguments: P.args, **options: P.kwargs) -> None:
            try:
                method(*arguments, **options)
            except errors as error:
                log.warning("%s: %s: %s", name, method.__name__, first_line(error))

        return guarded

    return decorated


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
