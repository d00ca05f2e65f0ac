"""Whole clips of every kind are read, by both backends alike; cut and hostile ones are named."""

from __future__ import annotations

import logging
import os
import re
import shutil

import av
import numpy as np
import pytest

from lime.data.media import Bounds, MediaError, clip, frame_indices, load_video, media_file, video_size
from tests.data import clips, tiny

pytestmark = pytest.mark.filterwarnings("ignore")
SHOWN = {"cut5.mp4": slice(5, None), "cut15.mp4": slice(15, None)}
LENGTHS = {"slides.mp4": 5, "slides.mkv": 5, "one.mp4": 1, "skipped.avi": 12}
NOISE = np.random.default_rng(0).integers(0, 255, (24, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """{name: file} of every whole clip."""
    folder = tmp_path_factory.mktemp("clips")
    return {name: write(folder / name) for name, write in clips.WHOLE.items()}


@pytest.mark.parametrize("name", clips.WHOLE)
def test_a_whole_clip_is_read_from_its_first_to_its_last_frame(made, name):
    frames = load_video(made[name], 8)
    assert frames.shape[0] == 8
    assert video_size(made[name]) == frames.shape[1:3], "the header says what is read"
    if name.startswith(("turned", "sizes")):
        return
    source = tiny.moving_square(LENGTHS.get(name, 24), 64)[SHOWN.get(name, slice(None))]
    expected = source[frame_indices(len(source), 8)].astype(int)
    corner = (slice(None), slice(-4, None), slice(None))
    brightness = np.abs(frames[corner].mean((1, 2, 3)) - expected[corner].mean((1, 2, 3)))
    assert brightness.mean() < (20 if name == "clip.gif" else 4), "the frames shown are those sampled, all of them"


def test_a_turned_clip_is_seen_as_players_show_it(made):
    """The square is at the left of the first stored frame, in the middle of its height."""
    lying = load_video(clips.encode(made["plain.mp4"].with_name("lying.mp4"), tiny.moving_square(24, 64)[:, :48]), 2)
    for name, turns in (("turned90.mp4", -1), ("turned180.mp4", 2), ("turned270.mkv", 1)):
        shown = load_video(made[name], 2)
        expected = np.rot90(lying, turns, axes=(1, 2))
        assert shown.shape == expected.shape
        assert np.abs(shown.astype(int) - expected).max() <= 2, name


def test_frames_of_other_sizes_are_scaled_to_the_first(made):
    for name in ("sizes.h264", "sizes.ts"):
        found = clip(made[name])
        assert found.sizes == {(64, 64), (96, 80)}
        frames = load_video(made[name], 24)
        assert frames.shape == (24, 64, 64, 3)
        assert frames[-1, -1, -1, 0] > 170


def test_both_backends_give_the_same_frames_for_every_clip_that_both_read(made):
    pytest.importorskip("decord", reason="decord has wheels for x86-64 only")
    read: list[str] = []
    refused: dict[str, str] = {}
    for name, path in made.items():
        for count, rule in ((8, "rounded"), (5, "truncated")):
            ours = load_video(path, count, rule=rule).astype(int)
            try:
                theirs = load_video(path, count, "decord", rule=rule)
            except MediaError as error:
                refused[name] = str(error)
                continue
            assert theirs.shape == ours.shape, name
            assert np.abs(ours - theirs).mean((1, 2, 3)).max() < 2, name
            read.append(name)
    assert len(set(read)) >= 20, f"read {sorted(set(read))}, refused {sorted(refused)}"
    assert all("use data.video_backend=pyav" in said for said in refused.values()), refused
    late_or_slow = {"slides.mp4", "slides.mkv", "late.mp4", "late.mkv", "transport_h264.ts", "cut5.mp4", "turned90.mp4"}
    assert late_or_slow | {"b_frames.avi", "windows.wmv", "open_gop.mp4"} <= set(read)


def test_decord_says_nothing_of_its_own(made, tmp_path, capfd):
    pytest.importorskip("decord", reason="decord has wheels for x86-64 only")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(made["plain.mp4"].read_bytes()[:1500])
    for path in (broken, made["raw.h264"], made["clip.gif"]):
        with pytest.raises(MediaError) as caught:
            load_video(path, 8, "decord")
        assert not re.search(r"\.(cc|h):\d+|Stack trace|workspace", str(caught.value))
    load_video(made["open_gop.mp4"], 8, "decord")
    assert "".join(capfd.readouterr()) == ""


CUT = {
    "noise.mp4": {}, "fast.mp4": {"muxer": {"movflags": "faststart"}},
    "pieces.mp4": {"muxer": {"movflags": "frag_keyframe"}}, "noise.mkv": {}, "live.mkv": {"muxer": {"live": "1"}},
    "noise.avi": {"codec": "mpeg4"}, "noise.wmv": {"codec": "wmv2"},
    "noise.flv": {"codec": "flv"}, "noise.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "noise.apng": {"codec": "apng", "pix_fmt": "rgb24", "container": "apng"}, "noise.ivf": {"codec": "libvpx"},
}  # fmt: skip


@pytest.mark.parametrize("name", CUT)
def test_a_clip_that_was_cut_is_damaged(tmp_path, name):
    path = clips.encode(tmp_path / name, NOISE, **CUT[name])
    assert load_video(path, 8).shape == (8, 64, 64, 3)
    data = path.read_bytes()
    for share in (0.9, 0.5, 0.2):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(MediaError, match=r"\(row a/1\): (damaged or cut short|not a readable video)"):
            load_video(path, 8, row_id="a/1")


def test_a_title_that_is_not_utf8_is_no_fault(tmp_path, made):
    for name in ("title.mkv", "title.mp4", "title.avi"):
        codec = "mpeg4" if name.endswith("avi") else "libx264"
        path = clips.encode(tmp_path / name, tiny.moving_square(12), codec, metadata={"title": "QQQQQQQQ"})
        data = path.read_bytes()
        assert b"QQQQQQQQ" in data
        path.write_bytes(data.replace(b"QQQQQQQQ", b"caf\xe9 \xff\xfe!"))
        assert load_video(path, 4).shape == (4, 64, 64, 3)


def test_a_clip_without_a_known_codec_is_named(tmp_path, made):
    for source, known, unknown in (
        ("plain.mp4", b"avc1", b"zzz9"),
        ("plain.mkv", b"V_MPEG4/ISO/AVC", b"V_ZZZZZ/ISO/ZZZ"),
    ):
        path = tmp_path / source
        path.write_bytes(made[source].read_bytes().replace(known, unknown))
        for read in (lambda p: load_video(p, 8, row_id="x/1"), lambda p: video_size(p, "x/1")):
            with pytest.raises(MediaError, match=rf"{re.escape(source)} \(row x/1\)"):
                read(path)


ODD = [
    "clip:1.mp4", "%03d.mp4", "-i.mp4", "a b\nc.mp4", "é🎬.mp4", "subfile,,start,0,end,0,,:x.mp4", "a?b#c.mp4",
    "[x]*.mp4", "file:x.mp4", "concat:a|b.mp4",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_an_odd_name_is_a_file(tmp_path, monkeypatch, made, name):
    monkeypatch.chdir(tmp_path)
    shutil.copy(made["plain.mp4"], name)
    for backend in ("pyav", *(["decord"] if _has_decord() else [])):
        assert load_video(media_file(".", name), 4, backend).shape == (4, 64, 64, 3)


def _has_decord() -> bool:
    try:
        import decord  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\ninner.ts\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile inner.ts\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video 5000 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>',
        "[playlist]\nFile1=http://127.0.0.1:9/x.ts\n",
    ],
)
def test_a_file_that_names_other_files_is_refused(tmp_path, made, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    shutil.copy(made["transport_h264.ts"], "inner.ts")
    for name in ("list.m3u8", "list.mp4"):
        (tmp_path / name).write_text(text)
        for read in (lambda p: load_video(p, 4), lambda p: load_video(p, 4, "decord"), video_size):
            if read is not video_size and not _has_decord():
                continue
            with pytest.raises(MediaError, match="not a readable video") as caught:
                read(tmp_path / name)
            assert caught.value.kind in ("wrong_type", "damaged")


def test_addresses_and_special_files_are_not_opened(tmp_path):
    for name in (
        "http://127.0.0.1:9/x.mp4",
        "concat:a.mp4|b.mp4",
        "subfile,,start,0,end,9,,:a.mp4",
        "x\0y.mp4",
        "n" * 300,
    ):
        with pytest.raises(MediaError, match=r"no such file|cannot be read"):
            media_file(tmp_path, name)
    os.mkfifo(tmp_path / "pipe.mp4")
    for read in (lambda p: load_video(p, 4), video_size, lambda p: media_file(tmp_path, "pipe.mp4")):
        with pytest.raises(MediaError, match="not a regular file"):
            read(tmp_path / "pipe.mp4")


def test_media_stay_inside_the_root_links_followed(tmp_path, made):
    root = tmp_path / "root"
    (root / "media").mkdir(parents=True)
    shutil.copy(made["plain.mp4"], root / "media" / "a.mp4")
    shutil.copy(made["plain.mp4"], tmp_path / "out.mp4")
    (root / "inside.mp4").symlink_to("media/a.mp4")
    (root / "link.mp4").symlink_to("../out.mp4")
    (root / "away").symlink_to(tmp_path)
    (tmp_path / "alias").symlink_to(root)
    for name in ("media/a.mp4", "inside.mp4"):
        assert media_file(tmp_path / "alias", name).is_file()
    for name in ("link.mp4", "away/out.mp4", "../out.mp4", str(tmp_path / "out.mp4"), "media/../../out.mp4"):
        with pytest.raises(MediaError) as caught:
            media_file(root, name, "a/1")
        assert caught.value.kind == "outside_root", name
        assert "(row a/1)" in str(caught.value)


def test_a_clip_costs_no_more_than_its_bounds(made, tmp_path):
    for backend in ("pyav", *(["decord"] if _has_decord() else [])):
        with pytest.raises(MediaError, match=r"64 x 64 pixels, over data\.max_pixels=4000"):
            load_video(made["plain.mp4"], 8, backend, bounds=Bounds(pixels=4000))
        with pytest.raises(MediaError, match=r"over data\.max_seconds=2"):
            load_video(made["plain.mp4"], 8, backend, bounds=Bounds(seconds=2))
        with pytest.raises(MediaError) as caught:
            load_video(made["late.mp4"], 8, backend, bounds=Bounds(seconds=1))
        assert caught.value.kind == "too_large"
        assert load_video(made["late.mp4"], 8, backend, bounds=Bounds(seconds=3)).shape[0] == 8, (
            "a late start costs nothing"
        )
    with pytest.raises(MediaError, match=r"over data\.max_pixels"):
        video_size(made["plain.mp4"], bounds=Bounds(pixels=4000))
    with pytest.raises(MediaError):
        load_video(made["sizes.h264"], 8, bounds=Bounds(pixels=64 * 64 + 1))


def test_ffmpeg_is_told_to_open_files_only(monkeypatch, made):
    seen = []
    opener = av.open
    monkeypatch.setattr("lime.data.media.video.av.open", lambda *a, **k: seen.append((a, k)) or opener(*a, **k))
    load_video(made["plain.mp4"], 2)
    assert all(place.startswith("file:/") for (place, *_), _ in seen)
    assert all(options["container_options"]["protocol_whitelist"] == "file" for _, options in seen)
    logging.getLogger("libav").setLevel(logging.ERROR)
