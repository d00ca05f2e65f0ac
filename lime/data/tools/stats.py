"""Rows and tokens of a data root per task and modality, counted as training and evaluation count them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lime.data.collate import BaseCollator
from lime.data.media import MediaError
from lime.data.rows import TRAIN, MMTDataset, Row
from lime.data.tasks import MODALITIES
from lime.system.tables import plain_table


@dataclass(frozen=True)
class Lengths:
    """Rows of one part, and the tokens of a row: its prompt with visual placeholders and its answer.

    `tokens` is their sum, `visual` and `answer` the parts of it; `p50`, `p99` and `longest` are of whole rows.
    `unread` rows have media that could not be read and are not counted.
    """

    part: str
    modality: str
    rows: int
    tokens: int
    visual: int
    answer: int
    p50: int
    p99: int
    longest: int
    too_long: int
    unread: int


@dataclass(frozen=True)
class Statistics:
    """`tasks`: train by modality and each test split; `modalities`: all test splits of a modality together."""

    max_length: int
    tasks: list[Lengths]
    modalities: list[Lengths]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> str:
        shown = ("part", "rows", "tokens", "visual", "answer", "p50", "p99", "longest", "too_long")
        head = [*shown[:7], "max", f"> {self.max_length}"]
        text = plain_table(head, [[getattr(one, key) for key in shown] for one in [*self.tasks, *self.modalities]])
        unread = sum(one.unread for one in self.tasks)
        return text + (f"\n{unread:,} rows left out: their media cannot be read (see verify)" if unread else "")


def statistics(dataset: MMTDataset, collator: BaseCollator[Any]) -> Statistics:
    """Counts every row. Reads the headers of media only, and decodes nothing."""
    groups: list[tuple[str, str, list[Row]]] = []
    if dataset.has_train:
        train = list(dataset.train)
        for kind in MODALITIES:
            groups.append((f"{TRAIN} ({kind})", kind, [row for row in train if row.source_type == kind]))
    groups += [(name, rows[0].source_type, list(rows)) for name, rows in dataset.tests.items() if len(rows)]
    counted = [(part, kind, *_lengths(rows, collator)) for part, kind, rows in groups if rows]
    limit = collator.max_length
    tasks = [_summary(part, kind, values, unread, limit) for part, kind, values, unread in counted]
    modalities = []
    for kind in MODALITIES:
        own = [(values, unread) for part, k, values, unread in counted if k == kind and not part.startswith(TRAIN)]
        if own:
            joined = np.concatenate([values for values, _ in own])
            modalities.append(_summary(f"all tests ({kind})", kind, joined, sum(n for _, n in own), limit))
    return Statistics(limit, tasks, modalities)


def _lengths(rows: Iterable[Row], collator: BaseCollator[Any]) -> tuple[np.ndarray, int]:
    """(rows, 3): tokens of a row, of these visual, of these of the answer; and how many rows could not be read."""
    counted, unread = [], 0
    for row in rows:
        try:
            counted.append(collator.parts(row))
        except MediaError:
            unread += 1
    return np.array(counted, dtype=np.int64).reshape(-1, 3), unread


def _summary(part: str, kind: str, values: np.ndarray, unread: int, limit: int) -> Lengths:
    rows = values[:, 0]
    p50, p99 = np.percentile(rows, [50, 99], method="higher").tolist() if len(rows) else (0, 0)
    tokens, visual, answer = (int(total) for total in values.sum(axis=0))
    longest = int(rows.max(initial=0))
    return Lengths(
        part, kind, len(rows), tokens, visual, answer, int(p50), int(p99), longest, int((rows > limit).sum()), unread
    )
