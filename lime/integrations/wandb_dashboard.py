"""A workspace and a report on Weights & Biases for the runs of this project, built with W&B's own library.

Building them needs no login; saving does. Every key that a panel names is one that :mod:`lime.loggers.wandb`
logs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from lime.data.tasks import TaskTable, mmt47
from lime.evaluation.aggregation import MACRO
from lime.loggers.values import FROZEN, MAJORITY, USAGE, score_key
from lime.loggers.wandb import PREDICTIONS

METHOD = "method"
COLUMNS = 3  # panels in a row of the report, which is 24 units wide

GROUPED: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}

Panels = dict[str, list[Any]]


def panels(table: TaskTable) -> Panels:
    """The panels for runs on these tasks, by the name of their section, as far as it has any; made anew at each call,
    since a panel belongs to one page."""
    sections: Panels = {
        "Runs by method": [
            _bars("Score, all tasks (points)", score_key(MACRO)),
            wr.ScatterPlot(
                title="Exact match against trainable parameters",
                x=wr.SummaryMetric("parameters/trainable"),
                y=wr.SummaryMetric(score_key(MACRO)),
                log_x=True,
            ),
            _bars("Majority answer (points)", MAJORITY),
            _bars("Frozen backbone (points)", FROZEN),
            _lines("Task loss per answer token (nats)", "loss/task"),
            _lines("Validation loss per answer token (nats)", "val/loss"),
            _lines("Gradient norm", "grad_norm"),
        ],
        "Categories": [_bars(f"{label} (points)", score_key(name)) for name, label in table.groups.items()],
        "Routing": [
            _lines("Entropy of the routing weights (nats)", "routing/entropy"),
            _lines("Experts that carry weight, per token", "routing/experts_active"),
            _lines("Importance loss", "loss/importance"),
            _lines("KL loss", "loss/kl"),
            wr.MediaBrowser(title="Expert usage by layer", media_keys=[USAGE]),
        ],
        "Efficiency": [
            _bars("Trainable parameters", "parameters/trainable"),
            _bars("Training, seconds", "training/seconds"),
            _bars("Rows a second", "training/samples_per_second"),
            _bars("Tokens a second", "training/tokens_per_second"),
            _bars("Peak memory, MB", "training/peak_memory_mb"),
            _bars("Adapter, bytes", "adapter_bytes"),
        ],
        "Predictions": [wr.WeavePanelSummaryTable(table_name=PREDICTIONS)],
    }
    return {name: shown for name, shown in sections.items() if shown}


def workspace(entity: str, project: str, table: TaskTable | None = None) -> Any:
    """The workspace, a ``wandb_workspaces.workspaces.Workspace``; runs grouped by experiment, then by method."""
    return ws.Workspace(
        entity=entity,
        project=project,
        name="LiME",
        sections=[
            ws.Section(name=name, panels=shown, is_open=True) for name, shown in panels(table or mmt47()).items()
        ],
        runset_settings=ws.RunsetSettings(groupby=[ws.Metric("Group"), ws.Config(METHOD)]),
    )


def report(entity: str, project: str, experiment: str | None = None, table: TaskTable | None = None) -> Any:
    """The report, a ``wandb_workspaces.reports.v2.Report``, a draft until it is published in the browser.

    Args:
        experiment: only the runs of this sweep; None takes all runs of the project.
        table: the tasks of the runs; None for MMT-47's.
    """
    chosen = f"Metric('Group') = '{experiment}'" if experiment else ""
    blocks: list[Any] = [
        wr.TableOfContents(),
        wr.P(
            "Bars are means over the runs of a method, with the smallest and the largest. Greedy answers, scored "
            "without sight of the truth; intervals and paired differences are in the tables of the records."
        ),
    ]
    for name, shown in panels(table or mmt47()).items():
        for place, panel in enumerate(shown):
            panel.layout = wr.Layout(x=place % COLUMNS * 8, y=place // COLUMNS * 7, w=8, h=7)
        if len(shown) == 1:
            shown[0].layout = wr.Layout(x=0, y=0, w=24, h=14)
        runs = wr.Runset(
            entity=entity, project=project, name=experiment or "All runs", filters=chosen, groupby=[f"config.{METHOD}"]
        )
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[runs], panels=shown)]
    return wr.Report(
        entity=entity,
        project=project,
        title=f"LiME: {experiment}" if experiment else "LiME: all runs",
        description="Runs by method, categories, routing, efficiency and predictions.",
        blocks=blocks,
        width="fluid",
    )


def spec(value: Any) -> Any:
    """A workspace, report or panel as plain values for JSON: each part with its ``type`` and what is set in it."""
    if dataclasses.is_dataclass(value):
        parts = {field.name: spec(getattr(value, field.name)) for field in dataclasses.fields(value)}
        kept = {name: part for name, part in parts.items() if name[0] != "_" and part not in (None, "", [], {})}
        return {"type": type(value).__name__, **kept}
    if isinstance(value, Mapping):
        return {str(name): spec(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [spec(part) for part in value]
    return value


def _bars(title: str, key: str) -> Any:
    return wr.BarPlot(title=title, metrics=[wr.SummaryMetric(key)], groupby=wr.Config(METHOD), **GROUPED)


def _lines(title: str, key: str) -> Any:
    return wr.LinePlot(title=title, x="Step", y=[key], groupby=wr.Config(METHOD), legend_position="south", **GROUPED)
