"""Runs of `generate` under an adapter that decides once for a whole sequence."""

from __future__ import annotations

from typing import Any

from lime.tuner.context import Generation, RoutingState


class GenerateOnePrompt:
    """`generate` of a model, as an attribute of the instance: marks the run, so that every forward pass in it takes
    means over the prompt's columns alone, with a key-value cache and without."""

    def __init__(self, model: Any, state: RoutingState):
        self.model, self.state = model, state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before, self.state.generation = self.state.generation, Generation()
        try:
            return type(self.model).generate(self.model, *args, **kwargs)
        finally:
            self.state.generation = before
