"""Whose an adapter is: this program signs what a run of yours saved with a key that lies in your home alone.

A stranger can write every file of a run and every mark, but not the signature over them. The key is made on first use,
``~/.local/share/lime-moe/key`` (below ``XDG_DATA_HOME``, where that is set), readable by its owner. Who copies it to
another machine has the same runs as own there.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def signature(content: Mapping[str, Any]) -> str | None:
    """The signature of a mark's kind and files; None where no key can be kept."""
    key = _key()
    if key is None:
        return None
    text = json.dumps({name: content.get(name) for name in ("kind", "files")}, sort_keys=True)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def is_signed(content: Mapping[str, Any]) -> bool:
    """Whether a mark holds this user's signature."""
    given, expected = content.get("signature"), signature(content)
    return isinstance(given, str) and expected is not None and hmac.compare_digest(given, expected)


def key_file() -> Path:
    """Where the key lies."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "lime-moe" / "key"


def _key() -> bytes | None:
    try:
        path = key_file()
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _make(path)
        return bytes.fromhex(path.read_text(encoding="ascii"))
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: no home
        log.warning("no key to sign adapters with (%s): eval.py will not take them as your own", error)
        return None


def _make(path: Path) -> None:
    """A new key, whole under its name at once; where two processes make one, the first counts."""
    temporary = path.with_name(f".lime-part.{os.getpid()}.{secrets.token_hex(16)}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
    finally:
        temporary.unlink(missing_ok=True)
