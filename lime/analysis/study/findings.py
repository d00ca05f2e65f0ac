"""From what a pass collected to the numbers of a record: plain dictionaries, ready for JSON.

Shapes: R rows, L blocks, N windows, n tokens of a window.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from lime.analysis.approximation import error_of_rank, fit_modulators, mixture_layers, scrambled, whitened_experts
from lime.analysis.cka import NoVariation, cka_replicates, linear_cka
from lime.analysis.information import Routing, chance_of_information, information, most_possible
from lime.analysis.probe import Probed, probe
from lime.analysis.projection import principal_components, separation
from lime.analysis.resampling import balanced_groups, jackknife_interval
from lime.analysis.routing import usage_by_group, usage_of
from lime.analysis.study.collecting import Collected
from lime.data.rows import Row
from lime.data.tasks import TaskTable
from lime.evaluation.clusters import source_media
from lime.evaluation.intervals import Estimate, difference, mean_sample, share

log = logging.getLogger(__name__)

Findings = dict[str, Any]
FOLDS, GROUPS, BLOCKS = 5, 10, 6
LABELS = ("task", "category", "modality")


@dataclass(frozen=True)
class Labelled:
    """Rows by task, category and modality, and which of them are not independent."""

    labels: dict[str, list[str]]
    clusters: list[str]

    def folds(self, count: int) -> np.ndarray:
        """Groups of rows, (R,); as many as there are sources, where they are fewer."""
        return balanced_groups(self.labels["task"], self.clusters, min(count, len(set(self.clusters))))

    def of(self, indices: np.ndarray) -> Labelled:
        """Some of the rows."""
        labels = {name: [values[index] for index in indices] for name, values in self.labels.items()}
        return Labelled(labels, [self.clusters[index] for index in indices])

    @property
    def can_probe(self) -> bool:
        """Whether there are two tasks and three independent sources of rows or more."""
        return len(set(self.labels["task"])) > 1 and len(set(self.clusters)) > 2


def labelled(rows: Sequence[Row], table: TaskTable) -> Labelled:
    """Names of the rows' groups. Rows of one image or source clip are one cluster, a text row is its own."""
    labels = {
        "task": [row.split for row in rows],
        "category": [table.tasks[row.split].category for row in rows],
        "modality": [row.source_type for row in rows],
    }
    return Labelled(labels, [source_media(row.media_path) or row.id for row in rows])


def routing_findings(collected: Collected, rows: Labelled) -> Findings:
    """Usage, entropy and realised experts by layer; and by task, category and modality."""
    layers = {key: asdict(usage_of(routed)) for key, routed in collected.routing.items()}
    by: Findings = {name: {} for name in LABELS}
    for key, routed in collected.routing.items():
        for name, groups in rows.of(collected.seen[key]).labels.items():
            for group, usage in usage_by_group(routed, groups).items():
                by[name].setdefault(group, {})[key] = asdict(usage)
    return {"layers": layers, "by": by}


def information_findings(collected: Collected, rows: Labelled) -> Findings:
    """Mutual information between the expert of a token and the task, category and modality of its row, by layer and in
    the mean over layers; and how well the task is read off the mean routing of all layers."""
    layers: Findings = {key: {} for key in collected.routing}
    mean: Findings = {}
    for name, labels in rows.labels.items():
        for key, routing in zip(layers, routings(collected), strict=True):
            seen = [labels[row] for row in routing.rows_R]
            layers[key][name] = {
                **asdict(information([routing], labels, rows.clusters)),
                "bound": most_possible(routing.usage_RE.shape[1], seen),
                "p": chance_of_information(routing, labels, rows.clusters),
            }
        of_mean = information(routings(collected, 1 / len(layers)), labels, rows.clusters)
        bound = float(np.mean([layer[name]["bound"] for layer in layers.values()]))
        mean[name] = {**asdict(of_mean), "bound": bound}
    read = task_from_profile(collected, rows)
    accuracy = None if read is None else _accuracy(read, rows.clusters)
    return {"layers": layers, "mean": mean, "task_from_profile": accuracy}


def routings(collected: Collected, weight: float = 1.0) -> list[Routing]:
    """The routing of every layer, as a sum with this weight each."""
    return [Routing(one.probability_RE, collected.seen[key], weight) for key, one in collected.routing.items()]


def task_from_profile(collected: Collected, rows: Labelled) -> Probed | None:
    """The task read off the mean routing of all layers; none where rows are too few. A layer that a row does not reach
    counts with its mean over those that do."""
    if not rows.can_probe:
        return None
    parts = []
    for key, routed in collected.routing.items():
        part_RE = np.tile(routed.probability_RE.mean(axis=0), (len(rows.clusters), 1))
        part_RE[collected.seen[key]] = routed.probability_RE
        parts.append(part_RE)
    return probe(np.concatenate(parts, axis=1), rows.labels["task"], rows.folds(FOLDS).tolist())


def maps_findings(collected: Collected) -> tuple[Findings, dict[str, np.ndarray]]:
    """Of each mapped layer: the variance that two components hold, and how much of it the dominant expert explains;
    beside it the points (N, 2). A layer whose updates do not vary is left out."""
    found, points = {}, {}
    for key, cloud in collected.clouds.items():
        if np.ptp(cloud.updates_NO, axis=0).max() == 0:
            log.warning("%s: its updates do not vary, so there is no map of them", key)
            continue
        projected = principal_components(cloud.updates_NO)
        split = separation(cloud.updates_NO, cloud.dominant_N.tolist())
        experts, counts = np.unique(cloud.dominant_N, return_counts=True)
        found[key] = {"points": len(cloud.dominant_N), "explained": list(projected.explained), **asdict(split)}
        found[key]["dominant"] = dict(zip(map(str, experts.tolist()), (counts / counts.sum()).tolist(), strict=True))
        points[key] = projected.points
    return found, points


def windows_findings(collected: Collected, rows: Labelled, window: int) -> Findings | None:
    """Accuracy of reading the task off the hidden state at each position of windows, by block, and the difference
    between a window's last and first position, paired by row; none where rows are too short or too few."""
    if collected.windows_LNnH is None or collected.window_rows is None or not rows.can_probe:
        log.warning("no probes by position: too few rows, or none of %d tokens", window)
        return None
    kept_R, index_N = np.unique(collected.window_rows, return_inverse=True)
    clusters = [rows.clusters[row] for row in kept_R]
    task_N = [rows.labels["task"][row] for row in collected.window_rows]
    fold_N = rows.folds(FOLDS)[collected.window_rows]
    total = len(collected.windows_LNnH)
    blocks = []
    for block in sorted(set(np.linspace(0, total - 1, min(BLOCKS, total)).round().astype(int).tolist())):
        states_NnH = collected.windows_LNnH[block]
        read = [probe(states_NnH[:, place], task_N, fold_N, index_N.tolist()) for place in range(window)]
        gain = in_shares(difference([mean_sample(read[-1].correct - read[0].correct, clusters)]))
        positions = [_accuracy(one, clusters) for one in read]
        blocks.append({"block": block, "positions": positions, "last_over_first": gain})
    return {"window": window, "windows": len(index_N), "rows": len(kept_R), "blocks": blocks}


def cka_findings(one: Collected, other: Collected, frozen: Collected, rows: Labelled) -> Findings:
    """CKA at the last prompt token: hidden states after each block between two runs, and of each with the frozen
    backbone; the blocks of one by those of the other; the updates of the layers that both adapt."""
    groups_R = rows.folds(GROUPS)
    mine, theirs, base = one.states(), other.states(), frozen.states()
    pairs = {"runs": (mine, theirs), "run_frozen": (mine, base), "against_frozen": (theirs, base)}
    blocks = range(1, len(mine))  # the last prompt token is one token: its embedding does not vary
    by_block = [
        {"block": block} | {name: _cka(x_LRH[block], y_LRH[block], groups_R) for name, (x_LRH, y_LRH) in pairs.items()}
        for block in blocks
    ]
    matrix = [[(_cka(mine[a], theirs[b], None) or {"value": None})["value"] for b in blocks] for a in blocks]
    shared = [key for key in one.updates if key in other.updates]
    return {
        "blocks": by_block,
        "matrix": matrix,
        "updates": {key: _cka(one.updates[key], other.updates[key], groups_R[one.seen[key]]) for key in shared},
    }


def approximation_findings(model: nn.Module, moments: dict[str, np.ndarray], rank: int) -> Findings:
    """Relative error of modulators fitted to the experts of a MoE-LoRA on the inputs of the moments, by layer.

    Over any shared update, over one of this rank, and without modulators (the experts' mean); and the first two over
    experts of the same sizes that are unrelated (their outputs scrambled): compare like with like. `alone`: the routed
    experts; `with_always_on`: each with the always-on expert, as tokens see them.

    Raises:
        ValueError: the model has no MoE-LoRA layer.
    """
    layers: Findings = {}
    for name, delta in mixture_layers(model).items():
        key = name.partition(".lime_delta.")[0].removeprefix("base_model.model.")
        layers[key] = {}
        for form, always_on in (("alone", False), ("with_always_on", True)):
            experts_EOP = whitened_experts(delta, moments.get(key), always_on)
            fitted, unrelated_EOP = fit_modulators(experts_EOP), scrambled(experts_EOP)
            layers[key][form] = {
                "any_rank": fitted.error,
                "of_rank": error_of_rank(experts_EOP, rank),
                "mean_only": fitted.mean_error,
                "unrelated": fit_modulators(unrelated_EOP).error,
                "unrelated_of_rank": error_of_rank(unrelated_EOP, rank),
            }
    return {"rank": rank, "layers": layers}


def _cka(x_RH: np.ndarray, y_RH: np.ndarray, groups_R: np.ndarray | None) -> Findings | None:
    """With an interval where groups are given; none where a side does not vary."""
    try:
        value = linear_cka(x_RH, y_RH)
        if groups_R is None:
            return {"value": value}
        low, high = jackknife_interval(value, cka_replicates(x_RH, y_RH, groups_R))
    except NoVariation:
        return None
    return {"value": value, "low": low, "high": high}


def _accuracy(read: Probed, clusters: Sequence[str]) -> Findings:
    return in_shares(share([mean_sample(read.correct, clusters)])) | {"chance": read.chance}


def in_shares(estimate: Estimate) -> Findings:
    """An estimate in points as shares, for a record."""
    assert estimate.low is not None and estimate.high is not None  # noqa: PT018
    return {"value": estimate.value / 100, "low": estimate.low / 100, "high": estimate.high / 100}
