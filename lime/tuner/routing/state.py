"""What runs in a model just now, of each thread its own: open calls, the recorder, a run of `generate`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from lime.tuner.routing.call import TowerCall
from lime.tuner.routing.recorder import Recorder


@dataclass
class Generation:
    """One run of `generate`.

    Attributes:
        prompt: width of its prompt, where that is known beforehand; its first pass may hold more, the candidates of
            assisted decoding.
        columns: width of the prompt in each language model, known from the first pass.
    """

    prompt: int | None = None
    columns: dict[str, int] = field(default_factory=dict)

    def deciding(self, scope: str, tokens: int, begins: bool) -> int:
        """Number of columns that decide, of a pass with so many tokens; the pass `begins` where its cache is empty."""
        if begins or tokens < self.columns.get(scope, tokens + 1):
            self.columns[scope] = min(tokens, self.prompt or tokens)
        return self.columns[scope]


class RoutingState(threading.local):
    """The calls that are open in one model, its recorder and run of `generate`; shared by all its adapted layers, and
    of each thread its own: calls belong to the thread that makes them."""

    def __init__(self) -> None:
        self.open: dict[str, TowerCall] = {}
        self.recorder: Recorder | None = None
        self.generation: Generation | None = None

    @contextlib.contextmanager
    def restored(self, calls: dict[str, TowerCall]) -> Iterator[None]:
        """Make earlier calls current again, while a checkpointed segment is recomputed."""
        before, self.open = self.open, calls
        try:
            yield
        finally:
            self.open = before

    @contextlib.contextmanager
    def recording(self) -> Iterator[Recorder]:
        """Make a new recorder active for the forward passes inside."""
        before, self.recorder = self.recorder, Recorder()
        try:
            yield self.recorder
        finally:
            self.recorder = before

    def __deepcopy__(self, memo: dict[int, object]) -> RoutingState:
        new = RoutingState()
        memo[id(self)] = new
        return new

    def __reduce__(self) -> tuple[type[RoutingState], tuple[()]]:
        return RoutingState, ()
