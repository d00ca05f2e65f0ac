"""Tasks as a table: MMT-47's 47 rows in mmt47.yaml, and the reader of such tables.

`mmt47()` is the table of this package; `read_table` reads any other one of the same form. A new task is a row there.
A run on other tasks keeps its table in its folder, where `table_of` finds it; whatever works on scored rows takes a
table, and names no task itself.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from lime.evaluation.extraction import ANSWER_TYPES
from lime.system.atomic import remove, write_text

TABLE_FILE = "tasks.yaml"
"""The table in the folder of a run whose tasks are not MMT-47's."""
MODALITIES = ("text", "image", "video")
_KEYS = ("split", "name", "modality", "category", "answer_type", "metric", "answers", "published_rows")
_NEEDED = ("split", "modality", "category", "answer_type")
# Every scalar is text, so that `[yes, no]` and `[1, 2]` are answers; libyaml's parser where PyYAML was built with it.
_BASE: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


class _Loader(_BASE):
    """Refuses a key that is there twice, of which YAML's own loaders keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep=deep)


@dataclass(frozen=True)
class Task:
    """One task: its test split, what it asks for, and how it is scored.

    `labels` is the closed answer set it has by nature (letters of its options, yes and no, the label words of GLUE).
    Where a data set knows better (a manifest with `allowed_answers`), the data set's word counts.
    """

    split: str
    name: str
    modality: str
    category: str
    answer_type: str
    metric: str = "accuracy"
    labels: tuple[str, ...] | None = None
    published_rows: int = 0


@dataclass(frozen=True)
class TaskTable:
    """`tasks` by their test split names, in the order of result tables, and the titles of their `categories`."""

    tasks: dict[str, Task]
    categories: dict[str, str]

    @property
    def is_mmt47(self) -> bool:
        """Whether these are the tasks of MMT-47, so that numbers of the paper may stand beside theirs."""
        return self == mmt47()

    @property
    def groups(self) -> dict[str, str]:
        """The categories that get a line of their own beside the mean of all tasks; of a single one it is the same."""
        return self.categories if len(self.categories) > 1 else {}

    @property
    def names(self) -> dict[str, str]:
        """Names to show, by split and category."""
        return self.categories | {split: task.name for split, task in self.tasks.items()}

    def content(self) -> dict[str, Any]:
        """The table as plain values, in the form that `table_from` reads."""
        rows = []
        for task in self.tasks.values():
            row = asdict(task)
            answers, published_rows = row.pop("labels"), row.pop("published_rows")
            row |= {"answers": list(answers)} if answers else {}
            rows.append(row | ({"published_rows": str(published_rows)} if published_rows else {}))
        return {"categories": dict(self.categories), "tasks": rows}

    def known_names(self) -> list[str]:
        """All that names tasks: their test splits, short names, categories and modalities."""
        return [*self.tasks, *(task.name for task in self.tasks.values()), *self.categories, *MODALITIES]

    def splits(self, chosen: Sequence[str] | str | None) -> list[str] | None:
        """Test splits by their names, tasks' short names (`sst2`), categories (`glue`) or modalities (`video`), in the
        order of the table.

        None stays None (all). A name that is none of these is left as it is, behind the others.
        """
        if chosen is None:
            return None
        names = [chosen] if isinstance(chosen, str) else list(chosen)
        known = [
            split for split, task in self.tasks.items() if {split, task.name, task.category, task.modality} & set(names)
        ]
        return known + [name for name in names if name not in self.known_names()]

    def splits_of(self, chosen: Sequence[str] | str | None, present: Collection[str]) -> tuple[list[str], list[str]]:
        """Which `present` test splits are chosen, in their order, and which names ask for what is not there: splits and
        tasks that are absent, categories and modalities of which no split is present."""
        if chosen is None:
            return list(present), []
        taken: set[str] = set()
        lacking: list[str] = []
        for name in [chosen] if isinstance(chosen, str) else chosen:
            own = self.splits(name) or []
            taken.update(own)
            if not set(own) & set(present):
                lacking += [name] if len(own) > 1 else own
        return [split for split in present if split in taken], lacking

    def scored_by(self, metrics: Mapping[str, str] | None) -> dict[str, Task]:
        """The tasks with other metrics, by names of splits, tasks or categories (`evaluation.metrics`)."""
        tasks = dict(self.tasks)
        for name, metric in (metrics or {}).items():
            tasks |= {split: replace(tasks[split], metric=metric) for split in self.splits(name) or ()}
        return tasks


def load_yaml(path: Path) -> Any:
    """The content of a YAML file, every scalar as text. ValueError where it is not valid."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error


def read_table(path: Path) -> TaskTable:
    """The table in a YAML file of the form of mmt47.yaml. ValueError naming the file and the row that is wrong."""
    return table_from(load_yaml(path), str(path))


def table_from(content: Any, source: str) -> TaskTable:
    """The table in plain values, all of them texts. ValueError beginning with ``source`` and naming the row that is
    wrong."""
    categories = content.get("categories") if isinstance(content, dict) else None
    rows = content.get("tasks") if isinstance(content, dict) else None
    if not isinstance(categories, dict) or not isinstance(rows, list) or not rows:
        raise ValueError(f"{source}: expected categories (name: title) and tasks (a list with a row for each)")
    tasks: dict[str, Task] = {}
    for number, row in enumerate(rows, 1):
        problem = _problem(row, categories)
        if not problem and row["split"] in tasks:
            problem = "the split has a row already"
        if problem:
            raise ValueError(f"{source}: row {number} of tasks: {problem}")
        labels = tuple(row["answers"]) if "answers" in row else None
        optional = {"metric": row["metric"]} if "metric" in row else {}
        tasks[row["split"]] = Task(
            **{key: row[key] for key in _NEEDED},
            name=row.get("name", row["split"]),
            labels=labels,
            published_rows=int(row.get("published_rows", 0)),
            **optional,
        )
    return TaskTable(tasks, categories)


def joined(a: TaskTable, b: TaskTable) -> TaskTable:
    """The tasks of both tables. ValueError naming a split whose rows differ."""
    ours, theirs = ({row["split"]: row for row in table.content()["tasks"]} for table in (a, b))
    for split in ours.keys() & theirs.keys():
        for key in ours[split] | theirs[split]:
            if (one := ours[split].get(key)) != (other := theirs[split].get(key)):
                raise ValueError(
                    f"{split}: A's table of tasks says {key} {one!r}, B's {other!r}; evaluate one of them again on the "
                    "other's data (python eval.py adapter=RUN/adapter data.root=FOLDER)"
                )
    return TaskTable(a.tasks | b.tasks, a.categories | b.categories)


def table_of(path: Path) -> TaskTable:
    """The tasks of a run, by its folder or a file in it: those of its tasks.yaml, MMT-47's where there is none."""
    file = (path if path.is_dir() else path.parent) / TABLE_FILE
    return read_table(file) if file.is_file() else mmt47()


def keep_table(folder: Path, table: TaskTable) -> None:
    """Leave the table in a run's folder for `table_of`."""
    if table.is_mmt47:
        remove(folder / TABLE_FILE)
    else:
        text = yaml.safe_dump(table.content(), sort_keys=False, allow_unicode=True)
        write_text(folder / TABLE_FILE, text)


def _problem(row: Any, categories: dict[str, str]) -> str | None:
    """What is wrong with a row, or None."""
    if not isinstance(row, dict):
        return f"expected split: …, modality: …, got {row!r}"
    if unknown := sorted(set(row) - set(_KEYS)):
        return f"{unknown[0]}: no such key; expected {', '.join(_KEYS)}"
    if lacking := [key for key in _NEEDED if not row.get(key)]:
        return f"{lacking[0]} is lacking"
    for key, value in row.items():
        parts = value if key == "answers" else [value]
        if not (isinstance(parts, list) and parts and all(isinstance(part, str) for part in parts)):
            return f"{key}: expected {'a list of texts' if key == 'answers' else 'a text'}, got {value!r}"
    if reserved := [key for key in ("split", "name", "category") if row.get(key) == "macro"]:
        return f"{reserved[0]}: macro is the mean of all tasks; expected another name"
    choices = {"modality": MODALITIES, "category": tuple(categories), "answer_type": ANSWER_TYPES}
    for key, known in choices.items():
        if row[key] not in known:
            return f"{key}: expected one of {', '.join(known)}, got {row[key]!r}"
    if not row.get("published_rows", "0").isdecimal():
        return f"published_rows: expected a number, got {row['published_rows']!r}"
    return None


@functools.cache
def mmt47() -> TaskTable:
    """The 47 tasks of MMT-47."""
    return read_table(Path(__file__).with_name("mmt47.yaml"))


TASKS = mmt47().tasks
"""Every task of MMT-47 by its test split name, in the order of the published table."""
CATEGORIES = mmt47().categories
