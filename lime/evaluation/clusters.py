"""The picture or clip that a row was made from: rows of one source are not independent."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

VIDEO_SUFFIXES = frozenset({".mp4", ".webm", ".avi", ".mkv", ".mov", ".gif"})
_TAMPERING = re.compile(
    r"(?:^|(?<=[/_\-. ]))(?:original|masking|repetition|substitution|dropping|rotate|masked|repeated|substituted"
    r"|dropped|rotated)(?:$|(?=[/_\-. ]))"
)


def source_media(media_path: str) -> str:
    """The medium a row was made from, "" for text.

    For a clip this is its path without the words that name a tampering, so that the original and the tampered versions
    of a clip (`a/masking/7.mp4`, `a/rotate/7.mp4`, `7_dropping.mp4`) count as one.
    """
    suffix = PurePosixPath(media_path).suffix
    if suffix.lower() not in VIDEO_SUFFIXES:
        return media_path
    stem = _TAMPERING.sub("", media_path.lower().removesuffix(suffix.lower()))
    return re.sub(r"[/_\-. ]{2,}", "/", stem).strip("/_-. ")
