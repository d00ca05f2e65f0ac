"""Settings of an evaluation. Plain dataclass: imports neither torch nor any model library."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass

from lime.system.checks import not_one_of

MODES = ("generate", "likelihood", "none")
NORMALISATIONS = ("mean", "sum")
SCORERS = ("blind", "authors")


@dataclass
class EvaluationConfig:
    """How test rows are answered and scored.

    Attributes:
        mode: `generate` decodes greedily and extracts the answer from the text; `likelihood` picks the allowed
            answer of the highest log-likelihood (splits without a closed set of answers are generated in either
            mode); `none` reads no test row, for searches that choose by the validation loss.
        scorer: `blind` extracts answers without seeing the truth; `authors` adds the scores of the published runs'
            scorer beside the blind ones, for comparison with published numbers only.
        splits: test splits to score, by split name, task (`sst2`), category (`glue`) or modality (`video`), of
            which those that the data set has are taken; null means every split of the data set. `python scripts/data.py
            tasks` lists the names, `… tasks FOLDER` those of your own data.
        metrics: metrics to score by in place of the tasks' own, by split name, task or category: `{chartqa: token_f1}`;
            null means each task's own. Names are those of `lime.evaluation.metrics`, your own included.
        module: Python module that registers metrics of your own (docs/records.md).
        batch_size: rows per batch.
        max_new_tokens: longest generated answer in tokens, the end token included.
        likelihood_normalisation: `mean` divides the log-likelihood of an answer by its number of tokens (end
            token included), `sum` does not, and so favours short answers.
        baseline_frozen: also score the frozen backbone (by likelihood) on the same rows.
    """

    mode: str = "generate"
    scorer: str = "blind"
    splits: list[str] | str | None = None
    metrics: dict[str, str] | None = None
    module: str | None = None
    batch_size: int = 64
    max_new_tokens: int = 50
    likelihood_normalisation: str = "mean"
    baseline_frozen: bool = True

    def errors(self, known_splits: Collection[str] = ()) -> list[str]:
        """Everything wrong with these settings, each message naming its key. `known_splits`: names of splits
        to accept."""
        words = {"mode": MODES, "scorer": SCORERS, "likelihood_normalisation": NORMALISATIONS}
        problems = not_one_of(self, "evaluation", words)
        for key, number, least in (
            ("batch_size", self.batch_size, 1),
            ("max_new_tokens", self.max_new_tokens, 1),
        ):
            if number < least:
                problems.append(f"evaluation.{key}: expected an integer of at least {least}, got {number!r}")
        if self.splits is not None:
            problems += self._split_errors(known_splits)
        return problems + self._metric_errors(known_splits)

    def import_module(self) -> None:
        """Register the metrics of `module`. Raises ValueError where it cannot be imported."""
        if self.module:
            from lime.evaluation.metrics import import_metrics

            import_metrics(self.module, "evaluation.module")

    def _metric_errors(self, known_splits: Collection[str]) -> list[str]:
        if not self.metrics and not self.module:
            return []
        from lime.evaluation.metrics import METRICS  # brings numpy and scipy

        try:
            self.import_module()
        except ValueError as error:
            return [str(error)]
        problems = []
        for name, metric in (self.metrics or {}).items():
            if known_splits and name not in known_splits:
                problems.append(f"evaluation.metrics: {_unknown_split(name, known_splits)}")
            if metric not in METRICS:
                problems.append(
                    f"evaluation.metrics.{name}: expected one of {', '.join(METRICS)}, or one of your own, whose "
                    f"module evaluation.module names, got {metric!r}"
                )
        return problems

    def _split_errors(self, known_splits: Collection[str]) -> list[str]:
        splits = [self.splits] if isinstance(self.splits, str) else self.splits or []
        problems = []
        if not splits:
            problems.append("evaluation.splits: expected null (all splits) or at least one split name, got []")
        twice = sorted({split for split in splits if splits.count(split) > 1})
        if twice:
            problems.append(f"evaluation.splits: each split may be named once, named twice: {', '.join(twice)}")
        for split in splits:
            if known_splits and split not in known_splits:
                problems.append(f"evaluation.splits: {_unknown_split(split, known_splits)}")
        return problems


def _unknown_split(split: str, known_splits: Collection[str]) -> str:
    near = difflib.get_close_matches(split, known_splits, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown split {split!r}{hint}; `python scripts/data.py tasks` lists tasks and categories"
