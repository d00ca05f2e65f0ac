"""The study: every setting on the frozen backbone, and finished runs as they are, on the same test rows."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import lime.tuner
from lime.analysis.decisions.figures import FIGURES, figures
from lime.analysis.decisions.measures import MEASURES, Tokens, measured
from lime.analysis.decisions.passes import Setting, adapted_pass, frozen_pass, settings_to_try
from lime.analysis.decisions.tables import Found, write_tables
from lime.analysis.resampling import jackknife_interval
from lime.analysis.study.findings import GROUPS, labelled
from lime.analysis.study.opening import Choice, SavedRun, saved_run
from lime.config.schema import TrainConfig
from lime.distributed.devices import device_of
from lime.experiments.figures.style import save_figure
from lime.inference.rows import TestRows
from lime.jobs.setup import media_errors_as_input_errors, open_data, prepare_process
from lime.models.loading import load_backbone
from lime.runs.adapter import check_backbone
from lime.system.ownership import check_output
from lime.tuner.model import lime_layers

log = logging.getLogger(__name__)

Layers = Iterable[tuple[str, Tensor, Tensor, tuple[Tensor, ...] | None]]
"""Name, probabilities (N, E), weights (N, E) and modulators of each layer."""


@dataclass(frozen=True)
class Wanted:
    """What to measure, and where to write it.

    Attributes:
        rows: test rows of each split.
        runs: folders of finished runs on the same backbone.
        out: tables go into its folder `tables`, figures into `figures`.
        name: beginning of their names.
    """

    rows: int
    runs: tuple[Path, ...]
    out: Path
    name: str


def study(config: TrainConfig, wanted: Wanted, overwrite: bool = False) -> list[Path]:
    """Measure, and write tables and figures.

    Returns:
        What was written.

    Raises:
        ValueError, OSError: a run on another backbone or without experts; a configuration whose method
            does not route by features; missing data; files that this program did not write.
    """
    started = time.perf_counter()
    paths = {name: wanted.out / "figures" / f"{wanted.name}_{name}.png" for name in FIGURES}
    tables = wanted.out / "tables" / f"{wanted.name}.md"
    for path in (*paths.values(), tables, tables.with_suffix(".csv")):
        check_output(path, overwrite=overwrite)
    choice = Choice(wanted.rows)
    saved = [saved_run(folder) for folder in wanted.runs]
    with media_errors_as_input_errors():
        prepare_process(config.seed, config.trainer.num_threads)
        frozen = _Study(config, choice, saved)
        found = [*frozen.of_settings(), *(frozen.of_run(run) for run in saved)]
    about = frozen.about | {"seconds": round(time.perf_counter() - started)}
    written = write_tables(tables, found, about)
    for name, figure in figures(found).items():
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, paths[name])
        written.append(paths[name])
    return written


class _Study:
    def __init__(self, config: TrainConfig, choice: Choice, runs: Sequence[SavedRun]):
        self.config = config
        self.base = config.settings()
        if not self.base.enabled or self.base.router != "zero" or self.base.spec.is_mixture:
            raise ValueError(
                f"method: {config.method} has no routing without parameters; expected LiME with lime.router=zero"
            )
        self.backbone = load_backbone(config.model)
        for run in runs:
            check_backbone(str(run.adapter), run.backbone, self.backbone)
        self.device = device_of(config.trainer.accelerator, config.trainer.devices)
        self.backbone.model.to(self.device)  # type: ignore[arg-type]
        data = dataclasses.replace(config.data, rows_per_split=choice.rows)
        self.data = open_data(dataclasses.replace(config, data=data), self.backbone, batch_size=1)
        self.model = lime.tuner.apply(self.backbone.model, self.base)[0]
        tests = TestRows(self.data, config.evaluation.splits, config.evaluation.metrics)
        self.chosen = tests.rows
        self.layers, self.tokens, rows = frozen_pass(self.model, self.data.collator, tests.rows)
        self.groups_R = labelled(rows, self.data.dataset.table).folds(GROUPS)
        self.about: dict[str, Any] = {
            "backbone": self.backbone.name,
            "dtype": str(next(self.backbone.model.parameters()).dtype).removeprefix("torch."),
            "rows": len(rows),
            "tasks": len(tests.splits),
            "tokens": len(self.tokens.row_N),
            "distinct tokens": int(self.tokens.identity_N.max()) + 1,
            "layers": len(self.layers),
            "data": self.data.dataset.fingerprint[:12],
        }

    def of_settings(self) -> list[Found]:
        """The frozen backbone under each setting that its layers are wide enough for."""
        narrowest = min(one.layer.out_features for one in self.layers.values())
        settings = [one for one in settings_to_try() if one.num_experts <= narrowest]
        found = []
        for setting in settings:
            as_many = setting.num_experts == self.base.num_experts
            layers = (
                (key, *one.routed(setting, self.base), _modulators(one.layer) if as_many else None)
                for key, one in self.layers.items()
            )
            found.append(_found("frozen", setting, layers, self.tokens, self.groups_R))
            log.info("frozen, %s: entropy %.3f", setting, found[-1].mean("entropy"))
        return found

    def of_run(self, run: SavedRun) -> Found:
        """A run's own routing, on the rows of the study."""
        model = lime.tuner.load(load_backbone(self.config.model).model, run.adapter)[0].to(self.device)
        if not lime.tuner.has_routing(model):
            raise ValueError(f"{run.name}: its adapter (method {run.method}) has no experts")
        routed, tokens, _ = adapted_pass(model, self.data.collator, self.chosen, run.name)
        layers = {layer.key: layer for layer in lime_layers(model)}
        parts = ((key, *pair, _modulators(layers[key])) for key, pair in routed.items())
        return _found(run.name, None, parts, tokens, self.groups_R)


def _modulators(layer: Any) -> tuple[Tensor, ...] | None:
    (name,) = layer.active_adapters
    if name not in layer.lime_experts:
        return None
    return tuple(one.detach().cpu() for one in layer._modulators(name))


def _found(source: str, setting: Setting | None, layers: Layers, tokens: Tokens, groups_R: np.ndarray) -> Found:
    """Of each layer; for the norms' defaults and the runs also the half width of a 95% interval over rows of the mean
    over layers."""
    groups = 0 if setting is not None and setting.changes() else int(groups_R.max()) + 1
    parts = [tokens.without(np.flatnonzero(groups_R == group).tolist()) for group in range(groups)]
    by_layer: dict[str, dict[str, float]] = {}
    replicates: list[list[dict[str, float]]] = []
    for key, p_NE, w_NE, modulators in layers:
        by_layer[key] = measured(p_NE, w_NE, tokens, modulators)
        replicates.append([measured(p_NE[keep], w_NE[keep], left, modulators) for left, keep in parts])
    found = Found(source, setting, by_layer, {})
    for name in MEASURES if groups else ():
        values_LG = np.array([[one[name] for one in of_layer] for of_layer in replicates])
        if not math.isnan(found.mean(name)) and not np.isnan(values_LG).all(axis=0).any():
            low, high = jackknife_interval(found.mean(name), np.nanmean(values_LG, axis=0))
            found.half_widths[name] = (high - low) / 2
    return found
