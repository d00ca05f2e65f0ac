"""Batches of rows of like length, in an order that a resumed run continues exactly; read ahead by a thread."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from lime.data.mixing import Mixture


class LengthBucketSampler(Sampler[list[int]]):
    """Index batches of like length, seeded.

    Each epoch the rows are permuted by (seed, epoch), cut into windows of `window` batches, sorted by length
    within a window, cut into batches, and the batches are shuffled. So batches differ from epoch to epoch and
    padding is small. With several `replicas`, batches are dealt round-robin; some are dealt twice where the
    count does not divide, so that every replica takes the same number of steps. Iterating yields the batches
    of `epoch` from number `start` on.

    `mixture`: what epochs draw of the rows, by (seed, epoch), in place of each row once.

    `kinds`, one per row (its modality): the rows of a batch, and the batches that the replicas take at one step, are
    then all of one kind, so that every replica runs the same towers.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int = 0,
        *,
        window: int = 50,
        rank: int = 0,
        replicas: int = 1,
        kinds: Sequence[str] | None = None,
        mixture: Mixture | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        if not lengths:
            raise ValueError("no training rows to sample from")
        if not 0 <= rank < replicas:
            raise ValueError(f"rank: expected 0 to {replicas - 1}, got {rank}")
        self.lengths = np.asarray(lengths)
        self.kinds = np.asarray(kinds if kinds is not None else ["any"] * len(lengths))
        if len(self.kinds) != len(self.lengths):
            raise ValueError(f"kinds: expected one for each of {len(self.lengths)} rows, got {len(self.kinds)}")
        self.by_kind, self.mixture = kinds is not None, mixture
        self.batch_size, self.seed, self.window = batch_size, seed, window
        self.rank, self.replicas = rank, replicas
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        """Batches of one epoch on one replica."""
        counts = np.unique(self.kinds[self._rows(np.random.default_rng(0))], return_counts=True)[1]
        return sum(math.ceil(math.ceil(int(n) / self.batch_size) / self.replicas) for n in counts)

    def batches(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch on this replica."""
        rng = np.random.default_rng([self.seed, epoch])
        order = self._rows(rng)
        if self.by_kind:
            return self._batches_by_kind(rng, order)
        mixed = self._buckets(order)
        mixed = [mixed[i] for i in rng.permutation(len(mixed))]
        while len(mixed) % self.replicas:
            mixed += mixed[: self.replicas - len(mixed) % self.replicas]
        return mixed[self.rank :: self.replicas]

    def _rows(self, rng: np.random.Generator) -> np.ndarray:
        return rng.permutation(len(self.lengths)) if self.mixture is None else self.mixture.draw(rng)

    def _batches_by_kind(self, rng: np.random.Generator, order: np.ndarray) -> list[list[int]]:
        """This replica's batches, where those of one step are of one kind."""
        steps: list[list[list[int]]] = []
        for kind in np.unique(self.kinds[order]):
            own = self._buckets(order[self.kinds[order] == kind])
            own = [own[i] for i in rng.permutation(len(own))]
            for start in range(0, len(own), self.replicas):
                step = own[start : start + self.replicas]
                steps.append([*step, *(own[i % len(own)] for i in range(self.replicas - len(step)))])
        return [steps[i][self.rank] for i in rng.permutation(len(steps))]

    def _buckets(self, order: np.ndarray) -> list[list[int]]:
        """Batches of like length of the rows in `order`."""
        buckets: list[list[int]] = []
        for start in range(0, len(order), self.window * self.batch_size):
            part = order[start : start + self.window * self.batch_size]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            buckets += [part[i : i + self.batch_size].tolist() for i in range(0, len(part), self.batch_size)]
        return buckets

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches(self.epoch)[self.start :])


_END = object()


def read_ahead(stream: Iterator[Any], depth: int) -> Generator[Any, None, None]:
    """The items of `stream`, up to `depth` of them prepared in advance by one thread. Errors surface in their turn."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        pending = deque(pool.submit(next, stream, _END) for _ in range(depth))
        try:
            while (item := pending.popleft().result()) is not _END:
                pending.append(pool.submit(next, stream, _END))
                yield item
        finally:
            for waiting in pending:
                waiting.cancel()


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that knows how many batches it has handed out, whatever its workers have prefetched.

    `state_dict` says where it stands; after `load_state_dict` the next iteration goes on from there, in the
    same order. Otherwise every iteration is a new epoch. `limit` tells how many batches the consumer takes of
    an epoch (None: all). Without workers a thread prepares `ahead` batches in advance.
    """

    def __init__(self, dataset: Any, sampler: LengthBucketSampler, ahead: int = 2, **options: Any) -> None:
        super().__init__(dataset, batch_sampler=sampler, generator=torch.Generator(), **options)
        self.ahead = ahead
        self.buckets = sampler
        self.limit: Callable[[], float | None] = lambda: None
        self._epoch, self._position, self._resumed = 0, 0, True

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if not self._resumed:
            self._epoch, self._position = self._epoch + 1, 0
        if self._position >= len(self.buckets):
            self._epoch, self._position = self._epoch + 1, 0
        self._resumed = False
        self.buckets.epoch, self.buckets.start = self._epoch, self._position
        stream = super().__iter__()
        for batch in stream if self.num_workers else read_ahead(stream, self.ahead):
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Epoch and position, with what they depend on."""
        last = min(len(self.buckets), self.limit() or float("inf"))
        done, mixture = self._position >= last, self.buckets.mixture
        return {
            "epoch": self._epoch + int(done),
            "position": 0 if done else self._position,
            "rows": len(self.buckets.lengths),
            "batch_size": self.buckets.batch_size,
            "seed": self.buckets.seed,
            "replicas": self.buckets.replicas,
            "alike": self.buckets.by_kind,  # its name in checkpoints
            "drawn": None if mixture is None else {" ".join(source): n for source, n in mixture.counts.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state`. ValueError where rows, what is drawn of them, batch size, seed or replicas differ: the
        order would too."""
        own = self.state_dict()
        for key in ("rows", "batch_size", "seed", "replicas", "alike", "drawn"):
            if state.get(key) != own[key]:
                raise ValueError(
                    f"cannot resume: the checkpoint was written with {key}={state.get(key)}, this run has {own[key]}; "
                    "the order of the training rows depends on it"
                )
        self._epoch, self._position, self._resumed = state["epoch"], state["position"], True
