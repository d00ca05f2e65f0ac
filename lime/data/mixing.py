"""Which training rows a run takes, and how many of each source its epochs draw.

A source is a task, where the data root says of which task each row is (`MMTDataset.row_tasks`), else a modality. Of
source s, with n_s rows, an epoch draws in proportion to w_s n_s^(1/T), with weight w_s and temperature T; it has as
many rows as the sources with a weight above 0 have together.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lime.data.rows import MANIFEST, TRAIN, DataError, MMTDataset, Row, Rows
from lime.data.tasks import MODALITIES

Source = tuple[str, ...]
"""All names of a source, the narrowest first: (split, task, category, modality), or (modality,)."""


def sources_of(dataset: MMTDataset, rows: Iterable[Row]) -> list[Source]:
    """The source of each of these rows, of the training part or of that which validates."""
    sources: list[Source] = []
    for row in rows:
        name = dataset.row_tasks[row.split][row.index] if row.split in dataset.row_tasks else None
        task = dataset.table.tasks[name] if name is not None else None
        sources.append((task.split, task.name, task.category, row.source_type) if task else (row.source_type,))
    return sources


def chosen_rows(dataset: MMTDataset, rows: Rows, names: Sequence[str] | str | None) -> Rows:
    """Those of these rows that are of one of the splits, tasks, categories or modalities (None: all), in order.

    Raises DataError for a name without training rows, also where the root does not say of which task its rows are.
    """
    if names is None:
        return rows
    names = [names] if isinstance(names, str) else names
    sources = sources_of(dataset, rows)
    if rows.split == TRAIN:
        _check_names("data.tasks", names, dataset, sources)
    return rows.take([at for at, source in enumerate(sources) if not set(source).isdisjoint(names)])


class Mixture:
    """What every epoch draws of rows of several sources: `counts` of each.

    A source that is drawn less often than it has rows gives others each epoch. Of one that is drawn more often, no row
    comes twice more often than another.

    Raises ValueError where no weight is above 0.
    """

    def __init__(self, sources: Sequence[Source], weights: Mapping[str, float], temperature: float) -> None:
        positions: dict[Source, list[int]] = defaultdict(list)
        for position, source in enumerate(sources):
            positions[source].append(position)
        weight = {source: next((weights[name] for name in source if name in weights), 1.0) for source in positions}
        self._rows = {source: np.array(own) for source, own in positions.items() if weight[source] > 0}
        if not self._rows:
            raise ValueError("data.weights: 0 for every training row; leave a weight above 0")
        # as logarithms: with a low temperature the powers are too large for a number
        heights = {s: math.log(weight[s]) + math.log(len(own)) / temperature for s, own in self._rows.items()}
        parts = {source: math.exp(height - max(heights.values())) for source, height in heights.items()}
        rows = sum(map(len, self._rows.values()))
        exact = {source: rows * part / sum(parts.values()) for source, part in parts.items()}
        self.counts = {source: math.floor(value) for source, value in exact.items()}
        nearest = sorted(exact, key=lambda source: self.counts[source] - exact[source])
        for source in nearest[: rows - sum(self.counts.values())]:
            self.counts[source] += 1

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Positions of an epoch's rows, in random order."""
        drawn = []
        for source, count in self.counts.items():
            own = self._rows[source]
            times, rest = divmod(count, len(own))
            drawn += [np.tile(own, times), rng.permutation(own)[:rest]]
        return rng.permutation(np.concatenate(drawn))


def mixture_of(
    dataset: MMTDataset, rows: Sequence[Row], weights: Mapping[str, float] | None, temperature: float
) -> Mixture | None:
    """The mixture of the usable training rows; None where each is drawn once an epoch.

    Raises DataError as `chosen_rows`, ValueError as `Mixture`.
    """
    if not weights and temperature == 1.0:
        return None
    sources = sources_of(dataset, rows)
    _check_names("data.weights", weights or {}, dataset, sources)
    return Mixture(sources, weights or {}, temperature)


def rows_of_an_epoch(dataset: MMTDataset, rows: Sequence[Row], mixture: Mixture | None) -> dict[str, int]:
    """How many rows of each source an epoch has, by the source's narrowest name, in the order of the table."""
    counts: dict[str, int] = dict.fromkeys((*dataset.table.tasks, *MODALITIES), 0)
    of_sources = Counter(sources_of(dataset, rows)) if mixture is None else mixture.counts
    for source, count in of_sources.items():
        counts[source[0]] += count
    return {name: count for name, count in counts.items() if count}


def _check_names(key: str, names: Iterable[str], dataset: MMTDataset, sources: Sequence[Source]) -> None:
    present = {name: None for source in sources for name in source}
    for name in names:
        if name in present:
            continue
        if not dataset.row_tasks and name not in MODALITIES:
            raise DataError(
                f"{key}: {name}: {dataset.root} does not say of which task each training row is; name modalities "
                f"({', '.join(MODALITIES)}), or list the task of every row under train_tasks in its {MANIFEST} (in "
                "data of your own: in a column; an embedded benchmark of an earlier version: remove its folder)"
            )
        raise DataError(f"{key}: {name}: {dataset.root} has no usable training row of it; it has {', '.join(present)}")
