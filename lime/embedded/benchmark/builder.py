"""Generating the embedded benchmark: a data root in the published layout, the same for the same settings.

root/MMT_47/       a `datasets` DatasetDict: train and 47 test splits, columns as published
root/media/<task>/ images (.jpg) and clips (.mp4) of that task
root/manifest.json what it was generated from, the closed answer set of each split, a checksum of the content
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from lime.data.fingerprint import EMBEDDED_DATA as NAME
from lime.data.media.encoding import write_image, write_video
from lime.data.rows import COLUMNS, MANIFEST, Rows
from lime.embedded.benchmark.items import MiniTask, Part
from lime.embedded.benchmark.tasks import MINI_TASKS
from lime.embedded.benchmark.tasks_video import FPS
from lime.system import interrupts
from lime.system.atomic import locked, remove, write_json
from lime.system.ownership import MARKER, kind_of, mark

log = logging.getLogger(__name__)

FORMAT = 1
FOLDER = "MMT_47"
_DOMAIN = 0x4D4D5434  # sets these random streams apart from those of any other user of the renderers
_TRIES = 2_000
_OWN = re.compile(
    rf"{re.escape(MARKER)}|{MANIFEST}|media/\w+/(train|test)_\d+\.(mp4|jpg)|{FOLDER}/(\w+/)?[\w.-]+\.(json|arrow|lock)"
)
"""Paths of the files in a generated root, with those that the `datasets` library may add."""

TableRow = dict[str, str]


@dataclass(frozen=True)
class Settings:
    """What determines the content."""

    seed: int = 0
    train_per_task: int = 140
    test_per_task: int = 60

    def __post_init__(self) -> None:
        for name in ("train_per_task", "test_per_task"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {self.seed}")


@dataclass(frozen=True)
class _Job:
    """One part of one task, generated in one process."""

    split: str
    part: Part
    rows: int
    seed: int
    root: Path


@dataclass(frozen=True)
class _Rows:
    rows: list[TableRow]
    checksum: str


def generate(
    root: str | Path, *, seed: int = 0, train_per_task: int = 140, test_per_task: int = 60, workers: int = 2
) -> None:
    """Write the embedded benchmark to `root`, whole or not at all.

    The content depends on `seed`, `train_per_task` and `test_per_task` only, not on `workers`. Within each
    task and part the answers are balanced: their counts differ by at most one.

    Raises:
        ValueError: a size below 1, or more rows than a text task has distinct items.
        OSError: `root` cannot be written, or holds something that was not generated here (FileExistsError).
    """
    settings = Settings(seed, train_per_task, test_per_task)
    root = Path(os.path.realpath(root))  # through a link: what it leads to is replaced, not the link
    with _told(root), locked(_beside(root, "lock")):
        _generate(root, settings, workers)


def ensure(
    root: str | Path, *, seed: int = 0, train_per_task: int = 140, test_per_task: int = 60, workers: int = 2
) -> Path:
    """`root`, generated first where it is absent, incomplete, or was generated from other settings.

    Safe to call from several processes at once. Raises as `generate`.
    """
    settings = Settings(seed, train_per_task, test_per_task)
    root = Path(root)
    with _told(root):
        if _complete(root, settings):  # also where nothing can be written beside it
            return root
        place = Path(os.path.realpath(root))
        with locked(_beside(place, "lock")):
            if not _complete(place, settings):
                _generate(place, settings, workers)
    return root


@contextmanager
def _told(root: Path) -> Iterator[None]:
    """What the machine refuses while `root` is written is told with the key that names it."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileExistsError) and error.errno is None:  # ours
            raise
        raise OSError(
            f"data.root: the embedded benchmark cannot be written to {root} ({error.filename or root}: "
            f"{error.strerror or error}); take a folder that can be written and has room: data.root=FOLDER"
        ) from error


def _beside(root: Path, suffix: str) -> Path:
    return root.parent / f".lime-{suffix}.{root.name}"


def _generate(root: Path, settings: Settings, workers: int) -> None:
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    _refuse_foreign(root)
    building, old = _beside(root, "building"), _beside(root, "replaced")
    for path in (building, old):  # of a process that was killed; the lock is ours
        if path.exists() and kind_of(path) is None and _foreign(path):
            raise FileExistsError(f"{path} is in the way of generating {root}, and is not of this program; remove it")
        remove(path)
    log.info("generating the embedded benchmark at %s: %s, %d processes", root, settings, workers)
    try:
        _build(building, settings, workers)
        if root.exists():
            root.rename(old)
        try:
            building.rename(root)
        except OSError:
            if old.exists():
                old.rename(root)
            raise
    finally:
        for path in (building, old):
            remove(path)
    log.info("generated %s", root)


def _refuse_foreign(root: Path) -> None:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    if foreign := _foreign(root):
        raise FileExistsError(
            f"{root} holds something that is not the embedded benchmark ({foreign}), and would be replaced: "
            "name another folder, or remove it first"
        )


def _foreign(root: Path) -> str:
    """What in a folder is not of the embedded benchmark: the first path, or its manifest; empty where all of it is."""
    if not root.is_dir() or _read_manifest(root).get("name") != NAME:
        return MANIFEST if root.is_dir() else "a file"
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink() or not (path.is_dir() or _OWN.fullmatch(name)):
            return name
    return ""


def _build(root: Path, settings: Settings, workers: int) -> None:
    sizes: dict[Part, int] = {"train": settings.train_per_task, "test": settings.test_per_task}
    # The slow ones (clips) first, so that no process is left with one at the end.
    tasks = sorted(MINI_TASKS.values(), key=lambda task: task.source_type != "video")
    jobs = [_Job(task.split, part, sizes[part], settings.seed, root) for task in tasks for part in sizes]
    for task in tasks:
        if task.source_type != "text":
            (root / "media" / task.name).mkdir(parents=True)
    root.mkdir(exist_ok=True)
    mark(root, NAME)
    with interrupts.process_pool(workers) if workers > 1 else nullcontext() as pool:
        results = (pool.map if pool is not None else map)(_make, jobs)
        shown = tqdm(results, "embedded benchmark", len(jobs), disable=None, unit="part")
        parts = {(job.split, job.part): result for job, result in zip(jobs, shown, strict=True)}

    names = list(MINI_TASKS)
    train = [row for split in names for row in parts[split, "train"].rows]
    order = np.random.default_rng([_DOMAIN, settings.seed]).permutation(len(train))
    tables = {"train": [train[i] for i in order]}
    tables |= {split: parts[split, "test"].rows for split in MINI_TASKS}
    _save(root / FOLDER, tables)
    total = hashlib.sha256(json.dumps(tables, sort_keys=True).encode())
    for split, part in sorted(parts):
        total.update(parts[split, part].checksum.encode())
    manifest = {
        "name": NAME,
        "format": FORMAT,
        **asdict(settings),
        "rows": {split: len(rows) for split, rows in tables.items()},
        "digests": {
            split: Rows(split, {name: [row[name] for row in rows] for name in COLUMNS}).digest()
            for split, rows in tables.items()
        },
        "media": sum(1 for rows in tables.values() for row in rows if row["media_path"]),
        "train_tasks": [MINI_TASKS[names[i // settings.train_per_task]].name for i in order],
        "allowed_answers": {split: list(task.answers) for split, task in MINI_TASKS.items()},
        "checksum": total.hexdigest(),
    }
    write_json(root / MANIFEST, manifest, indent=1)


def _make(job: _Job) -> _Rows:
    """All rows of one part of one task, in random order, with their media written."""
    task = MINI_TASKS[job.split]
    stream = [_DOMAIN, job.seed, zlib.crc32(job.split.encode()), ("train", "test").index(job.part)]
    rng = np.random.default_rng(stream)
    answers = [task.answers[i % len(task.answers)] for i in range(job.rows)]
    rows, seen, total = [], set[str](), hashlib.sha256()
    for index, place in enumerate(rng.permutation(job.rows)):
        answer = answers[place]
        item = _new_item(rng, task, answer, job.part, seen)
        media_path = ""
        if item.media is not None:
            video = item.media.ndim == 4
            media_path = f"media/{task.name}/{job.part}_{index:05d}.{'mp4' if video else 'jpg'}"
            if video:
                write_video(job.root / media_path, item.media, FPS)
            else:
                write_image(job.root / media_path, item.media)
            total.update((job.root / media_path).read_bytes())
        rows.append(dict(zip(COLUMNS, (task.source_type, media_path, item.question, answer), strict=True)))
    return _Rows(rows, total.hexdigest())


def _new_item(rng: np.random.Generator, task: MiniTask, answer: str, part: Part, seen: set[str]) -> Any:
    """An item not yet in `seen`; items with media never repeat."""
    for _ in range(_TRIES):
        item = task.draw(rng, answer, part)
        if item.media is not None:
            return item
        if item.question not in seen:
            seen.add(item.question)
            return item
    raise ValueError(
        f"{task.split}: no further {part} item with the answer {answer!r} after {len(seen)} distinct ones; "
        f"lower {part}_per_task"
    )


def _save(folder: Path, tables: dict[str, list[TableRow]]) -> None:
    import datasets

    features = datasets.Features({name: datasets.Value("string") for name in COLUMNS})
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        datasets.DatasetDict(
            {
                split: datasets.Dataset.from_list(rows, features=features, split=datasets.NamedSplit(split))
                for split, rows in tables.items()
            }
        ).save_to_disk(str(folder))
    finally:
        if shown:
            datasets.enable_progress_bars()


def _read_manifest(root: Path) -> dict[str, Any]:
    path = root / MANIFEST
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        log.warning("%s is not valid JSON (%s)", path, error)
        return {}
    return content if isinstance(content, dict) else {}


def _complete(root: Path, settings: Settings) -> bool:
    manifest = _read_manifest(root)
    wanted = {"name": NAME, "format": FORMAT, **asdict(settings)}
    if any(manifest.get(key) != value for key, value in wanted.items()):
        return False
    present = sum(1 for _ in root.glob("media/*/*.*"))
    if present != manifest["media"] or not (root / FOLDER / "dataset_dict.json").is_file():
        log.warning("%s lacks files (%d of %d media): generated again", root, present, manifest["media"])
        return False
    return True
