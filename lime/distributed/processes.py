"""The processes of a distributed run, for code that does not care whether there is one or many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")


_alone = False


def _several() -> bool:
    return not _alone and distributed.is_available() and distributed.is_initialized()


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process counts as the only one: for work that the others do not share or wait for."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if _several() else 0


def world_size() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if _several() else 1


def is_main() -> bool:
    """Whether this process writes the run's files."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        distributed.barrier()


def gather(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks, in every process."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def largest(value: int) -> int:
    """The largest value of any process."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value)
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return int(tensor)


def from_main(value: T) -> T:
    """The main process's value, in every process."""
    if world_size() == 1:
        return value
    holder = [value]
    distributed.broadcast_object_list(holder, src=0)
    return holder[0]


@contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block before the others do: it makes files, they find them."""
    if not is_main():
        barrier()
    try:
        yield
    finally:
        if is_main():
            barrier()
