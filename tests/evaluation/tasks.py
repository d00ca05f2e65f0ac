"""Tasks and rows to score."""

from __future__ import annotations

from dataclasses import dataclass

from lime.evaluation.scoring import SplitAnswers, SplitScore, score_split


@dataclass(frozen=True)
class SmallTask:
    split: str
    answer_type: str = "letter"
    metric: str = "accuracy"
    category: str = "first"
    modality: str = "text"

    @property
    def name(self) -> str:
        return self.split.split("_test_")[-1]


@dataclass(frozen=True)
class SmallRow:
    id: str
    split: str
    answer: str
    question: str = "which?"
    media_path: str = ""


STSB = SmallTask("glue_test_stsb", "number", "correlation", "second")
ARC = SmallTask("text_test_arc_easy")
QQP = SmallTask("glue_test_qqp", "label", category="second")
TASKS = {task.split: task for task in (ARC, QQP, STSB)}
ALLOWED = {ARC.split: ["A", "B", "C", "D"], QQP.split: ["duplicate", "not_duplicate"], STSB.split: None}


def score(answers: SplitAnswers) -> SplitScore:
    return score_split(answers)[0]
