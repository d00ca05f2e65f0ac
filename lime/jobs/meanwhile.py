"""What a run begins before the model libraries are there: the embedded benchmark, where it is yet to be generated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from lime.config.identity import EMBEDDED_DATA
from lime.config.schema import TrainConfig


def meanwhile(config: TrainConfig) -> AbstractContextManager[Callable[[], object]]:
    """Yields what to call when the model libraries are imported."""
    data = config.data
    if data.name != EMBEDDED_DATA or data.root is None:
        return nullcontext(lambda: None)
    from lime.embedded.benchmark.ahead import generated_ahead

    return generated_ahead(data.root, **dataclasses.asdict(data.mini))
