"""The ways through an adapted layer, by name, and beside them Eq. 1 at full width, which only tests compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from lime.method import fused
from lime.tuner.layers import linear


@contextmanager
def way(name: str) -> Iterator[None]:
    """Take one way while inside: a path of `lime.method.fused`, or `literal`: as if no update were of low rank, so that
    every layer forms `zhat` and `P`, (tokens, d_out), and multiplies them (`lime.method.modulation.modulate`)."""
    if name != "literal":
        with fused.use(name):
            yield
        return
    with fused.use("torch"), mock.patch.object(linear, "LowRankDelta", type("OfLowRank", (), {})):
        yield
