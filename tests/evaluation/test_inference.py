"""Generation and likelihood against the plain way of computing them, on small models of the real classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import lime
from lime.data.collate import Collator, model_inputs
from lime.data.rows import MMTDataset, Row
from lime.data.tasks import TASKS
from lime.evaluation.config import EvaluationConfig
from lime.evaluation.predictions import CutAnswer, collect, read_predictions, score_predictions, write_predictions
from lime.evaluation.tables import summary_lines
from lime.inference.generation import answer_rows, generate_answers, truths_too_long
from lime.inference.journal import Journal
from lime.inference.likelihood import answer_likelihoods, score_likelihood
from lime.models.loading import load_backbone
from lime.processors.config import ModelConfig
from tests.data import tiny

ALLOWED = {
    "glue_test_sst2": ["positive", "not so very positive", "no"],
    "image_test_caltech101": ["red", "a big lamp", "x"],
    "video_test_action_sequence": list("ABCDEF"),
}
Parts = tuple[torch.nn.Module, Collator, list[Row]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = tiny.splits(train=3, test=3)
    for split in ALLOWED:
        for index, row in enumerate(content[split]):
            row["question"] += " and then what" * index
    return tiny.write_root(tmp_path_factory.mktemp("data"), content)


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def parts(request: pytest.FixtureRequest, root: Path) -> Parts:
    backbone = load_backbone(
        ModelConfig(name="small", family=request.param, path=str(tiny.checkpoint(request.param)), dtype="float32")
    )
    with torch.no_grad():  # larger weights: attention that looks at places, and clear winners
        for parameter in backbone.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
        special = sorted(backbone.processor.tokenizer.get_added_vocab().values())
        backbone.model.lm_head.weight[special] = 0.0  # a placeholder must not be generated
    collator = Collator(backbone.processor, request.param, root)
    rows = [row for split in ALLOWED for row in MMTDataset(root).tests[split]]
    return backbone.model, collator, rows


def plain_likelihood(model: torch.nn.Module, collator: Collator, row: Row, answer: str, mean: bool) -> float:
    """One full pass over one row with one answer: no padding, no cache."""
    inputs = model_inputs(collator.continuation_batch([(row, answer)]))
    labels = inputs.pop("labels")[0, 1:]
    with torch.no_grad():
        log_p = model(**inputs).logits[0, :-1].log_softmax(-1)
    chosen = log_p[labels != -100].gather(-1, labels[labels != -100][:, None])
    return float(chosen.mean() if mean else chosen.sum())


def plain_generation(model: torch.nn.Module, collator: Collator, row: Row, new: int) -> torch.Tensor:
    inputs = model_inputs(collator.prompt_batch([row]))
    with torch.no_grad():
        for _ in range(new):  # the whole text again for every token: no cache either
            token = model(**inputs).logits[:, -1:].argmax(-1)
            for name, value in (("input_ids", token), ("attention_mask", torch.ones_like(token))):
                inputs[name] = torch.cat([inputs[name], value], -1)
            if "mm_token_type_ids" in inputs:
                kinds = torch.zeros_like(token)
                inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], kinds], -1)
    return inputs["input_ids"][0, -new:]


@pytest.mark.parametrize("normalisation", ["mean", "sum"])
def test_likelihood_is_that_of_a_full_pass(parts: Parts, normalisation: str) -> None:
    model, collator, rows = parts
    scores = answer_likelihoods(model, collator, rows, ALLOWED, batch_size=2, normalisation=normalisation)
    for row, found in zip(rows, scores, strict=True):
        assert found is not None
        assert list(found) == ALLOWED[row.split]
        for answer, value in found.items():
            expected = plain_likelihood(model, collator, row, answer, normalisation == "mean")
            assert value == pytest.approx(expected, abs=2e-4), (row.id, answer)


def test_likelihood_of_an_adapted_model_is_that_of_a_full_pass(root: Path) -> None:
    """Routing windows that begin in the prompt go on through the cache into the answers."""
    for family in tiny.FAMILIES:
        backbone = load_backbone(
            ModelConfig(name="small", family=family, path=str(tiny.checkpoint(family)), dtype="float32")
        )
        torch.manual_seed(0)
        model, _ = lime.apply(backbone.model, num_experts=3, n_gram=3, window_anchor="first")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=0.3 if "lora" in name else 0.5)
        model.eval()
        collator = Collator(backbone.processor, family, root)
        rows = [MMTDataset(root).tests[split][index] for split in ALLOWED for index in (0, 2)]
        scores = answer_likelihoods(model, collator, rows, ALLOWED, batch_size=2)
        for row, found in zip(rows, scores, strict=True):
            assert found is not None
            for answer, value in found.items():
                expected = plain_likelihood(model, collator, row, answer, mean=True)
                assert value == pytest.approx(expected, abs=2e-4), (family, row.id, answer)


def test_batches_and_chunks_do_not_matter(parts: Parts) -> None:
    model, collator, rows = parts
    together = answer_likelihoods(model, collator, rows, ALLOWED, batch_size=64)
    alone = answer_likelihoods(model, collator, rows[::-1], ALLOWED, batch_size=1)[::-1]
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, abs=2e-4)


def test_the_best_answer_wins_and_ties_go_to_the_first(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    model, collator, rows = parts
    scores = answer_likelihoods(model, collator, rows, ALLOWED)
    best = score_likelihood(model, collator, rows, ALLOWED)
    assert best == [max(found, key=found.__getitem__) for found in scores if found is not None]
    monkeypatch.setattr(
        "lime.inference.likelihood.answer_likelihoods", lambda *args, **options: [{"b": -1.0, "a": -1.0}, None]
    )
    assert score_likelihood(model, collator, rows[:2], ALLOWED) == ["b", None]


def test_media_are_encoded_once_per_row(parts: Parts) -> None:
    model, collator, rows = parts
    videos = [row for row in rows if row.source_type == "video"]
    seen: list[int] = []
    name = "visual" if hasattr(model.model, "visual") else "vision_tower"
    inner: Any = getattr(model.model, name)
    handle = inner.register_forward_hook(lambda module, args, output: seen.append(1))
    try:
        score_likelihood(model, collator, videos, ALLOWED, batch_size=1)
    finally:
        handle.remove()
    assert len(seen) == len(videos)


def test_likelihood_needs_a_closed_set(parts: Parts) -> None:
    model, collator, rows = parts
    with pytest.raises(ValueError, match="no allowed answers for glue_test_sst2"):
        score_likelihood(model, collator, rows, {**ALLOWED, "glue_test_sst2": []})
    with pytest.raises(ValueError, match="expected mean or sum"):
        score_likelihood(model, collator, rows, ALLOWED, normalisation="max")


def test_generation_is_that_of_every_row_alone(parts: Parts) -> None:
    model, collator, rows = parts
    answers = generate_answers(model, collator, rows, batch_size=2, max_new_tokens=6)
    decode = collator.processor.tokenizer.decode
    for row, answer in zip(rows, answers, strict=True):
        tokens = plain_generation(model, collator, row, 6)
        assert collator.end_token_id not in tokens
        assert answer == decode(tokens, skip_special_tokens=True).strip()


def test_generation_ends_at_the_end_token(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    model, collator, rows = parts
    tokens = plain_generation(model, collator, rows[0], 4)
    first = int((tokens == tokens[2]).int().argmax())
    monkeypatch.setattr(collator, "end_token_id", int(tokens[2]))
    answer = generate_answers(model, collator, rows[:1], max_new_tokens=4)[0]
    assert answer == collator.processor.tokenizer.decode(tokens[: first + 1], skip_special_tokens=True).strip()


def test_generation_is_greedy_whatever_the_checkpoint_says(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    model, collator, rows = parts
    plain = generate_answers(model, collator, rows, max_new_tokens=6)
    for name, value in (("do_sample", True), ("repetition_penalty", 50.0), ("temperature", 5.0)):
        monkeypatch.setattr(model.generation_config, name, value)
    assert generate_answers(model, collator, rows, max_new_tokens=6) == plain


class Leaving(Collator):
    """Leaves out one row, as a collator told to drop damaged rows."""

    left_out = ""

    def prompt_batch(self, rows: Sequence[Row]) -> dict[str, Any]:
        kept = [row for row in rows if row.id != self.left_out]
        return super().prompt_batch(kept) if kept else {"rows": []}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_row_left_out_is_none_and_told(parts: Parts, batch_size: int, caplog: pytest.LogCaptureFixture) -> None:
    model, collator, rows = parts
    leaving = Leaving(collator.processor, collator.family, collator.root)
    leaving.left_out = rows[1].id
    complete = score_likelihood(model, collator, rows, ALLOWED)
    with caplog.at_level(logging.WARNING):
        answers = score_likelihood(model, leaving, rows, ALLOWED, batch_size=batch_size)
    assert answers == [None if index == 1 else answer for index, answer in enumerate(complete)]
    assert f"1 of {len(rows)} rows have no answer: {rows[1].id}" in caplog.text


def test_answers_by_configuration(parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    model, collator, rows = parts
    config = EvaluationConfig(mode="likelihood", batch_size=4, max_new_tokens=3)
    allowed = {**ALLOWED, "image_test_caltech101": None}
    done: list[int] = []
    with caplog.at_level(logging.INFO):
        answers = answer_rows(model, collator, rows, allowed, config, progress=done.append)
    generated = generate_answers(model, collator, rows, max_new_tokens=3)
    chosen = score_likelihood(model, collator, rows, ALLOWED)
    for row, answer, text, choice in zip(rows, answers, generated, chosen, strict=True):
        assert answer == (text if row.source_type == "image" else choice)
    assert "3 rows without a closed set of answers are generated: image_test_caltech101" in caplog.text
    assert sum(done) == len(rows)
    assert len(done) > 2
    assert answer_rows(model, collator, rows, allowed, config, mode="generate") == generated
    assert answer_rows(model, collator, [], allowed, config) == []


def test_training_state_is_left_as_it_was(parts: Parts) -> None:
    model, collator, rows = parts
    model.train()
    model.model.language_model.layers[0].eval()
    before = [module.training for module in model.modules()]
    try:
        answers = generate_answers(model, collator, rows[:1], max_new_tokens=2)
        assert [module.training for module in model.modules()] == before
    finally:
        model.eval()
    assert answers == generate_answers(model, collator, rows[:1], max_new_tokens=2)


def test_wrong_use_is_refused(parts: Parts) -> None:
    model, collator, rows = parts
    with pytest.raises(ValueError, match="not unique"):
        generate_answers(model, collator, [rows[0], rows[0]])
    with pytest.raises(ValueError, match="batch_size"):
        generate_answers(model, collator, rows, batch_size=0)


def test_cut_answers_and_truths_that_are_too_long_are_counted(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, collator, rows = parts
    second = int(plain_generation(model, collator, rows[0], 2)[-1])
    monkeypatch.setattr(collator, "end_token_id", second)
    expected = {row.id for row in rows if second not in plain_generation(model, collator, row, 3).tolist()}
    assert rows[0].id not in expected
    journal = Journal(tmp_path, "answers", "key")
    answers = generate_answers(model, collator, rows, max_new_tokens=3, journal=journal)
    journal.close()
    assert {row.id for row, answer in zip(rows, answers, strict=True) if isinstance(answer, CutAnswer)} == expected
    assert f"{len(expected)} of {len(rows)} generated answers had not ended" in caplog.text
    resumed = Journal(tmp_path, "answers", "key").answers
    assert {row for row, answer in resumed.items() if isinstance(answer, CutAnswer)} == expected
    config = EvaluationConfig(max_new_tokens=3)
    lengths = {row.id: len(collator.conversation.answers([row])[0]) - 1 for row in rows}
    too_long = truths_too_long(collator, rows, ALLOWED, config)
    assert too_long == {row for row, length in lengths.items() if length > 3}
    assert truths_too_long(collator, rows, {}, EvaluationConfig(max_new_tokens=3, mode="likelihood")) == too_long
    assert truths_too_long(collator, rows, ALLOWED, EvaluationConfig(mode="likelihood")) == set()
    path = write_predictions(tmp_path / "predictions.jsonl", collect(rows, answers, TASKS, ALLOWED, None, too_long))
    again = read_predictions(path)
    assert {record.id for record in again if record.cut} == expected
    assert {record.id for record in again if record.too_long} == too_long
    lines = "\n".join(summary_lines(score_predictions(again, TASKS, ALLOWED)))
    for split in ALLOWED:
        count = sum(row.startswith(split) for row in expected)
        assert (f"{TASKS[split].name}: {count} of 3 answers were cut at evaluation.max_new_tokens" in lines) is (
            count > 0
        )
    assert (" of 3 truths are longer than evaluation.max_new_tokens" in lines) is bool(too_long)
