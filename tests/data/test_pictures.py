"""Pictures of every depth, orientation and format: as they are meant to be seen, or refused by name."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lime.data.media import Bounds, MediaError, image_size, load_image
from tests.data import tiny

RAMP = np.tile(np.arange(256), (16, 1))
DEEP = {
    "u16.png": lambda: Image.fromarray((RAMP * 257).astype(np.uint16)),
    "u16.tif": lambda: Image.fromarray((RAMP * 257).astype(np.uint16)),
    "i32.tif": lambda: Image.fromarray((RAMP * (2**31 // 256)).astype(np.int32)),
    "i32_of_16.tif": lambda: Image.fromarray((RAMP * 257).astype(np.int32)),
    "i32_of_8.tif": lambda: Image.fromarray(RAMP.astype(np.int32)),
    "f32.tif": lambda: Image.fromarray((RAMP / 255).astype(np.float32)),
    "u8.png": lambda: Image.fromarray(RAMP.astype(np.uint8)),
}


@pytest.mark.parametrize("name", DEEP)
def test_a_ramp_of_any_depth_is_a_ramp(tmp_path, name):
    DEEP[name]().save(tmp_path / name)
    picture = load_image(tmp_path / name)
    values = np.asarray(picture)
    assert picture.mode == "RGB"
    assert np.abs(values[0, :, 0].astype(int) - RAMP[0]).max() <= 1
    assert len(np.unique(values)) >= 255


def test_deep_pgm_and_jpeg2000(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 256 16 65535\n" + (RAMP * 257).astype(">u2").tobytes())
    (tmp_path / "b.pgm").write_bytes(b"P5 256 16 1023\n" + (RAMP * 4).astype(">u2").tobytes())
    Image.fromarray((RAMP * 257).astype(np.uint16)).save(tmp_path / "c.jp2", irreversible=False)
    for name in ("a.pgm", "b.pgm", "c.jp2"):
        values = np.asarray(load_image(tmp_path / name))[0, :, 0].astype(int)
        assert np.abs(values - RAMP[0]).max() <= 1, name


def test_sixteen_bits_of_color_and_white_as_zero(tmp_path):
    rows = b"".join(b"\0" + np.repeat(row * 257, 3).astype(">u2").tobytes() for row in RAMP)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 256, 16, 16, 2, 0, 0, 0))
    body = head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "rgb48.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert np.abs(np.asarray(load_image(tmp_path / "rgb48.png"))[0, :, 0].astype(int) - RAMP[0]).max() <= 1
    deep = Image.fromarray((RAMP * 257).astype(np.uint16))
    deep.save(tmp_path / "inverted.tif", tiffinfo={262: 0})
    stored = (tmp_path / "inverted.tif").read_bytes()
    assert Image.open(tmp_path / "inverted.tif").tag_v2[262] == 0, stored[:20]
    assert np.abs(np.asarray(load_image(tmp_path / "inverted.tif"))[0, :, 0].astype(int) - RAMP[0][::-1]).max() <= 1


@pytest.mark.parametrize("values", [RAMP * 1.0, RAMP / 255 - 0.5, np.full((4, 4), np.nan), np.full((4, 4), np.inf)])
def test_floats_outside_0_to_1_are_refused_by_name(tmp_path, values):
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "depth.tif")
    with pytest.raises(MediaError, match=r"depth\.tif \(row a/1\): a picture of floats with values .*expected 0 to 1"):
        load_image(tmp_path / "depth.tif", "a/1")


def test_negative_integers_are_refused_by_name(tmp_path):
    Image.fromarray((RAMP - 5).astype(np.int32)).save(tmp_path / "signed.tif")
    with pytest.raises(MediaError, match=r"signed\.tif: a picture of signed integers with values below 0"):
        load_image(tmp_path / "signed.tif")


@pytest.mark.parametrize("suffix", ["jpg", "tif", "png", "webp", "avif"])
@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 65535])
def test_the_size_told_is_that_of_the_picture(tmp_path, suffix, orientation):
    path = tmp_path / f"o{orientation}.{suffix}"
    marked = np.zeros((40, 60, 3), dtype=np.uint8)
    marked[:20, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(marked).save(path, exif=exif)
    picture = load_image(path)
    assert image_size(path) == (picture.height, picture.width)
    if suffix == "avif":  # its writer turns the picture by other means
        return
    assert picture.size == ((40, 60) if orientation in (5, 6, 7, 8) else (60, 40))
    corner = {2: (0, -1), 3: (-1, -1), 4: (-1, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}.get(orientation, (0, 0))
    assert np.asarray(picture)[corner].min() > 200, "turned as the orientation says"


@pytest.mark.parametrize("kind", ["u1", "<u2", ">u2", "<i4", "<f4"])
def test_a_turned_tiff_of_one_channel_is_turned(tmp_path, kind):
    values = np.arange(72).reshape(6, 12) / 72
    scaled = values if kind == "<f4" else (values * (255 if kind == "u1" else 65535)).round()
    modes = {"u1": "L", "<u2": "I;16", ">u2": "I;16B", "<i4": "I", "<f4": "F"}
    source = Image.frombytes(modes[kind], (12, 6), scaled.astype(kind).tobytes())
    for orientation in range(1, 9):
        path, exif = tmp_path / f"{orientation}.tif", Image.Exif()
        exif[0x0112] = orientation
        source.save(path, exif=exif)
        picture = load_image(path)
        assert image_size(path) == (picture.height, picture.width)
        seen = values.T if orientation in (5, 6, 7, 8) else values
        seen = seen[:, ::-1] if orientation in (2, 3, 6, 7) else seen
        seen = seen[::-1] if orientation in (3, 4, 7, 8) else seen
        assert np.abs(np.asarray(picture)[..., 0] / 255 - seen).max() < 0.01


def test_the_size_told_is_that_of_the_picture_for_every_format(tmp_path):
    source = Image.fromarray(np.random.default_rng(0).integers(0, 255, (36, 52, 3), dtype=np.uint8))
    for suffix in (
        "jpg",
        "png",
        "gif",
        "bmp",
        "tif",
        "webp",
        "ppm",
        "tga",
        "ico",
        "jp2",
        "pcx",
        "sgi",
        "dds",
        "qoi",
        "im",
    ):
        path = tmp_path / f"a.{suffix}"
        source.save(path)
        picture = load_image(path)
        assert image_size(path) == (picture.height, picture.width), suffix


def test_a_broken_exif_leaves_the_picture_whole(tmp_path):
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    data = bytearray(path.read_bytes())
    at = data.index(b"Exif\0\0")
    data[at + 6 : at + 20] = b"\xff" * 14
    path.write_bytes(data)
    assert load_image(path).size == (30, 20)
    assert image_size(path) == (20, 30)


@pytest.mark.parametrize(
    "suffix", ["png", "jpg", "gif", "webp", "avif", "dds", "tif", "bmp", "jp2", "qoi", "tga", "ppm"]
)
def test_damage_is_named_whatever_the_format(tmp_path, suffix):
    """Cut anywhere, or with other bytes in its head: read, or a MediaError, never another exception."""
    source = Image.fromarray(np.random.default_rng(0).integers(0, 255, (36, 52, 3), dtype=np.uint8))
    path = tmp_path / f"a.{suffix}"
    source.save(path)
    data = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for trial in range(60):
        changed = bytearray(data[: int(rng.integers(1, len(data)))] if trial % 2 else data)
        for place in rng.integers(0, min(len(changed), 160), 4):
            changed[place] = int(rng.integers(256))
        path.write_bytes(changed)
        for read in (load_image, image_size):
            try:
                read(path, "a/1")
            except MediaError as error:
                refused += "(row a/1)" in str(error)
    assert refused > 0


def test_a_damaged_blp_and_dds_are_named(tmp_path):
    for name, data in (
        ("a.blp", b"BLP2" + b"\xff" * 40),
        ("b.blp", b"BLP1\0\0\0\0"),
        ("a.dds", b"DDS |\0\0\0" + b"\xff" * 120),
    ):
        (tmp_path / name).write_bytes(data)
        for read in (load_image, image_size):
            with pytest.raises(MediaError, match=rf"{name}: (not a readable picture|\d+ pixels, over)"):
                read(tmp_path / name)


def test_what_is_no_picture_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.png").write_text("<!DOCTYPE html><title>Not found</title>")
    (tmp_path / "program.eps").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    )
    tiny.write_video(tmp_path / "clip.png.mp4", tiny.moving_square(4)).rename(tmp_path / "clip.png")
    said = {"pipe": "not a regular file", "folder": "a folder", "empty": "an empty file", "page": "an HTML page",
            "program": "EPS is a program", "clip": "an MP4 video"}  # fmt: skip
    for name, text in said.items():
        path = next(tmp_path.glob(f"{name}.*"))
        for read in (load_image, image_size):
            with pytest.raises(MediaError, match=text):
                read(path)


def test_a_picture_costs_no_more_than_its_bound(tmp_path):
    Image.new("1", (9000, 6000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 20_000
    for read in (load_image, image_size):
        with pytest.raises(MediaError, match=r"54000000 pixels, over data\.max_pixels=50000000") as caught:
            read(tmp_path / "bomb.png")
        assert caught.value.kind == "too_large"
    assert image_size(tmp_path / "bomb.png", bounds=Bounds(pixels=54_000_000)) == (6000, 9000)


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_a_picture_within_an_icon_counts_too(tmp_path, mode):
    inner = io.BytesIO()
    Image.new(mode, (700, 700)).save(inner, "PNG")
    data = inner.getvalue()
    head = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(data), 22)
    (tmp_path / "bomb.ico").write_bytes(head + data)
    allowed = Image.MAX_IMAGE_PIXELS
    for read in (load_image, image_size):
        with pytest.raises(MediaError, match=r"data\.max_pixels=400000") as caught:
            read(tmp_path / "bomb.ico", bounds=Bounds(pixels=400_000))
        assert caught.value.kind == "too_large"
        assert ": 490000 pixels, over" in str(caught.value)  # refused by its header, before it was decoded
    assert load_image(tmp_path / "bomb.ico", bounds=Bounds(pixels=490_000)).size == (700, 700)
    assert allowed == Image.MAX_IMAGE_PIXELS
