"""From run folders to HTML: one file, every picture inside, no script, and a policy that forbids any request."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from lime.evaluation.aggregation import MACRO
from lime.evaluation.authors_report import CAUTION, rows
from lime.evaluation.intervals import interval_text
from lime.evaluation.tables import summary_lines
from lime.experiments.collection import Sweep, read_sweep
from lime.experiments.figures.catalogue import draw
from lime.experiments.tables import make_table
from lime.report.charts import interval_bar, line_chart, usage_chart
from lime.report.gather import RunData, is_run, read_run_folder, runs_of
from lime.runs.record import RECORD_FILE
from lime.system.atomic import write_text
from lime.system.nested import differing, flattened
from lime.system.ownership import MADE_BY, check_output

REPORT_FILE = "report.html"


def write_report_page(
    folder: str | Path,
    target: str | Path | None = None,
    *,
    samples_per_task: int = 2,
    data_root: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the report of a run, or of a sweep's folder, and return its path (default: report.html in that folder).

    Raises ValueError for a folder without a run, or a run whose files cannot be read; FileExistsError where another
    file than a report is there, unless ``overwrite``.
    """
    folder = Path(folder)
    target = Path(target) if target is not None else folder / REPORT_FILE
    check_output(target, overwrite=overwrite)
    if is_run(folder):
        page = run_page(read_run_folder(folder, samples_per_task, data_root))
    else:
        runs = runs_of(folder) if folder.is_dir() else []
        if not runs:
            raise ValueError(f"{folder}: holds no run; expected the folder of a run, or of a sweep with runs below it")
        page = sweep_page(folder, [read_run_folder(run, 0) for run in runs])
    write_text(target, page)
    return target


def run_page(run: RunData) -> str:
    """The report of one run as HTML."""
    evaluation = run.evaluation
    return _render(
        "run.html.j2",
        title=f"Run {run.title}",
        run=run,
        tasks=run.table.tasks,
        categories=run.table.categories,
        charts=[line_chart(title, lines) for title, lines in run.curves.items()],
        heat_maps={title: usage_chart(f"Expert usage, {title}", usage) for title, usage in run.usage.items()},
        lines=summary_lines(evaluation) if evaluation is not None else [],
        authors=rows(run.authors, run.table.groups) if run.authors is not None else [],
        caution=CAUTION,
        settings=_settings(run),
        provenance=_provenance(run),
    )


def sweep_page(folder: Path, runs: list[RunData]) -> str:
    """The report of a sweep as HTML: its runs side by side, by the settings in which they differ."""
    keys = [key for key in differing([run.config for run in runs]) if key not in ("name", "data.root")]
    keys.sort(key=lambda key: key == "seed")  # the seed last
    runs = sorted(runs, key=lambda run: [_natural(_settings(run).get(key, "")) for key in keys])
    flat = [_settings(run) for run in runs]
    records = _records(folder)
    return _render(
        "sweep.html.j2",
        title=f"Sweep {folder.resolve().name}",
        folder=folder,
        categories={name: title for run in runs for name, title in run.table.groups.items()},
        runs=[
            {
                "run": run,
                "path": run.folder.relative_to(folder),
                "label": " · ".join(f"{key.rpartition('.')[2]} {values.get(key, '–')}" for key in keys)
                or str(run.folder.relative_to(folder)),
                "settings": [values.get(key, "–") for key in keys],
                "status": run.status.get("status", "unknown"),
                "error": (run.status.get("error") or {}).get("message", ""),
                "parameters": run.info.get("trainable_parameters"),
                "charts": [line_chart(title, lines) for title, lines in list(run.curves.items())[:1]],
                "heat": usage_chart("Expert usage", next(iter(run.usage.values()))) if run.usage else "",
            }
            for run, values in zip(runs, flat, strict=True)
        ],
        table=make_table(records) if records is not None else None,
        figure=_figure(records) if records is not None else "",
        macro=MACRO,
        provenance=_common([_provenance(run) for run in runs]),
        keys=keys,
        shared={key: value for key, value in flat[0].items() if key not in keys},
    )


def _settings(run: RunData) -> dict[str, str]:
    """Every dotted key of the run's configuration with its value as text."""
    return {key: "null" if value is None else str(value) for key, value in flattened(run.config).items()}


def _natural(text: str) -> tuple[float, str]:
    """For sorting: numbers by their value, before words."""
    try:
        return float(text), ""
    except ValueError:
        return float("inf"), text


def _records(folder: Path) -> Sweep | None:
    """The sweep by its records; None where its runs left none or none was evaluated."""
    if not any(folder.glob(f"*/{RECORD_FILE}")):
        return None
    sweep = read_sweep(folder)
    return sweep if any(record.items for point in sweep.points for record in point.records) else None


def _figure(sweep: Sweep) -> str:
    """The sweep's figure as a data URI; empty where no kind of figure fits it."""
    try:
        figure = draw(sweep)
    except ValueError:
        return ""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _common(provenances: Sequence[dict[str, str]]) -> dict[str, str]:
    """Where all runs come from; what they do not share is given for each, if there are few, else counted."""
    shown = {}
    for key in dict.fromkeys(key for one in provenances for key in one if key not in OF_ONE_RUN):
        values = list(dict.fromkeys(one[key] for one in provenances if key in one))
        shown[key] = "; ".join(values) if len(values) <= 3 else f"{len(values)} different ones"
    return shown


OF_ONE_RUN = ("Status", "Started", "Seconds", "Seed", "Trainable parameters", "Command line")


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("lime.report"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(interval_text=interval_text, bar=interval_bar)
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template(template).render(made=made, made_by=MADE_BY, **values)


def _provenance(run: RunData) -> dict[str, str]:
    """Where the results come from."""
    environment, status = run.environment, run.status
    commit, hardware = environment.get("commit") or {}, environment.get("hardware") or {}
    backbone = environment.get("backbone") or {}
    state = " with uncommitted changes" if commit.get("dirty") else ""
    shown = {
        "Status": status.get("status"),
        "Started": status.get("started"),
        "Seconds": f"{status['seconds']:.0f}" if status.get("seconds") is not None else None,
        "Commit": f"{commit['id']}{state}" if commit.get("id") else None,
        "Seed": environment.get("seed"),
        "Backbone": f"{backbone.get('name')} ({backbone.get('fingerprint')})" if backbone else None,
        "Data fingerprint": environment.get("data_fingerprint"),
        "Trainable parameters": f"{run.info['trainable_parameters']:,}" if "trainable_parameters" in run.info else None,
        "Command line": " ".join(environment.get("overrides") or []),
        "Python": environment.get("python"),
        "Versions": ", ".join(f"{name} {v}" for name, v in (environment.get("versions") or {}).items() if v),
        "Hardware": ", ".join(
            str(hardware[key]) for key in ("platform", "processor", "gpus") if hardware.get(key)
        ) + (f", {hardware['cores']} cores" if hardware.get("cores") else ""),
    }  # fmt: skip
    return {name: str(value) for name, value in shown.items() if value not in (None, "")}
