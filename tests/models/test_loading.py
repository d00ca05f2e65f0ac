"""Loading: what comes back, and a clear error for everything that is not the expected checkpoint."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lime.models.loading import load_backbone
from lime.processors.config import ModelConfig, VideoConfig
from tests.data import tiny


def config(family: str, path, **options) -> ModelConfig:
    return ModelConfig(name="test", family=family, path=str(path), **options)


@pytest.fixture
def copy(tmp_path):
    def make(family: str):
        return shutil.copytree(tiny.checkpoint(family), tmp_path / family)

    return make


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_loads_model_and_processor(family):
    backbone = load_backbone(config(family, tiny.checkpoint(family), video=VideoConfig(num_frames=4)))
    assert backbone.family == family == backbone.model.config.model_type
    assert not backbone.model.training
    assert backbone.processor.video_processor.num_frames == 4
    assert backbone.fingerprint == load_backbone(config(family, tiny.checkpoint(family))).fingerprint


def test_dtype_and_attention_take_effect():
    options = {"dtype": "bfloat16", "attn_implementation": "eager"}
    model = load_backbone(config("llava_onevision", tiny.checkpoint("llava_onevision"), **options)).model
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"


def test_tiles_reach_the_model():
    path = tiny.checkpoint("llava_onevision")
    settings = config("llava_onevision", path)
    settings.image.max_tiles = 1
    assert load_backbone(settings).model.config.image_grid_pinpoints == [[32, 32]]


def test_the_fingerprint_follows_the_weights(copy):
    folder = copy("qwen2_vl")
    before = load_backbone(config("qwen2_vl", folder)).fingerprint
    weights = load_file(folder / "model.safetensors")
    key = next(iter(weights))
    save_file({**weights, key: weights[key] + 1}, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_backbone(config("qwen2_vl", folder)).fingerprint != before


def test_absent_folder_and_unreachable_hub_name_say_how_to_fetch(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="hf download"):
        load_backbone(config("qwen2_vl", tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_backbone(config("qwen2_vl", tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError, match=r"hf download someone/no-such-model --revision abc .*model\.path=FOLDER"
    ):
        load_backbone(config("qwen2_vl", "someone/no-such-model", revision="abc"))


def test_an_absent_embedded_checkpoint_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setattr(ModelConfig, "location", property(lambda self: str(tmp_path / "gone")))
    with pytest.raises(FileNotFoundError, match=r"scripts/pretrain_tiny\.py"):
        load_backbone(ModelConfig())


def test_another_family_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"holds a 'qwen2_vl' model, but model\.family is 'llava_onevision'; set model"
    ):
        load_backbone(config("llava_onevision", tiny.checkpoint("qwen2_vl")))


def test_an_unsupported_model_is_refused(copy):
    folder = copy("qwen2_vl")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "model_type": "vit"}))
    with pytest.raises(ValueError, match=r"'vit' model.*supported are llava_onevision, qwen2_vl"):
        load_backbone(config("qwen2_vl", folder))


def test_weights_that_are_not_all_there_are_refused(copy):
    folder = copy("llava_onevision")
    weights = load_file(folder / "model.safetensors")
    dropped = next(key for key in weights if "q_proj.weight" in key)
    save_file(
        {k: v for k, v in weights.items() if k != dropped},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ValueError, match=r"1 missing"):
        load_backbone(config("llava_onevision", folder))


def test_weights_of_another_shape_are_refused(copy):
    folder = copy("llava_onevision")
    weights = load_file(folder / "model.safetensors")
    key = next(key for key in weights if "q_proj.weight" in key)
    save_file({**weights, key: weights[key][:2].clone()}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.path"):
        load_backbone(config("llava_onevision", folder))


def test_a_checkpoint_without_weights_says_so(copy):
    folder = copy("qwen2_vl")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights"):
        load_backbone(config("qwen2_vl", folder))


def test_a_tokenizer_of_another_model_is_refused(copy):
    folder = copy("qwen2_vl")
    big = tiny.tokenizer("qwen2_vl")
    big.add_tokens([f"extra{n}" for n in range(5)])
    big.save_pretrained(folder)
    with pytest.raises(ValueError, match="different models"):
        load_backbone(config("qwen2_vl", folder))
