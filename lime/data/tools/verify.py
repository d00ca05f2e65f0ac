"""Every fault of a data root, each with its file, split and row: rows, texts, and media decoded to their end."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from lime.data.files import BOUNDS, MEDIA_KINDS, Bounds, one_line
from lime.data.layout import SplitFiles, find_splits, is_blank, is_utf8
from lime.data.own.folder import Folder, is_own
from lime.data.own.records import Fields, RowProblem
from lime.data.rows import COLUMNS, MANIFEST, TRAIN
from lime.data.tasks import MODALITIES, TaskTable, mmt47
from lime.data.tools.media_check import NOTE, Problem, check_chunk
from lime.data.tools.root_check import Expected
from lime.system import interrupts
from lime.system.tables import plain_table
from lime.system.threads import cores

ROW_KINDS = (
    "unreadable_split", "missing_column", "missing_value", "not_utf8", "unknown_source_type", "empty_question",
    "empty_answer", "no_media_path", "duplicate", "bad_manifest", "other_rows", "answer_not_allowed",
)  # fmt: skip
KINDS = (*ROW_KINDS, *MEDIA_KINDS)
"""Kinds of faults. `outside_root` is both a path that leaves the root and a link that does."""

Users = dict[tuple[str, str], list[tuple[str, int]]]
"""{(media path, kind): [(split, row)]}: each file with the rows that name it."""

_CHUNK = 128
_SERIAL = 200  # fewer files are checked faster than processes start


@dataclass(frozen=True)
class Fault:
    """One fault. `row` is the index in the split's file, None for a fault of the split; `file` the medium or table.

    `split` is "" for a fault of the root.
    """

    kind: str
    split: str
    row: int | None
    file: str
    problem: str

    def __str__(self) -> str:
        place = f"split {self.split}: " if self.row is None else f"row {self.split}/{self.row}: "
        return one_line(f"{self.kind}: {place if self.split else ''}{self.file}: {self.problem}")


@dataclass
class Speed:
    """Files decoded by `processes` in `seconds`, and the seconds that all of these spent in Pillow and FFmpeg."""

    processes: int = 0
    seconds: float = 0.0
    decoding: float = 0.0

    @property
    def share(self) -> float:
        """Of the processes' time, the part spent reading and decoding files; the rest is Python's."""
        return self.decoding / (self.processes * self.seconds) if self.seconds else 0.0


@dataclass
class Report:
    """What `verify` found: rows of each split, media files decoded, every fault, and how fast it was.

    `notes` are of files that can be used, such as a clip whose frames change their size.
    """

    root: str
    rows: dict[str, int] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    media: int = 0
    faults: list[Fault] = field(default_factory=list)
    notes: list[Fault] = field(default_factory=list)
    speed: Speed = field(default_factory=Speed, compare=False)

    @property
    def ok(self) -> bool:
        return not self.faults

    def counts(self) -> dict[str, dict[str, int]]:
        """{split: {kind: faults}}, only where there are any."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for fault in self.faults:
            counts[fault.split][fault.kind] += 1
        return {split: dict(kinds) for split, kinds in counts.items()}

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok, "counts": self.counts()}

    def table(self) -> str:
        """Rows, missing, damaged, duplicate and otherwise faulty rows of each task."""
        counts = self.counts()
        groups = {"missing": ("missing",), "damaged": tuple(k for k in MEDIA_KINDS if k != "missing"),
                  "duplicate": ("duplicate",)}  # fmt: skip
        grouped = {kind for kinds in groups.values() for kind in kinds}
        lines: list[list[Any]] = []
        for split, rows in self.rows.items():
            own = counts.get(split, {})
            sums = [sum(own.get(kind, 0) for kind in kinds) for kinds in groups.values()]
            lines.append([split, rows, *sums, sum(n for kind, n in own.items() if kind not in grouped)])
        if len(lines) > 1:
            lines.append(["all", *(sum(line[i] for line in lines) for i in range(1, len(lines[0])))])
        return plain_table(["split", "rows", *groups, "other"], lines)


def verify(
    root: str | Path,
    workers: int | None = None,
    progress: bool = False,
    bounds: Bounds = BOUNDS,
    table: TaskTable | None = None,
) -> Report:
    """Checks every row of every split, and decodes every file that a row names, each once.

    Args:
        root: the data root.
        workers: processes that decode; None for as many as this process may use cores.
        progress: show a bar.
        bounds: what one file may cost, as in training.
        table: the tasks, MMT-47's unless given.

    Raises FileNotFoundError where there is no split at all, or a shard of one is absent, ValueError where one is there
    twice. Everything else is a fault in the report.
    """
    root = Path(root)
    if table is None and is_own(root):
        return _verify_own(root, workers, progress, bounds)
    files = find_splits(root)
    tasks = (table or mmt47()).tasks
    names = [name for name in (TRAIN, *tasks) if name in files]
    report = Report(str(root), unknown=sorted(set(files) - set(names)), absent=[n for n in tasks if n not in files])
    users: Users = defaultdict(list)
    expected = Expected(root, tasks)
    if expected.problem:
        report.faults.append(Fault("bad_manifest", "", None, MANIFEST, expected.problem))
    for name in expected.absent(list(files)):
        report.faults.append(
            Fault("other_rows", name, None, MANIFEST, "the manifest names this split, it is not there")
        )
    for name in [*names, *report.unknown]:
        report.rows[name] = 0
        for index, media, kind in _check_rows(root, files[name], report, expected):
            users[media, kind].append((name, index))
    _decode(root, users, report, workers, progress, bounds)
    return report


def _decode(root: Path, users: Users, report: Report, workers: int | None, progress: bool, bounds: Bounds) -> None:
    """Decodes every file, and adds its fault or note to each row that names it."""
    report.media = len(users)
    for file, (kind, text) in _check_files(root, list(users), workers or cores(), progress, bounds, report.speed):
        target = report.faults if kind != NOTE else report.notes
        target += [Fault(kind, split, row, file[0], text) for split, row in users[file]]
    order = {name: i for i, name in enumerate(report.rows)}
    for faults in (report.faults, report.notes):
        faults.sort(key=lambda one: (order.get(one.split, -1), -1 if one.row is None else one.row))


def _verify_own(root: Path, workers: int | None, progress: bool, bounds: Bounds) -> Report:
    """The same for a folder of one's own. DataError where its files or its tasks.yaml cannot be read at all."""
    folder = Folder(root)
    report, users = Report(str(root)), Users()
    expected = Expected(root, folder.tasks.tasks)
    seen: dict[Any, int] = {}
    for row in folder.rows:
        fields, table = row.fields, row.table.path.relative_to(root).as_posix()
        report.rows[row.part] = report.rows.get(row.part, 0) + 1
        problem: tuple[str, str] | None = None
        if isinstance(fields, RowProblem):
            problem = (fields.kind, str(fields))
        elif (first := seen.setdefault((row.part, fields), row.index)) != row.index:
            problem = ("duplicate", f"the same row as {row.part}/{first}")
        elif row.task is not None and (never := expected.answer_problem(row.task, fields.answer)):
            problem = ("answer_not_allowed", never)
        if problem is not None:
            report.faults.append(Fault(problem[0], row.part, row.index, table, problem[1]))
        if isinstance(fields, Fields):
            for path in fields.media:
                users.setdefault((path, fields.source_type), []).append((row.part, row.index))
    report.absent = [split for split in folder.splits if split not in {row.task for row in folder.rows}]
    _decode(root, users, report, workers, progress, bounds)
    return report


def _check_rows(root: Path, files: SplitFiles, report: Report, expected: Expected) -> Iterator[tuple[int, str, str]]:
    """Adds the faults of a split's rows; (index, media path, kind) of every row with a medium to open."""
    table = str(files.place.relative_to(root))

    def add(kind: str, problem: str, row: int | None = None, file: str = table) -> None:
        report.faults.append(Fault(kind, files.split, row, file, problem))

    try:
        lacking = [name for name in COLUMNS if name not in files.column_names()]
        if lacking:
            return add("missing_column", f"no column {', '.join(lacking)}; expected {', '.join(COLUMNS)}")
        columns = files.raw_columns(COLUMNS)
    except (OSError, ValueError) as error:
        return add("unreadable_split", f"cannot be read ({str(error).splitlines()[0]})")
    report.rows[files.split] = len(columns["answer"])
    if differs := expected.rows_problem(files.split, len(columns["answer"]), columns):
        add("other_rows", differs)
    seen: dict[tuple[Any, ...], int] = {}
    for index, values in enumerate(zip(*(columns[name] for name in COLUMNS), strict=True)):
        first = seen.setdefault(tuple(v if isinstance(v, bytes | str | None) else repr(v) for v in values), index)
        media = _shown(values[1]) if values[1] else table
        if first != index:
            add("duplicate", f"the same row as {files.split}/{first}", index, media)
            continue
        problems, usable = _row_problems(values)
        if not problems and (never := expected.answer_problem(files.split, _shown(values[3]))):
            problems.append(("answer_not_allowed", never))
        for kind, text in problems:
            add(kind, text, index, media)
        if usable:
            yield index, media, values[0].decode()


def _row_problems(values: tuple[Any, ...]) -> tuple[list[Problem], bool]:
    """A row's problems, and whether it names a medium that can be opened."""
    try:  # most rows have none
        kind, media, question, answer = (value.decode() for value in values)
        seen = not is_blank(question) and not is_blank(answer)
        if kind == "text" and seen:
            return [], False
        if kind in MODALITIES and seen and not is_blank(media) and not _leaves(media):
            return [], True
    except (AttributeError, UnicodeDecodeError):  # a null, a number, or not UTF-8
        pass
    return _named_problems(values)


def _leaves(path: str) -> bool:
    return path.startswith("/") or (".." in path and ".." in path.split("/"))


def _named_problems(values: tuple[Any, ...]) -> tuple[list[Problem], bool]:
    problems: list[Problem] = []
    for name, value in zip(COLUMNS, values, strict=True):
        if value is None:
            problems += [("missing_value", f"its {name} is null")] if name != "media_path" else []
        elif not isinstance(value, bytes):
            problems.append(("missing_value", f"its {name} is {str(value)[:80]!r}; expected text"))
        elif not is_utf8(value):
            problems.append(("not_utf8", f"its {name} is not UTF-8 text ({value[:40]!r})"))
    source, media, question, answer = (value if isinstance(value, bytes) else None for value in values)
    for name, text in (("question", question), ("answer", answer)):
        if text is not None and is_blank(text.decode(errors="replace")):
            problems.append((f"empty_{name}", f"its {name} is {'blank' if text.strip() else 'empty'}"))
    kind = source.decode(errors="replace") if source is not None else None
    if source is not None and is_utf8(source) and kind not in MODALITIES:
        expected = ", ".join(MODALITIES)
        problems.append(("unknown_source_type", f"its source_type is {kind!r}; expected one of {expected}"))
    if kind not in ("image", "video"):
        return problems, False
    if media is None or is_blank(media.decode(errors="replace")):
        return [*problems, ("no_media_path", f"a row of kind {kind} without a media_path")], False
    path = _shown(media)
    if _leaves(path):
        outside = f"its media_path {path!r} leaves the data root; expected one relative to it"
        return [*problems, ("outside_root", outside)], False
    return problems, is_utf8(media)


def _shown(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _check_files(
    root: Path, work: list[tuple[str, str]], workers: int, progress: bool, bounds: Bounds, speed: Speed
) -> Iterator[tuple[tuple[str, str], Problem]]:
    """Every file with a problem or a note, and the problem."""
    chunks = [work[start : start + _CHUNK] for start in range(0, len(work), _CHUNK)]
    speed.processes = workers if len(work) >= _SERIAL else 1
    started = time.perf_counter()
    with ExitStack() as stack:
        done = stack.enter_context(tqdm(total=len(work), desc="media", unit="file", disable=not progress))
        run = stack.enter_context(interrupts.process_pool(workers)).map if speed.processes > 1 else map
        results = run(check_chunk, repeat(str(root)), chunks, repeat(bounds))
        for chunk, (problems, decoding) in zip(chunks, results, strict=True):
            done.update(len(chunk))
            speed.decoding += decoding
            speed.seconds = time.perf_counter() - started
            yield from ((file, problem) for file, problem in zip(chunk, problems, strict=True) if problem is not None)
