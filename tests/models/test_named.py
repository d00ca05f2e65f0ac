"""The models with a YAML file of their own, cut to one block and small widths: structure, special tokens, chat template
and processor are those of the family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lime
from lime.config.groups import CONF, choices
from lime.config.schema import EvalConfig, TrainConfig
from lime.data.collate import model_inputs
from lime.data.collators import make_collator
from lime.data.config import DataConfig
from lime.data.rows import MMTDataset, Row
from lime.jobs.compose import composed
from lime.jobs.evaluate import evaluate
from lime.jobs.train import train
from lime.models.architectures import ARCHITECTURES
from lime.models.loading import load_backbone
from lime.models.random_checkpoint import write_random_checkpoint
from lime.processors.config import EMBEDDED, ImageConfig, ModelConfig, VideoConfig
from tests.data import tiny
from tests.training.parts import metrics

TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}}
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "llava_onevision": {"text": TEXT, "vision": {**VISION, "image_size": 56}},
    "qwen2_vl": {"text": {**TEXT, **MROPE}, "vision": {"embed_dim": 32, "num_heads": 2, "mlp_ratio": 2}},
    "qwen2_5_vl": {
        "text": {**TEXT, **MROPE}, "vision": {"hidden_size": 32, "intermediate_size": 64, "num_heads": 2},
    },
    "idefics3": {"text": TEXT, "vision": {**VISION, "image_size": 128}},  # 4 tokens a tile
    "gemma3": {
        "text": {**TEXT, "head_dim": 16, "sliding_window": 8},
        "vision": {**VISION, "image_size": 112}, "model": {"mm_tokens_per_image": 4},
    },
    "internvl": {"text": TEXT, "vision": {**VISION, "image_size": 56}, "model": {"image_seq_length": 4}},
}  # fmt: skip
SEEN = {"qwen2_5vl_3b": "qwen2_5_vl", "smolvlm_256m": "idefics3", "gemma3_4b": "gemma3", "internvl3_1b": "internvl"}
"""A model of each family that model=hf takes."""
QUICK = [pytest.param(name, marks=() if name == "gemma3_4b" else pytest.mark.slow) for name in SEEN]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training rows of each modality, and a test row of each."""
    train_rows = [tiny.row("text", "", f"is {n} good?", "yes") for n in range(2)]
    train_rows += [tiny.row("image", f"media/{n}.png", "what?", "red") for n in "ab"]
    train_rows += [tiny.row("video", f"media/{n}.mp4", "what?", "A") for n in "ab"]
    tests = {
        "glue_test_sst2": [tiny.row("text", "", "is it good?", "positive")],
        "image_test_caltech101": [tiny.row("image", "media/b.png", "what?", "red")],
        "video_test_action_sequence": [tiny.row("video", "media/b.mp4", "what?", "B")],
    }
    return tiny.write_root(tmp_path_factory.mktemp("named"), {"train": train_rows, **tests})


def written(name: str, folder: Path, layers: int = 1) -> str:
    sizes = SIZES[ARCHITECTURES[name].family]
    return str(write_random_checkpoint(name, folder, layers=layers, sizes=sizes))


def test_every_architecture_has_a_file_of_its_name() -> None:
    assert set(choices("model")) == {*ARCHITECTURES, *EMBEDDED, "hf", "smol_llava"}
    for name, architecture in ARCHITECTURES.items():
        own = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
        assert (own["name"], own["path"]) == (name, architecture.checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_trains_evaluates_saves_and_loads(name: str, root: Path, tmp_path: Path) -> None:
    """Composed as from the command line: a step on rows of every modality, and the same answers from the adapter."""
    data = ["data=mmt47", f"data.root={root}", "data.num_workers=0", "data.validation_fraction=0", "cache_dir=null"]
    overrides = [f"model={name}", f"model.path={written(name, tmp_path / 'model')}", "peft.scope=both", *data]
    overrides += ["trainer=cpu", "trainer.max_steps=3", "trainer.preflight=false", "trainer.accumulate_grad_batches=1"]
    overrides += ["callbacks.progress=false", "callbacks.checkpoint=false", "evaluation.max_new_tokens=2"]
    overrides += ["trainer.log_every_n_steps=1"]
    train(composed(overrides, CONF, "train", TrainConfig), tmp_path / "run", overrides)
    losses = [float(row["loss/task"]) for row in metrics(tmp_path / "run")]
    assert len(losses) == 3
    assert all(0 < loss < 100 for loss in losses)
    again = [f"adapter={tmp_path / 'run' / 'adapter'}"]
    evaluate(composed(again, CONF, "eval", EvalConfig), tmp_path / "again", again)
    first, second = ((tmp_path / folder / "predictions.jsonl").read_text() for folder in ("run", "again"))
    assert first == second
    assert {json.loads(line)["split"].split("_")[0] for line in first.splitlines()} == {"glue", "image", "video"}


class Seen:
    """A small model of a family with an adapter that acts, and its rows."""

    def __init__(self, name: str, root: Path, folder: Path, **options: Any) -> None:
        path = written(name, folder, layers=2)
        config = ModelConfig(name, "hf", path, dtype="float32", video=VideoConfig(num_frames=2), **options)
        backbone = load_backbone(config)
        self.processor, self.frozen = backbone.processor, backbone.model
        self.collator = make_collator(DataConfig(root=str(root)), backbone.processor, backbone.family)
        self.rows = {row.source_type: row for row in MMTDataset(root).train}

    def adapted(self) -> torch.nn.Module:
        """With values that act, in windows of three tokens, in both towers."""
        model, _ = lime.apply(self.frozen, scope="both", n_gram=3, rank=2)
        draw = torch.Generator().manual_seed(3)
        for tensor in model.parameters():
            if tensor.requires_grad:
                tensor.data.normal_(std=0.3, generator=draw)
        return model.eval()

    def longer(self, row: Row) -> Row:
        return Row("train/99", "train", 99, row.source_type, row.media_path, row.question + " and what more?", "no")


@pytest.mark.parametrize("name", QUICK)
def test_a_fresh_adapter_changes_nothing(name: str, root: Path, tmp_path: Path) -> None:
    seen = Seen(name, root, tmp_path / "model")
    batches = [model_inputs(seen.collator.training_batch([row])) for row in seen.rows.values()]
    with torch.no_grad():
        frozen = [seen.frozen(**batch).logits for batch in batches]
        adapted, _ = lime.apply(seen.frozen.eval(), scope="both")
        for batch, logits in zip(batches, frozen, strict=True):
            assert torch.equal(adapted.eval()(**batch).logits, logits)


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("name", QUICK)
def test_neighbours_and_padding_change_nothing(name: str, kind: str, root: Path, tmp_path: Path) -> None:
    """A row beside a longer one, padded left or right, is as the row alone; its tokens from `generate` are those of
    whole passes."""
    seen = Seen(name, root, tmp_path / "model")
    model, row = seen.adapted(), seen.rows[kind]
    other = seen.longer(row)
    with torch.no_grad():
        for batched in (seen.collator.prompt_batch, seen.collator.training_batch):
            alone, both = batched([row]), batched([other, row])
            expected = model(**model_inputs(alone)).logits[0]
            found = model(**model_inputs(both)).logits[1][both["attention_mask"][1].bool()]
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        prompts = model_inputs(seen.collator.prompt_batch([other, row]))
        end = seen.collator.end_token_id
        made = model.generate(  # type: ignore[operator]
            **prompts, max_new_tokens=4, min_new_tokens=4, do_sample=False, eos_token_id=end
        )
        inputs = model_inputs(seen.collator.prompt_batch([row]))
        for token in made[1, prompts["input_ids"].shape[1] :]:
            logits = model(**inputs).logits[0, -1]
            logits[end] = -torch.inf  # as min_new_tokens has it
            assert int(logits.argmax()) == int(token)
            grown = {key: inputs[key] for key in inputs if inputs[key].shape == inputs["input_ids"].shape}
            for key, value in grown.items():
                new = {"input_ids": token, "attention_mask": torch.tensor(1)}.get(key, torch.tensor(0))
                inputs[key] = torch.cat([value, new.view(1, 1)], 1)


def tokens(seen: Seen, row: Row) -> int:
    """Placeholders of pictures in its prompt."""
    ids = seen.collator.prompt_batch([row])["input_ids"]
    special = getattr(seen.frozen.config, "image_token_id", None)
    return int((ids == special).sum())


@pytest.mark.slow
def test_tiles_of_a_picture(root: Path, tmp_path: Path) -> None:
    """As many as model.image.max_tiles says; a frame of a clip is never cut."""
    for name, few, per_tile in (("smolvlm_256m", 1, 4), ("internvl3_1b", 2, 4)):
        cut = Seen(name, root, tmp_path / name / "cut")
        whole = Seen(name, root, tmp_path / name / "whole", image=ImageConfig(max_tiles=1))
        image, video = cut.rows["image"], cut.rows["video"]
        assert tokens(whole, image) == per_tile
        assert tokens(cut, image) > per_tile
        assert tokens(cut, video) == tokens(whole, video) == 2 * per_tile
        if few > 1:
            some = Seen(name, root, tmp_path / name / "some", image=ImageConfig(max_tiles=few))
            assert tokens(some, image) <= (few + 1) * per_tile


@pytest.mark.slow
def test_gemma_sees_a_picture_in_both_directions(root: Path, tmp_path: Path) -> None:
    """Its token types reach the model, in batches with answers and without: the first token of a picture depends on its
    last one, and without the types it would not."""
    seen = Seen("gemma3_4b", root, tmp_path / "model")
    batch = model_inputs(seen.collator.training_batch([seen.rows["image"]]))
    marked = batch["token_type_ids"][0].bool()
    assert marked.sum() == 4
    assert torch.equal(marked, batch["input_ids"][0] == seen.frozen.config.image_token_id)
    with torch.no_grad():
        both = seen.frozen(**batch).logits[0]
        causal = seen.frozen(**{**batch, "token_type_ids": torch.zeros_like(batch["token_type_ids"])}).logits[0]
    first = int(marked.nonzero()[0])
    torch.testing.assert_close(both[:first], causal[:first])
    assert not torch.allclose(both[first], causal[first])


def test_gemma_takes_no_virtual_tokens(root: Path, tmp_path: Path) -> None:
    seen = Seen("gemma3_4b", root, tmp_path / "model")
    model, _ = lime.apply(seen.frozen, peft="prompt_tuning")
    with pytest.raises(ValueError, match="take another type than prompt_tuning"):
        model(**model_inputs(seen.collator.training_batch([seen.rows["image"]])))
