"""What a run says about itself at its end, by the keys that every logger shows it under."""

from __future__ import annotations

from lime.evaluation.aggregation import MACRO, Evaluation
from lime.runs.record import Parameters, Training

MAJORITY, FROZEN, EXACT_MATCH = "majority/macro", "frozen/macro", "exact_match/macro"
COSTS = (
    "parameters/trainable", "parameters/total", "adapter_bytes", "training/seconds", "training/samples_per_second",
    "training/tokens_per_second", "training/peak_memory_mb",
)  # fmt: skip
"""Keys for what a run cost; times in seconds, memory in MB."""
USAGE = "routing/usage_by_layer"
"""Key of the heat map of expert usage."""


def score_key(name: str) -> str:
    """Key for the score (accuracy; 100 x Pearson for STS-B) of a split, a category or ``macro``."""
    return f"score/{name}"


def costs(parameters: Parameters, measured: Training, adapter_bytes: int) -> dict[str, float]:
    """What a run cost, by :data:`COSTS`."""
    values = (
        parameters.trainable, parameters.total, adapter_bytes, measured.seconds, measured.samples_per_second,
        measured.tokens_per_second, measured.peak_memory_mb,
    )  # fmt: skip
    return dict(zip(COSTS, values, strict=True))


def scores(evaluation: Evaluation) -> dict[str, float]:
    """Every score of a run in points, with the baselines of the macro score."""
    macro = evaluation.macro
    found = {score_key(score.split): score.value for score in evaluation.splits}
    found |= {score_key(group.name): group.score.value for group in evaluation.categories}
    found |= {score_key(MACRO): macro.score.value, MAJORITY: macro.majority, EXACT_MATCH: macro.exact_match.value}
    return found if macro.frozen is None else found | {FROZEN: macro.frozen}
