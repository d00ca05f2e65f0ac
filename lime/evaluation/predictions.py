"""Predictions: one record per test row, kept as text so that scoring can run again without a model.

predictions.jsonl holds one JSON object per line, in the order of the rows:
id, split, question, media_path, raw, extracted, truth, correct and, where the frozen backbone was scored on
the same rows, frozen (its raw answer) and frozen_correct. `raw` is null where a row could not be given to the
model at all. `cut` is true where the answer had not ended at evaluation.max_new_tokens, `too_long` where the truth is
longer than that; lines of other rows leave them out.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lime.evaluation.aggregation import Evaluation, evaluate
from lime.evaluation.clusters import source_media
from lime.evaluation.extraction import extract
from lime.evaluation.metrics import metric_of
from lime.evaluation.scoring import SplitAnswers, Task, matches
from lime.system.atomic import replacing

log = logging.getLogger(__name__)

PREDICTIONS_FILE = "predictions.jsonl"
Allowed = Mapping[str, Sequence[str] | None]


class CutAnswer(str):
    """A generated answer that had not ended at evaluation.max_new_tokens."""


class Row(Protocol):
    """What a record keeps of a data row."""

    @property
    def id(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def question(self) -> str: ...
    @property
    def media_path(self) -> str: ...
    @property
    def answer(self) -> str: ...


@dataclass(frozen=True)
class Prediction:
    """One answered row. `truth` plays no part in `extracted`."""

    id: str
    split: str
    question: str
    media_path: str
    raw: str | None
    extracted: str | None
    truth: str
    correct: bool
    frozen: str | None = None
    frozen_correct: bool | None = None
    cut: bool = False
    too_long: bool = False


_FIELDS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "text": (str, ("id", "split", "question", "media_path", "truth")),
    "text or null": (str | None, ("raw", "extracted", "frozen")),
    "true or false": (bool, ("cut", "too_long")),
}
"""Fields of a line by what they hold."""


class PredictionError(ValueError):
    """A predictions file that cannot be read; the message names file, line and what was expected."""


def collect(
    rows: Sequence[Row],
    raw: Sequence[str | None],
    tasks: Mapping[str, Task],
    allowed: Allowed,
    frozen: Sequence[str | None] | None = None,
    too_long: Collection[str] = (),
) -> list[Prediction]:
    """Records for `rows` and the model's raw answers to them (and the frozen backbone's). A `CutAnswer` is counted.

    too_long: ids of rows whose truth is longer than an answer may be.

    tasks and allowed are by split name. Raises ValueError where lengths differ, KeyError for a split without
    a task.
    """
    if len(rows) != len(raw) or (frozen is not None and len(frozen) != len(rows)):
        raise ValueError(f"{len(rows)} rows, {len(raw)} answers, {len(frozen or raw)} frozen answers: expected as many")
    records = []
    for index, row in enumerate(rows):
        written = Prediction(
            id=row.id,
            split=row.split,
            question=row.question,
            media_path=row.media_path,
            raw=raw[index],
            extracted=None,
            truth=row.answer,
            correct=False,
            frozen=frozen[index] if frozen is not None else None,
            frozen_correct=False if frozen is not None else None,
            cut=isinstance(raw[index], CutAnswer),
            too_long=row.id in too_long,
        )
        records.append(_judged(written, tasks[row.split], allowed.get(row.split)))
    return records


def _judged(record: Prediction, task: Task, choices: Sequence[str] | None) -> Prediction:
    """The record with its answers extracted and compared."""
    kind = task.answer_type
    extracted = extract(record.raw, kind, choices)
    frozen_correct = record.frozen_correct
    if frozen_correct is not None:
        frozen_correct = matches(extract(record.frozen, kind, choices), record.truth, kind)
    correct = matches(extracted, record.truth, kind)
    return dataclasses.replace(record, extracted=extracted, correct=correct, frozen_correct=frozen_correct)


def rescore(predictions: Sequence[Prediction], tasks: Mapping[str, Task], allowed: Allowed) -> list[Prediction]:
    """The same records with `extracted` and `correct` worked out anew from `raw`, by the rules of this
    version.

    Raises PredictionError for records of a split that is none of `tasks`.
    """
    unknown = sorted({record.split for record in predictions} - tasks.keys())
    if unknown:
        raise PredictionError(f"predictions of unknown splits: {', '.join(unknown)}; expected those of the benchmark")
    records = [_judged(record, tasks[record.split], allowed.get(record.split)) for record in predictions]
    differing = sum(old.correct != new.correct for old, new in zip(predictions, records, strict=True))
    if differing:
        log.warning("%d of %d predictions are judged otherwise than when they were written", differing, len(records))
    return records


def score_predictions(
    predictions: Sequence[Prediction],
    tasks: Mapping[str, Task],
    allowed: Allowed,
    *,
    categories: Mapping[str, str] | None = None,
) -> Evaluation:
    """Scores of these records; splits in the order of `tasks`, those of `tasks` without a record listed as
    absent.

    Raises ValueError without records, for one id twice, or for a split that has no task.
    """
    by_split: dict[str, list[Prediction]] = {}
    seen: set[str] = set()
    for record in predictions:
        if record.split not in tasks:
            raise ValueError(f"prediction {record.id}: no task has a split {record.split!r}")
        if record.id in seen:
            raise ValueError(f"prediction {record.id} occurs twice; every row may be scored once")
        seen.add(record.id)
        by_split.setdefault(record.split, []).append(record)
    answers = []
    for split, task in tasks.items():
        if split not in by_split:
            continue
        records = by_split[split]
        choices = allowed.get(split)
        frozen, frozen_right = None, [record.frozen_correct for record in records if record.frozen_correct is not None]
        if len(frozen_right) == len(records):
            frozen = [record.frozen for record in records]
            if metric_of(task.metric).reads_answers:
                frozen = [extract(answer, task.answer_type, choices) for answer in frozen]
        answers.append(
            SplitAnswers(
                task=task,
                truths=[record.truth for record in records],
                extracted=[record.extracted for record in records],
                frozen=frozen,
                allowed=choices,
                media=[source_media(record.media_path) for record in records],
                cut=sum(record.cut for record in records),
                too_long=sum(record.too_long for record in records),
                right=[record.correct for record in records],
                frozen_right=None if frozen is None else frozen_right,
            )
        )
    absent = [split for split in tasks if split not in by_split]
    return evaluate(answers, categories=categories, absent=absent)


def write_predictions(path: str | Path, predictions: Sequence[Prediction]) -> Path:
    """Write predictions.jsonl (see the module's text)."""
    path = Path(path)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in predictions:
            values = dataclasses.asdict(record)
            if record.frozen_correct is None:
                del values["frozen"], values["frozen_correct"]
            for name in ("cut", "too_long"):
                if not values[name]:
                    del values[name]
            file.write(json.dumps(values, ensure_ascii=False) + "\n")
    return path


def read_predictions(path: str | Path) -> list[Prediction]:
    """Read predictions.jsonl, or that file of a run's folder.

    Raises PredictionError for a missing or empty file, or a line that is not such a record.
    """
    path = Path(path)
    if path.is_dir():
        path = path / PREDICTIONS_FILE
    if not path.is_file():
        raise PredictionError(f"{path}: no such file; expected the {PREDICTIONS_FILE} of a run, or its folder")
    fields = {field.name: field for field in dataclasses.fields(Prediction)}
    required = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    records = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                raise PredictionError(f"{path}, line {number}: not JSON ({error}); the file may be cut off") from error
            if not isinstance(values, dict) or any(name not in values for name in required):
                lacking = [name for name in required if not isinstance(values, dict) or name not in values]
                raise PredictionError(f"{path}, line {number}: expected an object with {', '.join(lacking)}")
            for expected, (kind, names) in _FIELDS.items():
                for name in names:
                    if not isinstance(values.get(name, fields[name].default), kind):
                        value = values.get(name)
                        raise PredictionError(f"{path}, line {number}: {name} is {value!r}, expected {expected}")
            records.append(Prediction(**{name: value for name, value in values.items() if name in fields}))
    if not records:
        raise PredictionError(f"{path}: holds no prediction")
    _check_counts(path, records)
    return records


def _check_counts(path: Path, records: Sequence[Prediction]) -> None:
    """Raise PredictionError where results.json beside the file counts more rows: it was cut off at a line's end."""
    results = path.with_name("results.json")
    if path.name != PREDICTIONS_FILE or not results.is_file():
        return
    try:
        scored = {str(one["split"]): int(one["n"]) for one in json.loads(results.read_text(encoding="utf-8"))["splits"]}
    except (OSError, ValueError, KeyError, TypeError):
        return  # whoever reads the results says what is wrong with them
    present = Counter(record.split for record in records)
    lost = {split: count - present[split] for split, count in scored.items() if present[split] < count}
    if lost:
        split = next(iter(lost))
        raise PredictionError(
            f"{path}: {sum(lost.values())} of {sum(scored.values())} rows that {results.name} beside it counts are "
            f"lacking (first: {lost[split]} of {split}); the file was cut off. Evaluate again, or move it to a folder "
            "of its own to score what is left"
        )
