"""Generating the embedded benchmark while the model libraries are imported."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lime.embedded.benchmark.builder import ensure
from lime.system import interrupts

_SECONDS = 0.1  # between two looks at a generation that is to stop
_LOOKS = 100


@contextmanager
def generated_ahead(root: str | Path, **settings: int) -> Iterator[Callable[[], None]]:
    """Inside, `ensure(root, **settings)` runs in a thread, and its processes beside it.

    Whoever calls `ensure` meanwhile waits for it, and is told what it was refused. An error inside stops it, and leaves
    nothing of it behind.

    Yields:
        what to call when nothing more is imported: only then are the tables written, by the `datasets` library, whose
        import must not meet that of the model libraries in another thread.
    """
    imported = threading.Event()

    def work() -> None:
        with suppress(Exception):  # met again by whoever needs the data
            ensure(root, **settings, before_tables=imported.wait)

    thread = threading.Thread(target=work, name="embedded benchmark", daemon=True)
    thread.start()
    failed = True
    try:
        yield imported.set
        failed = False
    finally:
        imported.set()
        for _ in range(_LOOKS):
            if not thread.is_alive():
                break
            if failed:
                interrupts.end_children()
            thread.join(_SECONDS)
