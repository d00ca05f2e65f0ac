"""Fetch, unpack, check and count the published data set: python scripts/data.py COMMAND --help

python scripts/data.py download FOLDER --accept-licences   rows, pictures and clips from the hub (resumable)
python scripts/data.py prepare FOLDER                      unpack archives, write manifest.json and media.sha256
python scripts/data.py verify FOLDER                       decode every file, name every fault; exit 1 if there is one
python scripts/data.py stats FOLDER [model=qwen2vl …]      rows and tokens per task and modality
python scripts/data.py infer FOLDER                        write what was inferred of your own rows to FOLDER/tasks.yaml
python scripts/data.py unpack FOLDER                       pictures that your own tables hold, as files
python scripts/data.py tasks                               the names that evaluation.splits takes
python scripts/data.py sample FOLDER                       a small made root, as download leaves one, for trying these

Then: python train.py data=mmt47 data.root=FOLDER
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lime.config.scripts import errors_in_one_line, parse_mixed, run_script, script_parser, show_log  # noqa: E402
from lime.system.printing import print  # noqa: E402

FAULTS = 1  # exit code


@errors_in_one_line()
def main(arguments: list[str]) -> int:
    parser = script_parser(__doc__, overwrite=None)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = {
        "download": _download,
        "prepare": _prepare,
        "verify": _verify,
        "stats": _stats,
        "sample": _sample,
        "infer": _infer,
        "unpack": _unpack,
    }
    runs["tasks"] = _tasks
    for name, run in runs.items():
        command = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        command.set_defaults(run=run)
        if name == "tasks":
            command.add_argument("folder", type=Path, nargs="?", help="rows of your own, or a run (none: MMT-47)")
        else:
            command.add_argument("folder", type=Path, help="the data root")
        if name == "download":
            command.add_argument("--accept-licences", action="store_true", help="accept the terms of every source")
            command.add_argument("--parts", nargs="+", default=["rows", "images", "videos"], help="what to fetch")
            command.add_argument("--revision", nargs="+", default=[], metavar="PART=COMMIT", help="pin a part")
        if name == "verify":
            command.add_argument("--workers", type=int, help="processes that decode (all cores)")
            command.add_argument("--max-pixels", type=int, help="as data.max_pixels of train.py")
            command.add_argument("--max-seconds", type=float, help="as data.max_seconds of train.py")
            command.add_argument("--show", type=int, default=50, help="faults to print (50)")
        if name in ("verify", "stats"):
            command.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE")
            command.add_argument("--overwrite", action="store_true", help="replace FILE if something else is there")
        if name == "infer":
            command.add_argument("--overwrite", action="store_true", help="replace a tasks.yaml that leaves parts out")
        if name == "stats":
            command.add_argument("overrides", nargs="*", help="options of train.py: model, data.max_length, …")
        if name == "sample":
            command.add_argument("--images", type=int, default=60, help="pictures (60)")
            command.add_argument("--clips", type=int, default=6, help="clips (6)")
            command.add_argument("--texts", type=int, default=60, help="text rows (60)")
            command.add_argument("--side", type=int, default=96, help="pixels of a side (96)")
    options = parse_mixed(parser, arguments)
    show_log()
    return options.run(options)


def _download(options: argparse.Namespace) -> int:
    """Fetch rows, pictures and clips from the hub, after their licences are accepted."""
    from lime.data.tools.download import download

    revisions = dict(text.split("=", 1) for text in options.revision)
    commits = download(
        options.folder, accept_licences=options.accept_licences, parts=options.parts, revisions=revisions
    )
    for part, commit in commits.items():
        print(f"{part}: revision {commit}")
    print(f"next: python scripts/data.py prepare {options.folder}")
    return 0


def _prepare(options: argparse.Namespace) -> int:
    """Unpack what was fetched and write the manifest."""
    from lime.data.tasks import MODALITIES
    from lime.data.tools.prepare import prepare
    from lime.system.tables import plain_table

    done = prepare(options.folder)
    print(f"{len(done.unpacked)} archives unpacked")
    splits, media = done.manifest["splits"], done.manifest["media"]
    rows = [[name, split["rows"], *(split.get(kind, 0) for kind in MODALITIES)] for name, split in splits.items()]
    print(plain_table(["split", "rows", *MODALITIES], rows))
    if done.manifest["absent"]:
        print(f"absent: {', '.join(done.manifest['absent'])}")
    print(f"{media['present']:,} of {media['named']:,} media files there, {media['bytes'] / 1e9:.2f} GB")
    return 0 if media["present"] == media["named"] else FAULTS


def _verify(options: argparse.Namespace) -> int:
    """Decode every file that a row names and name every fault; exit code 1 if there is one."""
    from lime.data.files import BOUNDS, Bounds
    from lime.data.tools.verify import verify
    from lime.system.atomic import write_json

    _check_json(options)
    bounds = Bounds(options.max_pixels or BOUNDS.pixels, options.max_seconds or BOUNDS.seconds)
    report = verify(options.folder, options.workers, progress=sys.stderr.isatty(), bounds=bounds)
    print(report.table())
    if report.absent:
        print(f"absent test splits: {', '.join(report.absent)}")
    if report.unknown:
        print(f"splits of no task: {', '.join(report.unknown)}")
    for fault in report.faults[: options.show]:
        print(fault)
    if len(report.faults) > options.show:
        print(f"… and {len(report.faults) - options.show:,} more (--show, --json)")
    for note in report.notes[: options.show]:
        print(note)
    if options.json:
        write_json(options.json, {"schema": "lime-verify/1", **report.to_dict()}, indent=1)
    speed = report.speed
    print(
        f"{report.media:,} files decoded in {speed.seconds:.1f} s by {speed.processes} processes "
        f"({report.media / max(speed.seconds, 1e-9):,.0f} a second, {speed.share:.0%} of it in Pillow and FFmpeg)"
    )
    print(f"{len(report.faults):,} faults")
    return 0 if report.ok else FAULTS


def _stats(options: argparse.Namespace) -> int:
    """Rows and tokens per task and modality, as a model's processor counts them."""
    from lime.config.schema import TrainConfig
    from lime.data.collators import make_collator
    from lime.data.datasets import open_dataset
    from lime.data.own.folder import is_own
    from lime.data.tools.stats import statistics
    from lime.jobs.compose import composed
    from lime.models.loading import load_processor_alone
    from lime.system.atomic import write_json

    _check_json(options)
    group = "data=own" if is_own(options.folder) else "data=mmt47"
    overrides = [group, f"data.root={options.folder}", *options.overrides]
    config = composed(overrides, ROOT / "conf", "train", TrainConfig)
    family, processor = load_processor_alone(config.model)
    found = statistics(open_dataset(config.data), make_collator(config.data, processor, family))
    print(found.table())
    if options.json:
        content = {"schema": "lime-stats/1", "model": config.model.name, **found.to_dict()}
        write_json(options.json, content, indent=1)
    return 0


def _infer(options: argparse.Namespace) -> int:
    """Write what is inferred of a folder of your own rows to its tasks.yaml, to be corrected there."""
    import yaml

    from lime.data.own.folder import Folder
    from lime.data.own.records import RowProblem
    from lime.data.own.spec import SPEC
    from lime.system.atomic import write_text

    folder, path = Folder(options.folder), options.folder / SPEC
    if not folder.inferred:
        print(f"{path} says everything; nothing is left to be inferred")
        return 0
    if path.exists() and not options.overwrite:
        raise ValueError(f"{path} is there, and leaves out {', '.join(folder.inferred)}; --overwrite completes it")
    problems = [row for row in folder.rows if isinstance(row.fields, RowProblem)]
    if len(problems) == len(folder.rows):
        first = problems[0]
        raise ValueError(f"{first.table.path}: row {first.part}/{first.index}: {first.fields}; no row can be used yet")
    if problems:
        print(f"{len(problems):,} of {len(folder.rows):,} rows cannot be used; `verify` names them")
    text = yaml.safe_dump(folder.written, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
    write_text(path, text)
    print(f"{text}written to {path}; correct what is wrong there (docs/data.md)")
    print(f"next: python train.py data=own data.root={options.folder}")
    return 0


def _unpack(options: argparse.Namespace) -> int:
    """Write the pictures that your own tables hold to files, and the rows beside them."""
    from lime.data.own.spec import SPEC
    from lime.data.own.unpack import unpack

    count, text = unpack(options.folder)
    print(
        f"{count:,} pictures written; {options.folder / SPEC} has to say (written where there was none):\n{text}",
        end="",
    )
    print(f"next: python scripts/data.py verify {options.folder}")
    return 0


def _check_json(options: argparse.Namespace) -> None:
    """Say before the work that the file for its result is somebody else's."""
    from lime.system.ownership import check_output

    if options.json:
        check_output(options.json, overwrite=options.overwrite)


def _tasks(options: argparse.Namespace) -> int:
    """List categories, tasks and splits; evaluation.splits takes any of these names."""
    from lime.data.config import OWN, DataConfig
    from lime.data.datasets import open_dataset
    from lime.data.tasks import mmt47, table_of
    from lime.system.tables import plain_table

    if options.folder is None:
        table = mmt47()
    elif any((options.folder / name).is_file() for name in ("config.yaml", "results.json")):  # a run's
        table = table_of(options.folder)
    else:
        table = open_dataset(DataConfig(name=OWN, root=str(options.folder))).table
    last = "published rows" if table.is_mmt47 else "metric"
    rows: list[list[Any]] = []
    for category in table.categories:
        rows.append([category, "", ""])
        tasks = [(split, task) for split, task in table.tasks.items() if task.category == category]
        rows += [
            [f"  {task.name}", split, task.published_rows if table.is_mmt47 else task.metric] for split, task in tasks
        ]
    print(plain_table(["category, task", "split", last], rows))
    print(f"for instance: evaluation.splits={rows[0][0]}")
    print(f"          or: evaluation.splits=[{next(iter(table.tasks.values())).name},{category}]")
    return 0


def _sample(options: argparse.Namespace) -> int:
    """Make a small data root in the layout that download leaves, with rows of three tasks."""
    from lime.data.tools.sample import write_sample

    root = write_sample(
        options.folder, images=options.images, clips=options.clips, texts=options.texts, side=options.side
    )
    print(f"next: python scripts/data.py prepare {root}")
    return 0


if __name__ == "__main__":
    run_script(main)
