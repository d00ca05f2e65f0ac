"""Processors agree with transformers' own image path, frame by frame, and read every checkpoint layout."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lime.processors.config import ImageConfig, VideoConfig
from lime.processors.families import FrameProcessor, load_processor
from tests.data import tiny


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def processor(family):
    return load_processor(tiny.checkpoint(family), family)


def picture(height=40, width=56, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def prompt(processor, kind, text="what is shown?"):
    content = ([{"type": kind}] if kind != "text" else []) + [{"type": "text", "text": text}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def test_transformers_is_used_without_torchvision(processor):
    assert "torchvision" not in sys.modules
    assert isinstance(processor.video_processor, FrameProcessor)
    assert type(processor.image_processor).__name__.endswith("Pil")


def test_a_video_of_equal_frames_equals_the_image(family, processor):
    frame = picture(32, 32)
    video = processor.video_processor(np.stack([frame] * 4), return_tensors="np")["pixel_values_videos"]
    image = processor.image_processor([Image.fromarray(frame)], return_tensors="np")["pixel_values"]
    if family == "llava_onevision":
        assert video.shape == (1, 4, 3, 32, 32)
        np.testing.assert_allclose(video[0], np.broadcast_to(image[0][0], video[0].shape), atol=2e-6)
    else:
        np.testing.assert_allclose(video, np.concatenate([image, image]), atol=2e-6)


def test_frames_keep_their_order_and_size(family, processor):
    clip = np.stack([np.full((48, 48, 3), value, dtype=np.uint8) for value in (0, 60, 120, 180, 240)])
    out = processor.video_processor([clip], return_tensors="np")
    values = out["pixel_values_videos"]
    if family == "llava_onevision":
        means = values[0].mean(axis=(1, 2, 3))
    else:
        t, h, w = out["video_grid_thw"][0]
        assert (t, h * 4, w * 4) == (3, 32, 32), "the last frame is repeated, frames stay within 1024 pixels"
        by_frame = values.reshape(t, h * w, 3, 2, 16).transpose(0, 3, 1, 2, 4).reshape(6, -1)
        means = by_frame.mean(axis=1)
        assert means[5] == pytest.approx(means[4])
        means = means[:5]
        assert processor.video_processor.get_num_of_video_patches(5, 48, 48) == t * h * w
    assert list(means) == sorted(means)
    assert means[4] - means[0] > 3


@pytest.mark.parametrize("kind", ["text", "image", "video"])
def test_model_accepts_what_the_processor_makes(family, processor, kind):
    model = tiny.model(family, processor.tokenizer).eval()
    given = {
        "image": {"images": [Image.fromarray(picture())]},
        "video": {"videos": [np.stack([picture()] * 6)]},
    }
    inputs = processor(text=[prompt(processor, kind)], return_tensors="pt", **given.get(kind, {}))
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert out.shape[1] == inputs["input_ids"].shape[1] + 2


def test_nested_configuration_and_legacy_template_read_alike(family, processor, tmp_path):
    folder = tmp_path / "ckpt"
    shutil.copytree(tiny.checkpoint(family), folder)
    files = tiny.processor_files(family)
    nested = {**files["processor_config.json"], "image_processor": files["preprocessor_config.json"]}
    nested["video_processor"] = files["video_preprocessor_config.json"]
    (folder / "processor_config.json").write_text(json.dumps(nested))
    for name in ("preprocessor_config.json", "video_preprocessor_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": tiny.TEMPLATES[family]}))
    other = load_processor(folder, family)
    clip = np.stack([picture(seed=n) for n in range(4)])
    for a, b in ((processor, other), (processor, _saved(other, tmp_path / "saved", family))):
        text = prompt(a, "video")
        assert text == prompt(b, "video")
        one = a(text=[text], videos=[clip], return_tensors="np")
        two = b(text=[text], videos=[clip], return_tensors="np")
        assert set(one) == set(two)
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])


def _saved(processor, folder: Path, family: str):
    processor.save_pretrained(folder)
    return load_processor(folder, family)


def test_without_a_video_file_the_image_budget_serves_videos(tmp_path):
    folder = tmp_path / "ckpt"
    shutil.copytree(tiny.checkpoint("qwen2_vl"), folder)
    (folder / "video_preprocessor_config.json").unlink()
    legacy = tiny.processor_files("qwen2_vl")["preprocessor_config.json"]
    del legacy["size"]
    (folder / "preprocessor_config.json").write_text(json.dumps({**legacy, "min_pixels": 64, "max_pixels": 256}))
    grid = load_processor(folder, "qwen2_vl").video_processor(np.stack([picture(64, 64)] * 2))["video_grid_thw"]
    assert grid.tolist() == [[1, 4, 4]]


def test_budgets_override_the_checkpoint():
    q = load_processor(
        tiny.checkpoint("qwen2_vl"), "qwen2_vl", image=ImageConfig(max_pixels=256), video=VideoConfig(4, 256)
    )
    assert q.image_processor([Image.fromarray(picture(64, 64))])["image_grid_thw"].tolist() == [[1, 4, 4]]
    assert q.video_processor(np.stack([picture(64, 64)] * 2))["video_grid_thw"].tolist() == [[1, 4, 4]]
    assert q.video_processor.num_frames == 4
    one = load_processor(tiny.checkpoint("llava_onevision"), "llava_onevision", image=ImageConfig(max_tiles=1))
    assert one.image_processor.image_grid_pinpoints == [[32, 32]]
    with pytest.raises(ValueError, match="max_tiles: 0"):
        load_processor(tiny.checkpoint("llava_onevision"), "llava_onevision", image=ImageConfig(max_tiles=0))


@pytest.mark.parametrize(
    ("lacking", "message"),
    [("preprocessor_config.json", "preprocessor_config.json"), ("chat_template.jinja", "chat template")],
)
def test_an_incomplete_checkpoint_says_what_is_missing(tmp_path, lacking, message):
    folder = tmp_path / "ckpt"
    shutil.copytree(tiny.checkpoint("qwen2_vl"), folder)
    (folder / lacking).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        load_processor(folder, "qwen2_vl")
