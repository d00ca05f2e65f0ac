"""Fetch, unpack, check and count the published data set: python scripts/data.py COMMAND --help

python scripts/data.py download FOLDER --accept-licences   rows, pictures and clips from the hub (resumable)
python scripts/data.py prepare FOLDER                      unpack archives, write manifest.json and media.sha256
python scripts/data.py verify FOLDER                       decode every file, name every fault; exit 1 if there is one
python scripts/data.py stats FOLDER [model=qwen2vl …]      rows and tokens per task and modality

Then: python train.py data=mmt47 data.root=FOLDER
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

FAULTS, WRONG = 1, 2  # exit codes


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run in (("download", _download), ("prepare", _prepare), ("verify", _verify), ("stats", _stats)):
        command = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        command.set_defaults(run=run)
        command.add_argument("folder", type=Path, help="the data root")
        if name == "download":
            command.add_argument("--accept-licences", action="store_true", help="accept the terms of every source")
            command.add_argument("--parts", nargs="+", default=["rows", "images", "videos"], help="what to fetch")
            command.add_argument("--revision", nargs="+", default=[], metavar="PART=COMMIT", help="pin a part")
        if name == "verify":
            command.add_argument("--workers", type=int, help="processes that decode (all cores)")
            command.add_argument("--show", type=int, default=50, help="faults to print (50)")
        if name in ("verify", "stats"):
            command.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE")
        if name == "stats":
            command.add_argument("overrides", nargs="*", help="options of train.py: model, data.max_length, …")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
    try:
        return options.run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG


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
    from lime.data.tools.output import table
    from lime.data.tools.prepare import prepare

    done = prepare(options.folder)
    print(f"{len(done.unpacked)} archives unpacked")
    splits, media = done.manifest["splits"], done.manifest["media"]
    kinds = ("text", "image", "video")
    print(table(["split", "rows", *kinds], [[n, s["rows"], *(s.get(k, 0) for k in kinds)] for n, s in splits.items()]))
    if done.manifest["absent"]:
        print(f"absent: {', '.join(done.manifest['absent'])}")
    print(f"{media['present']:,} of {media['named']:,} media files there, {media['bytes'] / 1e9:.2f} GB")
    return 0 if media["present"] == media["named"] else FAULTS


def _verify(options: argparse.Namespace) -> int:
    """Decode every file that a row names and name every fault; exit code 1 if there is one."""
    from lime.data.tools.output import dump
    from lime.data.tools.verify import verify

    report = verify(options.folder, options.workers, progress=sys.stderr.isatty())
    print(report.table())
    if report.absent:
        print(f"absent test splits: {', '.join(report.absent)}")
    if report.unknown:
        print(f"splits of no task: {', '.join(report.unknown)}")
    for fault in report.faults[: options.show]:
        print(fault)
    if len(report.faults) > options.show:
        print(f"… and {len(report.faults) - options.show:,} more (--show, --json)")
    if options.json:
        options.json.write_text(dump(report.to_dict()), encoding="utf-8")
    print(f"{report.media:,} files decoded, {len(report.faults):,} faults")
    return 0 if report.ok else FAULTS


def _stats(options: argparse.Namespace) -> int:
    """Rows and tokens per task and modality, as a model's processor counts them."""
    from lime.config.compose import composed
    from lime.config.schema import TrainConfig
    from lime.data.collate import Collator
    from lime.data.rows import MMTDataset
    from lime.data.tools.output import dump
    from lime.data.tools.stats import statistics
    from lime.models.processing import load_processor

    overrides = ["data=mmt47", f"data.root={options.folder}", *options.overrides]
    config = composed(overrides, ROOT / "conf", "train", TrainConfig)
    model = config.model
    processor = load_processor(
        model.location, model.family, revision=model.revision, image=model.image, video=model.video
    )
    collator = Collator(
        processor, model.family, options.folder, max_length=config.data.max_length,
        system_prompt=config.data.system_prompt,
    )  # fmt: skip
    found = statistics(MMTDataset(options.folder), collator)
    print(found.table())
    if options.json:
        options.json.write_text(dump({"model": model.name, **found.to_dict()}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
