"""Which frames of a clip are read: evenly spread or by a rate, rounded or truncated."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lime.config.reuse import taken_from
from lime.data.collate import Collator, model_inputs
from lime.data.collators import make_collator
from lime.data.config import DataConfig, FrameCacheConfig
from lime.data.media import frame_indices, load_video, video_seconds
from lime.data.media.frame_cache import FrameCache
from lime.data.rows import MMTDataset
from lime.inference.generation import generate_answers
from lime.models.loading import load_backbone
from lime.processors.config import ModelConfig, VideoConfig
from lime.processors.families import load_processor
from tests.config.line import line
from tests.data import clips, tiny
from tests.models.checkpoints import checkpoint

CLIPS = "video_test_action_sequence"


def test_indices_are_rounded_or_truncated():
    assert frame_indices(24, 8).tolist() == frame_indices(24, 8, "rounded").tolist() == [0, 3, 7, 10, 13, 16, 20, 23]
    assert frame_indices(24, 8, "truncated").tolist() == [0, 3, 6, 9, 13, 16, 19, 23]
    for total in (1, 2, 7, 100, 1001):
        expected = np.linspace(0, total - 1, 8, dtype=int)
        assert frame_indices(total, 8, "truncated").tolist() == expected.tolist()


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_a_clip_is_read_by_either_rule(backend, tmp_path):
    if backend == "decord":
        pytest.importorskip("decord", reason="decord has wheels for x86-64 only")
    video = tiny.moving_square(24)
    path = tiny.write_video(tmp_path / "clip.mp4", video)
    read = {rule: load_video(path, 8, backend, rule=rule).astype(int) for rule in ("rounded", "truncated")}
    for rule, frames in read.items():
        near = [np.abs(video.astype(int) - frame).mean((1, 2, 3)).argmin() for frame in frames]
        assert near == frame_indices(24, 8, rule).tolist()
    assert np.abs(read["rounded"] - read["truncated"]).max() > 4


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "h264"])
def test_how_long_a_clip_lasts(tmp_path, suffix):
    path = tiny.write_video(tmp_path / f"clip.{suffix}", tiny.moving_square(20), fps=10)
    assert video_seconds(path) == pytest.approx(0.8 if suffix == "h264" else 2.0, abs=0.01)  # raw: at 25 a second
    slides = clips.encode(
        tmp_path / "slides.mkv", tiny.moving_square(4), times=[0, 1000, 5000, 6000], last=2000, b_frames=None
    )
    assert video_seconds(slides) == pytest.approx(8.0, abs=0.01)


@pytest.fixture
def rows(root):
    return list(MMTDataset(root).tests[CLIPS])  # of 10 to 12 frames, at 8 a second


def collator(root, cache=None, **video):
    processor = load_processor(tiny.checkpoint("qwen2_vl"), "qwen2_vl", video=VideoConfig(**video))
    return Collator(processor, "qwen2_vl", root, frame_cache=cache)


def test_a_rate_gives_longer_clips_more_frames_up_to_the_most(root, rows):
    seconds = [video_seconds(root / row.media_path) for row in rows]
    assert sorted(set(np.round(seconds, 3))) == [1.25, 1.375, 1.5]
    by_rate = collator(root, fps=5.0)
    batch = by_rate.training_batch(rows)
    counts = [min(round(5 * length), 8) for length in seconds]
    assert set(counts) == {6, 7, 8}
    assert batch["video_grid_thw"][:, 0].tolist() == [-(-count // 2) for count in counts]
    assert by_rate.lengths(rows) == batch["attention_mask"].sum(1).tolist(), "known from the headers"
    assert collator(root, fps=5.0).lengths(rows) == by_rate.lengths(rows)
    assert "second_per_grid_ts" not in batch
    most = collator(root, fps=5.0, num_frames=2).training_batch(rows)
    uniform = collator(root, num_frames=2).training_batch(rows)
    assert all(torch.equal(most[key], uniform[key]) for key in model_inputs(uniform))
    least = collator(root, fps=0.1)
    assert least.training_batch(rows)["video_grid_thw"][:, 0].tolist() == [1] * len(rows)


def test_the_frame_cache_tells_samplings_apart(root, rows, tmp_path):
    cache = FrameCache(tmp_path / "frames", 64)
    samplings = [{}, {"index_rule": "truncated"}, {"fps": 5.0}, {"fps": 2.0}]
    plain = [collator(root, **video).training_batch(rows) for video in samplings]
    for _ in range(2):  # decoded and kept, then found
        for video, expected in zip(samplings, plain, strict=True):
            kept = collator(root, cache, **video).training_batch(rows)
            assert all(torch.equal(kept[key], expected[key]) for key in model_inputs(expected))
    contents = len({(root / row.media_path).read_bytes() for row in rows})
    assert len(list(cache.folder.glob("??/*"))) == 4 * contents
    assert not torch.equal(plain[0]["pixel_values_videos"], plain[1]["pixel_values_videos"])


def test_qwen25_is_told_the_seconds_of_a_step_and_answers(root, rows, tmp_path):
    """Its positions count time; without a rate they count steps, as before."""
    where = {"name": "hf", "family": "hf", "path": str(checkpoint("qwen2_5_vl")), "dtype": "float32"}
    data = DataConfig(name="mmt47", root=str(root), frame_cache=FrameCacheConfig(dir=str(tmp_path / "frames")))
    backbone = load_backbone(ModelConfig(**where, video=VideoConfig(fps=5.0)))
    for _ in range(2):  # decoded, then from the cache
        timed = make_collator(data, backbone.processor, backbone.family)
        batch = timed.training_batch(rows)
        seconds = [video_seconds(root / row.media_path) for row in rows]
        expected = [2 * length / min(round(5 * length), 8) for length in seconds]
        assert batch["second_per_grid_ts"].tolist() == pytest.approx(expected)
    inputs = {key: value for key, value in model_inputs(batch).items() if key != "labels"}
    with torch.no_grad():
        untimed = {key: value for key, value in inputs.items() if key != "second_per_grid_ts"}
        double = inputs | {"second_per_grid_ts": 4 * inputs["second_per_grid_ts"]}
        told, steps, slower = (backbone.model(**one).logits for one in (inputs, untimed, double))
    assert not torch.allclose(told, slower)
    assert told.shape == steps.shape
    assert all(generate_answers(backbone.model, timed, rows, batch_size=2, max_new_tokens=2))
    plain = load_backbone(ModelConfig(**where))
    assert "second_per_grid_ts" not in make_collator(data, plain.processor, plain.family).training_batch(rows)


def test_options_are_checked_by_name():
    said = line("model.video.fps=2", "model.video.index_rule=floor").said
    assert "model.video.fps: has no effect on family llava_onevision; leave it null" in said
    assert "model.video.index_rule: expected one of rounded, truncated, got 'floor'" in said
    assert (
        "model.video.fps: expected a number above 0 or null, got 0.0"
        in line("model=tiny_qwen2vl", "model.video.fps=0").said
    )
    config = line("model=tiny_qwen2vl", "model.video.fps=0.5", "model.video.index_rule=truncated").runs[0][0]
    assert (config.model.video.fps, config.model.video.index_rule) == (0.5, "truncated")
    with pytest.raises(ValueError, match=r"model\.video\.fps: this model sees the frames of a clip as images"):
        load_backbone(ModelConfig(name="hf", family="hf", path=str(checkpoint("smolvlm")), video=VideoConfig(fps=1.0)))
    theirs = {"model": {"video": {"fps": 2.5, "index_rule": "truncated"}}}
    assert taken_from(theirs) == {"model.video.fps": 2.5, "model.video.index_rule": "truncated"}
    with pytest.raises(ValueError, match="fps: expected a number up to 1,000"):
        taken_from({"model": {"video": {"fps": 1e9}}})
