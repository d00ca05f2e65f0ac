"""model=hf on language models that take text alone: trained, evaluated and asked; pictures are refused."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

import lime
from lime.config.check import build
from lime.config.schema import EvalConfig
from lime.data.collate import TextCollator, model_inputs
from lime.data.collators import make_collator
from lime.data.config import DataConfig
from lime.data.rows import DataError, MMTDataset, Row
from lime.jobs.evaluate import evaluate
from lime.jobs.train import train
from lime.models.loading import load_backbone
from lime.processors.config import ImageConfig, ModelConfig
from tests.data import tiny
from tests.training.parts import config, data_root, metrics, values

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TYPES = {"llama": LlamaConfig, "qwen2": Qwen2Config}


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="lime-text-")


@functools.cache
def checkpoint(model_type: str, template: str | None = CHATML) -> Path:
    """A causal language model of two blocks and its tokenizer, nothing else; treat it as read-only."""
    folder = Path(_scratch().name) / f"{model_type}-{template is not None}"
    tokenizer = tiny.tokenizer("llava_onevision")
    tokenizer.chat_template = template
    torch.manual_seed(0)
    made = TYPES[model_type](
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(made).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@functools.cache
def text_root() -> Path:
    """Rows of text alone."""
    rows = {"train": [tiny.row("text", "", f"is {n} good?", "yes" if n % 2 else "no") for n in range(12)]}
    rows |= {"glue_test_sst2": [tiny.row("text", "", f"is {n} good?", "positive") for n in range(4)]}
    return tiny.write_root(Path(_scratch().name) / "data", rows)


def model(path: Path) -> dict[str, object]:
    return {"name": "hf", "family": "hf", "path": str(path), "dtype": "float32"}


def loaded(path: Path, **options: object) -> ModelConfig:
    return ModelConfig(name="hf", family="hf", path=str(path), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("model_type", ["llama", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_trains_evaluates_saves_and_is_asked(model_type: str, tmp_path: Path) -> None:
    """The same answers from the saved adapter; with a preflight of its rows, which are of one kind."""
    changes = {"model": model(checkpoint(model_type)), "data__root": str(text_root()), "trainer__preflight": True}
    train(config(**changes, trainer__max_steps=4), tmp_path / "run")
    losses = [float(row["loss/task"]) for row in metrics(tmp_path / "run")]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    settings = {"data": {**values()["data"], "root": str(text_root())}, "adapter": str(tmp_path / "run" / "adapter")}
    evaluate(build(EvalConfig, settings), tmp_path / "again")
    first, again = ((tmp_path / name / "predictions.jsonl").read_text() for name in ("run", "again"))
    assert first == again
    run = lime.open_run(tmp_path / "run")
    assert run.ask("is 0 good?") == json.loads(first.splitlines()[0])["raw"]
    (tmp_path / "cat.png").touch()
    with pytest.raises(ValueError, match=r"cat\.png: this model takes text alone"):
        run.ask("What is this?", image=tmp_path / "cat.png")


def test_a_fresh_adapter_changes_nothing() -> None:
    backbone = load_backbone(loaded(checkpoint("llama")))
    collator = make_collator(DataConfig(name="mmt47", root=str(text_root())), backbone.processor, backbone.family)
    assert isinstance(collator, TextCollator)
    inputs = model_inputs(collator.training_batch([row("is 1 good?"), row("is it?")]))
    frozen = backbone.model(**inputs).logits
    adapted, report = lime.apply(backbone.model)
    assert torch.equal(adapted(**inputs).logits, frozen)
    assert report.layers == 8


def test_padding_and_neighbours_change_nothing() -> None:
    """Left, as in a batch of prompts, or right, as in one with answers: as the row alone."""
    backbone = load_backbone(loaded(checkpoint("llama")))
    adapted, _ = lime.apply(backbone.model)
    for name, tensor in adapted.named_parameters():
        if tensor.requires_grad:
            torch.nn.init.normal_(tensor, std=0.2, generator=torch.Generator().manual_seed(len(name)))
    collator = make_collator(DataConfig(name="mmt47", root=str(text_root())), backbone.processor, backbone.family)
    short, long = row("why?"), row("is this a longer question than the other one?")
    for batched in (collator.prompt_batch, collator.training_batch):
        alone, both = batched([short]), batched([long, short])
        with torch.no_grad():
            one = adapted.eval()(**model_inputs(alone)).logits[0]
            two = adapted(**model_inputs(both)).logits[1]
        torch.testing.assert_close(two[both["attention_mask"][1].bool()], one, rtol=1e-4, atol=1e-5)


def test_without_a_chat_template_a_question_is_a_line(caplog: pytest.LogCaptureFixture) -> None:
    backbone = load_backbone(loaded(checkpoint("llama", None)))
    assert "has no chat template" in caplog.text
    collator = make_collator(DataConfig(name="mmt47", root=str(text_root())), backbone.processor, backbone.family)
    batch = collator.training_batch([row("is it good?")])
    decode = backbone.processor.tokenizer.decode
    assert decode(batch["input_ids"][0]) == "is it good?\nyes<|im_end|>"
    assert decode(batch["labels"][0][batch["labels"][0] != -100]) == "yes<|im_end|>"


def test_rows_with_pictures_are_refused_and_what_to_choose_is_said(tmp_path: Path) -> None:
    changes = {"model": model(checkpoint("llama")), "trainer__max_steps": 1, "data__root": str(data_root())}
    said = r"rows of train show pictures .* takes text alone.*data\.tasks=\[text\] evaluation\.splits=\[sst2\]"
    with pytest.raises(DataError, match=said):
        train(config(**changes), tmp_path / "run")
    changes |= {"data__tasks": ["text"]}
    with pytest.raises(DataError, match="rows of image_test_caltech101 show pictures"):
        train(config(**changes), tmp_path / "other")
    train(config(**changes, evaluation__splits=["sst2"]), tmp_path / "third")
    assert len((tmp_path / "third" / "predictions.jsonl").read_text().splitlines()) == 4


def test_a_row_with_a_picture_is_named() -> None:
    """Where no data module has looked at the rows: in `data.py stats`."""
    backbone = load_backbone(loaded(checkpoint("llama")))
    collator = make_collator(DataConfig(name="mmt47", root=str(data_root())), backbone.processor, backbone.family)
    image = next(row for row in MMTDataset(data_root()).train if row.source_type == "image")
    for count in (collator.parts, collator.prompt_length):
        with pytest.raises(DataError, match=f"row {image.id} shows a picture or a clip"):
            count(image)


def test_a_visual_budget_has_no_effect() -> None:
    with pytest.raises(ValueError, match=r"model\.image\.max_tiles: has no effect on a model that takes text alone"):
        load_backbone(loaded(checkpoint("llama"), image=ImageConfig(max_tiles=1)))


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma3_text", "mistral"])
def test_another_family_says_how_to_adapt_it(model_type: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError, match=rf"'{model_type}' model, which takes text alone, .*model=hf model\.path="):
        load_backbone(ModelConfig(name="x", family="llava_onevision", path=str(tmp_path)))


def row(question: str) -> Row:
    return Row("train/0", "train", 0, "text", "", question, "yes")
