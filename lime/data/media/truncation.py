"""Whether a clip's file ends in the middle of what its container says it holds, by the container's own structure.

FFmpeg reads Matroska, AVI, ASF and GIF files that were cut without a word. Formats without lengths (raw streams,
MPEG-TS, MPEG-PS) cannot be told this way; their decoder may still notice.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
_LEVEL_1 = {_CLUSTER, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367}
_ASF_HEAD = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_BROADCAST = 1


def is_cut(path: Path, format_name: str) -> bool:
    """Whether the end of this file is lacking. `format_name` is FFmpeg's name of its container."""
    size = path.stat().st_size
    names = format_name.split(",")
    with path.open("rb") as stream:
        try:
            if "matroska" in names:
                return _matroska(stream, size)
            if "mov" in names:
                return _boxes(stream, size)
            if "avi" in names:
                return _riff(stream, size)
            if "asf" in names:
                return _asf(stream, size)
            if "gif" in names:
                return _gif(stream, size)
        except (struct.error, IndexError):  # in the middle of a header
            return True
    return False


def _boxes(stream: BinaryIO, size: int) -> bool:
    """MP4: a cut index. Cut data are told by the index itself (`samples_behind`)."""
    place = 0
    while place + 8 <= size:
        stream.seek(place)
        length, name = struct.unpack(">I4s", stream.read(8))
        if length == 1:
            length = struct.unpack(">Q", stream.read(8))[0]
        if length < 8:  # 0: to the end of the file
            return False
        if place + length > size and name in (b"moov", b"moof"):
            return True
        place += length
    return False


def _riff(stream: BinaryIO, size: int) -> bool:
    """AVI: a list of frames that goes on behind the end."""
    place = 0
    while place + 12 <= size:
        stream.seek(place)
        name, length, kind = struct.unpack("<4sI4s", stream.read(12))
        if name not in (b"RIFF", b"LIST"):
            place += 8 + length + length % 2
            continue
        if kind == b"movi" and place + 8 + length > size:
            return True
        place += 12 if name == b"RIFF" else 8 + length + length % 2
    return False


def _asf(stream: BinaryIO, size: int) -> bool:
    """ASF and WMV: shorter than the file size in their header, unless that was not known when it was written."""
    head = stream.read(4096)
    at = head.find(_ASF_PROPERTIES)
    if not head.startswith(_ASF_HEAD) or at < 0:
        return False
    announced = struct.unpack_from("<Q", head, at + 40)[0]
    flags = struct.unpack_from("<I", head, at + 88)[0]
    return not flags & _BROADCAST and size < announced


def _gif(stream: BinaryIO, size: int) -> bool:
    """GIF: ends within a block."""
    data = stream.read()
    if size < 13:
        return True
    place = 13 + _colors(data[10])
    while place < size:
        kind = data[place]
        if kind == 0x2C:  # a picture: its place, its colors, its code size, its data
            place += 10
            place += _colors(data[place - 1]) + 1
        elif kind == 0x21:
            place += 2
        else:  # the trailer, or what stands behind a file without one
            return False
        while (length := data[place]) != 0:
            place += 1 + length
        place += 1
    return False


def _colors(packed: int) -> int:
    return 3 << ((packed & 7) + 1) if packed & 0x80 else 0


def _matroska(stream: BinaryIO, size: int) -> bool:
    """Matroska and WebM: ends within a cluster, or behind one where the segment goes on."""
    place, end, last = 0, None, 0
    while place < size:
        stream.seek(place)
        name, length, head = _element(stream)
        if name == _SEGMENT:
            end = None if length is None else place + head + length
        elif length is not None:
            if place + head + length > size:
                return name == _CLUSTER or name in _IN_CLUSTER
            place += length
        last = name if name in _LEVEL_1 else last
        place += head
        if end is not None and place >= end:
            return False
    return end is not None and end > size and last in (0, _CLUSTER)


_IN_CLUSTER = {0xA0, 0xA1, 0xA3, 0xE7, 0xAB, 0xA7}


def _element(stream: BinaryIO) -> tuple[int, int | None, int]:
    """(id, length of the content or None where it is not known, bytes of both)."""
    first = stream.read(1)[0]
    width = 9 - first.bit_length()
    if width > 4:
        raise IndexError
    name = int.from_bytes(bytes([first]) + stream.read(width - 1), "big")
    lead = stream.read(1)[0]
    wide = 9 - lead.bit_length()
    if wide > 8:
        raise IndexError
    rest = stream.read(wide - 1)
    if len(rest) < wide - 1:
        raise IndexError
    value = int.from_bytes(bytes([lead & ((1 << (8 - wide)) - 1)]) + rest, "big")
    unknown = value == (1 << (7 * wide)) - 1
    return name, None if unknown else value, width + wide
