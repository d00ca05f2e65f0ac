"""Tampering: on arrays, frame for frame, and in the decoded files of the 19 video tasks."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import datasets
import numpy as np
import pytest

from lime.embedded.benchmark.items import LETTERS
from lime.embedded.benchmark.scenes_video import TAMPERINGS, tamper
from lime.embedded.benchmark.tasks_video import FPS, QUESTION, SCENES

MIDDLE = slice(8, 16)


def marked(frames: int, first: int = 0) -> np.ndarray:
    """Clip whose pixel values name frame and row."""
    clip = np.zeros((frames, 4, 4, 3), np.uint8)
    clip += (first + np.arange(frames, dtype=np.uint8))[:, None, None, None]
    clip[:, 0] += 100
    return clip


def test_each_kind_frame_by_frame(rng: np.random.Generator) -> None:
    clip, other = marked(24), marked(30, first=50)
    assert np.array_equal(tamper(clip, other, "original", rng), clip)
    masked = tamper(clip, other, "masking", rng)
    assert masked[MIDDLE].max() == 0
    assert np.array_equal(np.delete(masked, range(8, 16), 0), np.delete(clip, range(8, 16), 0))
    repeated = tamper(clip, other, "repetition", rng)
    assert np.array_equal(repeated, clip[[*range(16), *range(8, 24)]])
    assert np.array_equal(tamper(clip, other, "dropping", rng), clip[[*range(8), *range(16, 24)]])
    rotated = tamper(clip, other, "rotate", rng)
    assert np.array_equal(rotated[MIDDLE], np.rot90(clip[MIDDLE], 2, (1, 2)))
    assert np.array_equal(rotated[:8], clip[:8])
    assert np.array_equal(rotated[16:], clip[16:])
    places = set()
    for _ in range(200):
        second = tamper(clip, other, "substitution", rng)[MIDDLE]
        place = int(second[0, 1, 0, 0]) - 50
        places.add(place)
        assert np.array_equal(second, other[place : place + 8])
    assert places == set(range(30 - 8 + 1))


@pytest.mark.parametrize(("frames", "start"), [(24, 8), (25, 8), (40, 16), (9, 0), (8, 0)])
def test_the_middle_second_starts_at_half_the_frames_less_half_a_second(
    rng: np.random.Generator, frames: int, start: int
) -> None:
    masked = tamper(marked(frames) + 1, marked(8), "masking", rng)
    assert np.flatnonzero(masked.max((1, 2, 3)) == 0).tolist() == list(range(start, start + 8))


def test_tampering_leaves_its_input_alone_and_refuses_nonsense(rng: np.random.Generator) -> None:
    clip = marked(24)
    for kind in TAMPERINGS:
        result = tamper(clip, marked(24, first=50), kind, rng)
        result[:] = 7
    assert np.array_equal(clip, marked(24))
    with pytest.raises(ValueError, match="unknown tampering 'blur'"):
        tamper(clip, clip, "blur", rng)
    with pytest.raises(ValueError, match="at least one second"):
        tamper(marked(7), clip, "masking", rng)
    with pytest.raises(ValueError, match="at least one second"):
        tamper(clip, marked(7), "substitution", rng)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == Fraction(FPS)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    return np.stack(frames).astype(np.float32)


def jumps(clip: np.ndarray) -> np.ndarray:
    """Mean absolute change between neighbouring frames, (T - 1,)."""
    return np.abs(np.diff(clip, axis=0)).mean((1, 2, 3))


@pytest.mark.parametrize("name", sorted(SCENES))
def test_files_show_the_tampering_of_their_label(root: Path, name: str) -> None:
    rows = datasets.load_from_disk(str(root / "MMT_47"))[f"video_test_{name}"]
    seen = set()
    for row in rows:
        assert row["question"] == QUESTION
        kind = TAMPERINGS[LETTERS.index(row["answer"])]
        seen.add(kind)
        clip = decode(root / row["media_path"])
        assert clip.shape[1:] == (64, 64, 3)
        assert len(clip) == {"repetition": 32, "dropping": 16}.get(kind, 24)
        dark = clip.mean((1, 2, 3)) < 8
        assert np.flatnonzero(dark).tolist() == (list(range(8, 16)) if kind == "masking" else []), kind
        change = jumps(clip)
        if kind == "original":
            assert change.max() < 4 * np.median(change) + 2
        elif kind == "repetition":
            assert np.abs(clip[8:16] - clip[16:24]).mean() < 3
            assert change[15] > 1.5 * np.median(change)
        elif kind == "dropping":
            assert change[7] > 2 * np.median(change)
        elif kind == "rotate":
            upright = clip.copy()
            upright[8:16] = clip[8:16, ::-1, ::-1]
            assert max(jumps(upright)[[7, 15]]) < min(change[[7, 15]])
        elif kind == "substitution":
            assert min(change[[7, 15]]) > 1.5 * np.median(change)
    assert seen == set(TAMPERINGS)
