"""What the first bytes of a file say it is."""

from __future__ import annotations

from pathlib import Path

HEAD = 512
_SIGNATURES = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"DDS ", "a DDS picture"),
    (b"BLP", "a BLP picture"),
    (b"%!PS", "an EPS picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a WMV video"),
    (b"FLV\x01", "an FLV video"),
    (b"#EXTM3U", "a playlist, which names other files"),
    (b"ffconcat", "a list of other files"),
    (b"[playlist]", "a playlist, which names other files"),
    (b"v=0\n", "a session description, which names addresses"),
    (b"v=0\r", "a session description, which names addresses"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"%PDF", "a PDF document"),
    (b"version https://git-lfs", "a Git LFS pointer (fetch the file itself: git lfs pull)"),
)
_PICTURE_BRANDS = (b"avif", b"mif1", b"heic", b"heix", b"heif", b"miaf")


def describe(head: bytes) -> str | None:
    """What the first bytes of a file say it is, or None where they say nothing."""
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if head[4:8] == b"ftyp":
        return "an AVIF or HEIF picture" if head[8:12] in _PICTURE_BRANDS else "an MP4 video"
    if head.startswith(b"RIFF") and head[8:12] in (b"AVI ", b"WEBP"):
        return "an AVI video" if head[8:12] == b"AVI " else "a WebP picture"
    start = head.lstrip()[:9].lower()
    if start == b"<!doctype" or start[:5] == b"<html":
        return "an HTML page"
    if b"<MPD" in head or b"<SmoothStreamingMedia" in head:
        return "a playlist, which names other files"
    return "text" if _is_text(head) else None


def describe_file(path: str | Path) -> str | None:
    """As `describe`, of a file; None where it cannot be read."""
    try:
        with Path(path).open("rb") as stream:
            return describe(stream.read(HEAD))
    except OSError:
        return None


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError:
        return False
    return bool(text) and all(letter.isprintable() or letter in "\t\r\n" for letter in text)
