"""Pictures and clips: real files, encoded on the spot; any damage is an error naming file and row."""

from __future__ import annotations

import av
import numpy as np
import pytest
from PIL import Image

from lime.data.media import MediaError, frame_indices, image_size, load_image, load_video, video_size
from tests.data import tiny


def has(codec: str) -> bool:
    try:
        av.codec.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


CONTAINERS = [("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4")]


@pytest.fixture(params=["pyav", "decord"])
def backend(request):
    if request.param == "decord":
        pytest.importorskip("decord", reason="decord has wheels for x86-64 only")
    return request.param


@pytest.mark.parametrize(("suffix", "codec"), CONTAINERS)
def test_eight_frames_from_first_to_last(tmp_path, backend, suffix, codec):
    if not has(codec):
        pytest.skip(f"this PyAV has no {codec} encoder")
    video = tiny.moving_square(24)
    path = tiny.write_video(tmp_path / f"clip.{suffix}", video, codec)
    frames = load_video(path, 8, backend)
    assert frames.shape == (8, 64, 64, 3)
    assert frames.dtype == np.uint8
    expected = video[frame_indices(24, 8)]
    assert np.abs(frames.astype(int) - expected.astype(int)).mean() < 12, "the frames shown are those sampled"
    assert video_size(path) == (64, 64)


def test_backends_agree(tmp_path):
    pytest.importorskip("decord", reason="decord has wheels for x86-64 only")
    path = tiny.write_video(tmp_path / "clip.mp4", tiny.moving_square(30))
    a, b = (load_video(path, 8, name).astype(int) for name in ("pyav", "decord"))
    assert np.abs(a - b).max() <= 4


@pytest.mark.parametrize("length", [1, 3, 7])
def test_a_short_clip_repeats_frames(tmp_path, backend, length):
    video = tiny.moving_square(length)
    frames = load_video(tiny.write_video(tmp_path / "short.mp4", video), 8, backend).astype(int)
    assert frames.shape[0] == 8
    assert np.abs(frames - video[frame_indices(length, 8)].astype(int)).mean() < 12


def test_indices_are_even_and_cover_the_clip():
    assert frame_indices(24, 8).tolist() == [0, 3, 7, 10, 13, 16, 20, 23]
    assert frame_indices(8, 8).tolist() == list(range(8))
    assert frame_indices(2, 4).tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="0 frames"):
        frame_indices(0, 8)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.8])
def test_a_truncated_clip_is_an_error_naming_file_and_row(tmp_path, backend, suffix, kept):
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 255, (32, 64, 64, 3), dtype=np.uint8)
    path = tiny.write_video(tmp_path / f"cut.{suffix}", noisy)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(MediaError, match=rf"cut\.{suffix} \(row video_test_x/7\)"):
        load_video(path, 8, backend, row_id="video_test_x/7")


def test_a_truncated_streaming_mp4_is_an_error(tmp_path):
    """With the index at the front the file opens and only the frames are missing."""
    path = tmp_path / "front.mp4"
    noisy = np.random.default_rng(0).integers(0, 255, (32, 64, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for frame in noisy:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"damaged or cut short|not a readable video"):
        load_video(path, 8)


def test_missing_and_foreign_files(tmp_path, backend):
    with pytest.raises(MediaError, match="no such file"):
        load_video(tmp_path / "none.mp4", 8, backend)
    text = tmp_path / "text.mp4"
    text.write_text("this is not a video")
    with pytest.raises(MediaError, match=r"text\.mp4.*not a readable video"):
        load_video(text, 8, backend)
    with pytest.raises(MediaError, match="not a readable video"):
        video_size(text)
    with pytest.raises(ValueError, match=r"data\.video_backend"):
        load_video(text, 8, "vlc")


def test_a_file_without_video_stream(tmp_path):
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match="no video stream"):
        load_video(path, 8)


def test_pictures_of_every_mode_become_rgb(tmp_path):
    for mode in ("RGB", "L", "P", "RGBA", "CMYK", "1"):
        path = tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        Image.new(mode, (20, 10)).save(path)
        assert load_image(path).mode == "RGB"
        assert image_size(path) == (10, 20)


def test_exif_orientation_turns_picture_and_size(tmp_path):
    path = tmp_path / "turned.jpg"
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    assert load_image(path).size == (10, 20)
    assert image_size(path) == (20, 10)


def test_damaged_pictures_are_errors_naming_file_and_row(tmp_path):
    for suffix in ("png", "jpg"):
        path = tiny.write_image(tmp_path / f"cut.{suffix}", 64, 64)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(MediaError, match=rf"cut\.{suffix} \(row a/1\): not a readable picture"):
            load_image(path, "a/1")
    (tmp_path / "text.png").write_text("no")
    for read in (load_image, image_size):
        with pytest.raises(MediaError, match="not a readable picture"):
            read(tmp_path / "text.png")
        with pytest.raises(MediaError, match="no such file"):
            read(tmp_path / "none.png")
