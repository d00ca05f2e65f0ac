"""model=hf: other architectures through their own processor, seen as transformers' processor sees them."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from lime.config.check import build
from lime.config.schema import EvalConfig
from lime.data.collate_processor import ProcessorCollator
from lime.data.rows import MMTDataset, Turn
from lime.jobs.evaluate import evaluate
from lime.jobs.train import train
from lime.models.loading import load_backbone
from lime.processors.config import ImageConfig, ModelConfig
from tests.data import tiny
from tests.models.checkpoints import OTHERS, checkpoint
from tests.training.parts import config, data_root, metrics, values


def other(path: Path, **options: object) -> ModelConfig:
    return ModelConfig(name="hf", family="hf", path=str(path), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("model_type", OTHERS)
def test_trains_evaluates_saves_and_reloads(model_type: str, tmp_path: Path) -> None:
    """On rows of all three modalities, in bfloat16 with float32 adapters."""
    model = {"name": "hf", "family": "hf", "path": str(checkpoint(model_type)), "dtype": "bfloat16"}
    changes = {"model": model, "trainer__max_steps": 5, "peft__scope": "both"}
    train(config(**changes), tmp_path / "run")
    assert len(metrics(tmp_path / "run")) == 5
    settings = {"data": values()["data"], "adapter": str(tmp_path / "run" / "adapter")}
    evaluate(build(EvalConfig, settings), tmp_path / "again")
    first, again = ((tmp_path / name / "predictions.jsonl").read_bytes() for name in ("run", "again"))
    assert first == again
    assert len(first.splitlines()) == 12


def test_rows_are_those_of_the_processor_itself() -> None:
    """Tokens, pictures and lengths, with the answer appended; a video is its frames."""
    backbone = load_backbone(other(checkpoint("smolvlm")))
    collator = ProcessorCollator(backbone.processor, backbone.family, data_root())
    rows = MMTDataset(data_root()).train
    image = next(row for row in rows if row.source_type == "image")
    video = next(row for row in rows if row.source_type == "video")
    batch = collator.training_batch([image])
    (picture,) = collator.media(image)
    expected = backbone.processor(
        text=[collator.conversation.prompt(image)], images=[picture], return_tensors="pt", add_special_tokens=False
    )
    length = expected["input_ids"].shape[1]
    assert torch.equal(batch["input_ids"][:, :length], expected["input_ids"])
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    answer = batch["labels"][batch["labels"] != -100]
    assert backbone.processor.tokenizer.decode(answer) == image.answer + collator.conversation.end_token
    assert [int(batch["attention_mask"].sum())] == collator.lengths([image])
    clip = collator.prompt_batch([video, video])
    assert clip["pixel_values"].shape[1] == 8 * (clip["pixel_values"].shape[1] // 8)
    assert int(clip["attention_mask"][0].sum()) == collator.prompt_length(video)
    with pytest.raises(ValueError, match="one modality"):
        collator.training_batch([image, video])


@pytest.mark.parametrize("train_on", ["last", "all"])
def test_several_pictures_and_turns(train_on: str) -> None:
    backbone = load_backbone(other(checkpoint("smolvlm")))
    collator = ProcessorCollator(backbone.processor, backbone.family, data_root(), train_on=train_on)
    image, second = [row for row in MMTDataset(data_root()).train if row.source_type == "image"][:2]
    turns = (
        Turn("user", (("image", ""), ("text", "What is this?"))),
        Turn("assistant", (("text", "A circle."),)),
        Turn("user", (("text", "And"), ("image", ""), ("text", "this?"))),
    )
    row = dataclasses.replace(image, id="two", more_media=(second.media_path,), turns=turns, answer="A square.")
    batch = collator.training_batch([row])
    assert batch["pixel_values"].shape[1] == 2 * collator.prompt_batch([image])["pixel_values"].shape[1]
    assert [int(batch["attention_mask"].sum())] == collator.lengths([row])
    end = collator.conversation.end_token
    said = backbone.processor.tokenizer.decode(batch["labels"][batch["labels"] != -100])
    assert said == ("A square." if train_on == "last" else f"A circle.{end}A square.") + end


def test_says_what_it_does_with_videos(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_backbone(other(checkpoint("smolvlm")))
    assert "videos are shown as 8 images" in caplog.text


def test_a_family_of_ours_is_loaded_as_what_it_is() -> None:
    assert load_backbone(other(tiny.checkpoint("qwen2_vl"))).family == "qwen2_vl"


def test_budgets_act_or_are_errors() -> None:
    one = load_backbone(other(checkpoint("smolvlm"), image=ImageConfig(max_tiles=1)))
    assert not one.processor.image_processor.do_image_splitting
    with pytest.raises(ValueError, match=r"model\.image\.min_pixels: has no effect"):
        load_backbone(other(checkpoint("smolvlm"), image=ImageConfig(min_pixels=5)))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", {"model_type": "bert"}, "no processor"),
        ("preprocessor_config.json", None, "fetch the whole checkpoint"),
        ("chat_template.jinja", None, "no chat template"),
    ],
)
def test_what_it_cannot_take_is_said(file: str, content: dict | None, said: str, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("smolvlm"), tmp_path / "copy")
    if content is None:
        (folder / file).unlink()
    else:
        known = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**known, **content}))
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        load_backbone(other(folder))
