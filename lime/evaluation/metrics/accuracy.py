"""Accuracy: the share of right answers, by the comparison of `lime.evaluation.scoring`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lime.evaluation.metrics.base import MeanOfRows, Rows, register
from lime.evaluation.paired import sign_flip


class Accuracy(MeanOfRows):
    """Share of right answers; chance is one of the allowed answers. Two runs are compared by McNemar's test."""

    reads_answers = False

    def read(self, split: str, answers: Sequence[str | None], truths: Sequence[str], right_R: np.ndarray) -> Rows:
        return Rows(right_R)

    def row_values(self, rows: Rows) -> np.ndarray:
        return rows.right_R

    def p_value(self, ours: Rows, theirs: Rows, sources: Sequence[str], rng: np.random.Generator) -> float:
        return sign_flip(theirs.right_R - ours.right_R, sources)

    def chance(self, allowed: Sequence[str] | None) -> float | None:
        return 100 / len(set(allowed)) if allowed else None


ACCURACY = register(Accuracy("accuracy", "accuracy"))
