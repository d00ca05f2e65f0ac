"""The 47 tasks of MMT-47, one row each.

Split names and published row counts are those of the authors' run logs; "published" counts the rows those
runs evaluated. The seven categories and their sizes are the paper's Table 2. The paper does not list the
members of the three video categories: here "action understanding" holds the seven tasks named after actions,
"object motion and spatial" those about objects, their motion and their state, "high-level reasoning" the five
others, which also reproduces the published mean of the object category.

`labels` is the closed answer set a task has by nature (letters of its options, yes and no, the label words of
GLUE). Where a data set knows better (a manifest with `allowed_answers`), the data set's word counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

CATEGORIES: dict[str, str] = {
    "vision_benchmark": "Vision benchmark",
    "image_classification": "Image classification",
    "commonsense_reasoning": "Commonsense reasoning",
    "glue": "GLUE",
    "high_level_reasoning": "High-level reasoning",
    "object_motion_spatial": "Object motion and spatial",
    "action_understanding": "Action understanding",
}

MODALITIES = ("text", "image", "video")
ANSWER_TYPES = ("letter", "yes_no", "number", "label", "text")


@dataclass(frozen=True)
class Task:
    """One task: its test split, what it asks for, and how it is scored."""

    split: str
    name: str
    modality: str
    category: str
    answer_type: str
    metric: str
    labels: tuple[str, ...] | None
    published_rows: int


_YES_NO = ("yes", "no")
_DIGITS = tuple("0123456789")

# name, answer type, closed label set, published rows
_VISION = [
    ("chartqa", "text", None, 1000),
    ("okvqa", "text", None, 841),
    ("scienceqa", "letter", None, 518),
    ("seed_bench", "letter", tuple("ABCD"), 500),
    ("text_recognition", "text", None, 1000),
    ("textvqa", "text", None, 1000),
    ("vizwiz_vqa", "text", None, 417),
    ("vqa_rad", "yes_no", _YES_NO, 200),
]
_CLASSIFICATION = [
    ("caltech101", "label", None, 500),
    ("eurosat", "label", None, 500),
    ("flowers102", "label", None, 500),
    ("pets", "label", None, 500),
    ("svhn", "number", _DIGITS, 500),
    ("camelyon", "yes_no", _YES_NO, 500),
]
_COMMONSENSE = [
    ("arc_challenge", "letter", tuple("ABCD"), 500),
    ("arc_easy", "letter", tuple("ABCD"), 500),
    ("boolq", "letter", tuple("AB"), 1000),
    ("hellaswag", "letter", tuple("ABCD"), 1000),
    ("openbookqa", "letter", tuple("ABCD"), 500),
    ("piqa", "letter", tuple("AB"), 1000),
    ("social_i_qa", "letter", tuple("ABC"), 1000),
    ("winogrande", "letter", tuple("AB"), 1000),
]
_GLUE = [
    ("sst2", "label", ("positive", "negative"), 872),
    ("qnli", "label", ("entailment", "not_entailment"), 1000),
    ("qqp", "label", ("duplicate", "not_duplicate"), 1000),
    ("cola", "label", ("acceptable", "unacceptable"), 1000),
    ("mrpc", "label", ("equivalent", "not_equivalent"), 408),
    ("stsb", "number", None, 1000),
]
_HIGH_LEVEL = (
    "scene_transition",
    "character_order",
    "egocentric_navigation",
    "episodic_reasoning",
    "counterfactual_inference",
)
_OBJECT = (
    "object_existence",
    "object_interaction",
    "object_shuffle",
    "moving_direction",
    "moving_count",
    "moving_attribute",
    "state_change",
)
_ACTION = (
    "action_sequence",
    "action_prediction",
    "action_antonym",
    "fine_grained_action",
    "unexpected_action",
    "action_localization",
    "action_count",
)
_TAMPERING = tuple("ABCDEF")


def _tasks() -> dict[str, Task]:
    table: list[Task] = []
    for prefix, modality, category, rows in (
        ("image", "image", "vision_benchmark", _VISION),
        ("image", "image", "image_classification", _CLASSIFICATION),
        ("text", "text", "commonsense_reasoning", _COMMONSENSE),
        ("glue", "text", "glue", _GLUE),
        ("video", "video", "high_level_reasoning", [(n, "letter", _TAMPERING, 300) for n in _HIGH_LEVEL]),
        ("video", "video", "object_motion_spatial", [(n, "letter", _TAMPERING, 300) for n in _OBJECT]),
        ("video", "video", "action_understanding", [(n, "letter", _TAMPERING, 300) for n in _ACTION]),
    ):
        for name, answer_type, labels, published in rows:
            metric = "correlation" if name == "stsb" else "accuracy"
            split = f"{prefix}_test_{name}"
            table.append(Task(split, name, modality, category, answer_type, metric, labels, published))
    return {task.split: task for task in table}


TASKS: dict[str, Task] = _tasks()
"""Every task by its test split name, in the order of the published table."""


def known_split_names() -> list[str]:
    """All that names test splits: split names, tasks' short names, categories."""
    return [*TASKS, *(task.name for task in TASKS.values()), *CATEGORIES]


def split_names(chosen: Sequence[str] | str | None) -> list[str] | None:
    """Test splits by their names, by tasks' short names (`sst2`) or by categories (`glue`), in the order of the table.

    None stays None (all). A name that is none of these is left as it is, behind the others.
    """
    if chosen is None:
        return None
    names = [chosen] if isinstance(chosen, str) else list(chosen)
    found = [split for split, task in TASKS.items() if {split, task.name, task.category} & set(names)]
    return found + [name for name in names if name not in known_split_names()]


def scored_by(metrics: Mapping[str, str] | None) -> dict[str, Task]:
    """The task table with other metrics, by names of splits, tasks or categories (`evaluation.metrics`)."""
    table = dict(TASKS)
    for name, metric in (metrics or {}).items():
        table |= {split: replace(table[split], metric=metric) for split in split_names(name) or ()}
    return table
