"""The record of an analysis as JSON, and the same for readers as Markdown."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lime.analysis.study.names import short_names
from lime.data.tasks import TaskTable
from lime.experiments.figures.style import SUFFIXES
from lime.runs.environment import environment
from lime.system.atomic import write_json, write_text
from lime.system.ownership import MADE_BY
from lime.system.printing import markdown as md
from lime.system.tables import markdown_table

SCHEMA = "lime-analysis/2"
"""Name and version of the record's format; the version rises when a reader would have to change."""

ONE_EXPERT = 0.9
"""A layer in which one expert wins more than this share of the tokens is a mixture in name only."""

_CAPTIONS = {
    "routing": "Mean routing probability, entropy and number of experts by layer",
    "tasks": "Routing of each task, less that of all rows",
    "information": "Mutual information between a token's expert and its row's task, category and modality",
    "maps": "Modulated updates on two principal components, by the expert of largest weight",
    "windows": "Task read off each position of a window",
    "cka": "CKA of hidden states and of updates with the other run",
    "approximation": "Relative error of modulators fitted to the experts of a MoE-LoRA",
    "experts": "Task information against the number of experts",
}

WRITTEN = ("analysis.json", "analysis.md", *(f"{name}.{kind}" for name in _CAPTIONS for kind in SUFFIXES))
"""Every file that an analysis may write into its folder."""


def write_record(folder: Path, found: Mapping[str, Any], figures: Sequence[str], table: TaskTable) -> list[Path]:
    """Write ``analysis.json`` and ``analysis.md`` beside the figures; their paths."""
    content = {"schema": SCHEMA, **found, "environment": environment(0)}
    paths = [folder / "analysis.json", folder / "analysis.md"]
    write_json(paths[0], content)
    write_text(paths[1], f"{markdown(content, figures, table)}\n<!-- {MADE_BY} -->\n")
    return paths


def markdown(found: Mapping[str, Any], figures: Sequence[str], table: TaskTable) -> str:
    """Tables and figures of a record, section by section; sections that it lacks are left out."""
    parts = [_head(found)]
    writers: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "routing": functools.partial(_routing, table=table),
        "information": _information,
        "maps": _maps,
        "windows": _windows,
        "cka": _cka,
        "approximation": _approximation,
        "sweep": _sweep,
    }
    shown = {"routing": ("routing", "tasks"), "sweep": ("experts",)}
    for section, write in writers.items():
        if not found.get(section):
            continue
        parts.append(write(found[section]))
        images = [name for name in shown.get(section, (section,)) if name in figures]
        parts += [f"![{_CAPTIONS[name]}]({name}.png)" for name in images]
    return "\n\n".join(parts) + "\n"


def _head(found: Mapping[str, Any]) -> str:
    rows = found["rows"]
    lines = [
        f"# Analysis of {found['title']}",
        f"{rows['count']} test rows of {rows['tasks']} tasks; the prompt alone.",
    ]
    for name in ("run", "against"):
        if found.get(name) is not None:
            lines.append(f"{name}: " + ", ".join(f"{key} {value}" for key, value in found[name].items()))
    return "\n\n".join(lines)


def _routing(routing: Mapping[str, Any], table: TaskTable) -> str:
    layers = routing["layers"]
    rows = [
        [name, *(" ".join(f"{share:.2f}" for share in one[key]) for key in ("usage", "largest"))]
        + [f"{100 * one['busiest']:.0f}%", f"{one['entropy']:.3f}"]
        + [f"{one[key]:.2f}" for key in ("experts_per_token", "experts_realised")]
        for name, one in _named(layers)
    ]
    columns = ["entropy (nats)", "experts per token", "realised"]
    by_layer = _table(["layer", "mean probability", "tokens won", "busiest expert", *columns], rows)
    groups = [
        [kind, table.names.get(group, group), str(next(iter(of.values()))["rows"])]
        + [f"{_mean(of.values(), key):.3f}" for key in ("entropy", "experts_per_token", "busiest", "experts_realised")]
        for kind in ("modality", "category", "task")
        for group, of in routing["by"][kind].items()
    ]
    head = ["by", "group", "rows", "entropy (nats)", "experts per token", "busiest expert", "realised"]
    alone = [name for name, one in _named(layers) if one["busiest"] > ONE_EXPERT]
    text = f"Layers in which one expert wins over {100 * ONE_EXPERT:.0f}% of the tokens: {len(alone)} of {len(layers)}"
    text += f" ({', '.join(alone)})." if alone else "."
    return f"## Routing\n\n{by_layer}\n\n{text}\n\nMeans over layers:\n\n{_table(head, groups)}"


def _information(information: Mapping[str, Any]) -> str:
    layers = information["layers"]
    kinds = ("task", "category", "modality")
    rows = [
        [name, *(_estimate(one[kind], 4) for kind in kinds), f"{one['task']['bias']:.4f}", f"{one['task']['p']:.3f}"]
        for name, one in _named(layers)
    ]
    rows.append(["mean", *(_estimate(information["mean"][kind], 4) for kind in kinds), "", ""])
    table = _table(["layer", "task", "category", "modality", "taken off (task)", "p (task)"], rows)
    read = information["task_from_profile"]
    text = "" if read is None else f"\n\nTask read off the mean routing of all layers: {_accuracy(read)}."
    bound = information["mean"]["task"]["bound"]
    return f"## Information between expert and task (nats, at most {bound:.3f})\n\n{table}{text}"


def _maps(maps: Mapping[str, Any]) -> str:
    rows = [
        [name, str(one["points"]), *(f"{100 * share:.0f}%" for share in one["explained"])]
        + [f"{100 * one['value']:.1f}%", f"{100 * one['null']:.1f}%", f"{one['p']:.3f}"]
        for name, one in _named(maps)
    ]
    head = ["layer", "tokens", "first", "second", "between experts", "by chance", "p"]
    return f"## Modulated updates: shares of their variance\n\n{_table(head, rows)}"


def _windows(windows: Mapping[str, Any]) -> str:
    head = ["block", *(f"position {place + 1}" for place in range(windows["window"])), "last less first"]
    rows = [
        [str(one["block"]), *(_estimate(place, 3) for place in one["positions"]), _estimate(one["last_over_first"], 3)]
        for one in windows["blocks"]
    ]
    chance = windows["blocks"][0]["positions"][0]["chance"]
    text = f"{windows['windows']} windows of {windows['window']} tokens in {windows['rows']} rows; chance {chance:.3f}."
    return f"## Accuracy of reading the task off each position of a window\n\n{text}\n\n{_table(head, rows)}"


def _cka(cka: Mapping[str, Any]) -> str:
    pairs = {"runs": "the two runs", "run_frozen": "run and frozen", "against_frozen": "against and frozen"}
    rows = [[str(one["block"]), *(_estimate(one[pair], 3) for pair in pairs)] for one in cka["blocks"]]
    text = f"## CKA with the other run, last prompt token\n\n{_table(['block', *pairs.values()], rows)}"
    if cka["updates"]:
        lines = [[name, _estimate(one, 3)] for name, one in _named(cka["updates"])]
        text += f"\n\n{_table(['layer', 'updates'], lines)}"
    return text


def _approximation(approximation: Mapping[str, Any]) -> str:
    layers, rank = approximation["layers"], approximation["rank"]
    kinds = ("any_rank", "unrelated", "of_rank", "unrelated_of_rank", "mean_only")
    forms = ("alone", "with_always_on")
    mean = {form: {kind: _mean([one[form] for one in layers.values()], kind) for kind in kinds} for form in forms}
    rows = [
        [name, *(f"{one[form][kind]:.3f}" for form in forms for kind in kinds)]
        for name, one in [*_named(layers), ("mean", mean)]
    ]
    titles = ("any rank", "unrelated, any rank", f"rank {rank}", f"unrelated, rank {rank}", "no modulators")
    head = ["layer", *(f"{title} ({form})" for form in ("alone", "with always-on") for title in titles)]
    return f"## Relative error of modulators fitted to a MoE-LoRA\n\n{_table(head, rows)}"


def _sweep(sweep: Mapping[str, Any]) -> str:
    rows = [
        [one["series"], str(one["num_experts"]), str(len(one["runs"])), _estimate(one["information"], 4)]
        + [f"{one['information']['bound']:.3f}", _estimate(one["step"], 4), _estimate(one["task_from_profile"], 3)]
        + [_estimate(one["profile_step"], 3)]
        for one in sweep["points"]
    ]
    head = ["", "experts", "runs", "information (nats)", "at most", "over fewer experts", "task read off routing"]
    notes = "".join(f"\n\n{note}" for note in sweep["notes"])
    return f"## Task information against the number of experts\n\n{_table([*head, 'over fewer experts'], rows)}{notes}"


def _named(layers: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What was found of each layer, by its short name."""
    return list(zip(short_names(list(layers)), layers.values(), strict=True))


def _mean(parts: Collection[Mapping[str, Any]], key: str) -> float:
    return sum(float(one[key]) for one in parts) / len(parts)


def _estimate(one: Mapping[str, float] | None, digits: int) -> str:
    if one is None:
        return "–"
    if one["low"] is None:
        return f"{one['value']:.{digits}f} (no interval)"
    return f"{one['value']:.{digits}f} ({one['low']:.{digits}f} to {one['high']:.{digits}f})"


def _accuracy(one: Mapping[str, float]) -> str:
    return f"{_estimate(one, 3)}, chance {one['chance']:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table([md(cell) for cell in head], [[md(cell) for cell in row] for row in rows], range(len(head)))


def rows_read(splits: Sequence[str], count: int, per_task: int, table: TaskTable) -> dict[str, Any]:
    """What a record says of its rows."""
    tasks = [split for split in table.tasks if split in set(splits)]
    return {"count": count, "tasks": len(tasks), "at_most_per_task": per_task, "splits": tasks}
