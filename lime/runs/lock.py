"""One run folder, one run: a lock that the system releases however a process ends, and whose it is.

``.lime-lock`` is held for as long as the run lasts, ``.lime-owner.json`` says by which process of which host. A process
on another host may not see the lock (some shared file systems keep locks to one machine), so the owner also touches its
file every few seconds: one that stands still is of a dead run, whatever host it names.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from lime.runs.folders import RESERVE, claim_run_folder, refuse_links
from lime.system.atomic import remove, write_json
from lime.system.interrupts import Interrupted

log = logging.getLogger(__name__)

LOCK_FILE, OWNER_FILE = ".lime-lock", ".lime-owner.json"
HELD = "LIME_LOCKED"
"""Folders whose lock this process or one of its parents holds; processes of one run share it."""
SECONDS_BETWEEN_BEATS = 5.0
PATIENCE = 2.0  # seconds: longer than a reader looks whether somebody is at it


class BusyError(ValueError):
    """Another process runs in the folder; the message says which, and what to do."""


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """This process alone runs in ``folder`` (made where absent). Entered again, by child processes too, it is one lock.

    Raises:
        BusyError: another process is at it.
        OSError: the folder cannot be written, or a link in it leads elsewhere.
    """
    here = str(folder.resolve())
    held = os.environ.get(HELD, "").split(os.pathsep)
    if here in held:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise BusyError(_busy(folder)) from None
    ended = threading.Event()
    try:
        _take_over(folder)
        threading.Thread(target=_beat, args=(folder / OWNER_FILE, ended), daemon=True).start()
        os.environ[HELD] = os.pathsep.join([*filter(None, held), here])
        try:
            yield
        finally:
            os.environ[HELD] = os.pathsep.join(filter(None, held))
    finally:  # an interrupt between the lines above, too, leaves no owner behind
        ended.set()
        with suppress(OSError):
            if _is_this_process(_owner(folder)):
                remove(folder / OWNER_FILE)
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process runs in the folder."""
    return is_held(folder / LOCK_FILE)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of this file."""
    if not path.is_file():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def interrupted_unseen(folder: Path, kind: Literal["run", "evaluation"], stop: Interrupted) -> None:
    """Write that a run was interrupted where its status does not say so: before it began, or between two lines of its
    beginning or end."""
    path = folder / "status.json"
    try:
        status = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        unseen = isinstance(status, dict) and status.get("status", "running") == "running"
        if unseen and not is_locked(folder):
            claim_run_folder(folder, kind)
            write_json(path, {**status, "status": "interrupted", "error": {"type": stop.signal.name}})
            remove(folder / RESERVE)
    except (OSError, ValueError) as error:
        log.warning("%s: that the run was interrupted could not be written: %s", path, error)


def _take_over(folder: Path) -> None:
    """Write who owns the folder now, in place of a run that ended without a word."""
    path = folder / OWNER_FILE
    before = _owner(folder)
    if before is not None:
        if before.get("host") != socket.gethostname() and _beats(path):
            raise BusyError(_busy(folder))
        log.warning("%s: the run of %s ended without a word; this one takes over", folder, _who(before))
    owner = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv)[:500],
    }
    write_json(path, owner, indent=1)


def _beats(path: Path) -> bool:
    """Whether a live owner touches the file."""
    ends = time.monotonic() + 2.5 * SECONDS_BETWEEN_BEATS
    try:
        first = path.stat().st_mtime_ns
        log.info("%s names another host: looking whether its run is alive", path)
        while time.monotonic() < ends:
            time.sleep(0.1)
            if path.stat().st_mtime_ns != first:
                return True
    except FileNotFoundError:  # it has just ended
        pass
    return False


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(SECONDS_BETWEEN_BEATS):
        with suppress(OSError):
            os.utime(path)


def _owner(folder: Path) -> dict[str, Any] | None:
    """What the owner's file says; empty where it is damaged, None where there is none."""
    path = folder / OWNER_FILE
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_this_process(owner: dict[str, Any] | None) -> bool:
    return owner is not None and (owner.get("host"), owner.get("pid")) == (socket.gethostname(), os.getpid())


def _who(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'an unknown host')}"


def _busy(folder: Path) -> str:
    owner = _owner(folder) or {}
    since = f", since {owner['started']}" if "started" in owner else ""
    return (
        f"{folder}: another run is at work in this folder ({_who(owner)}{since}). Wait until it has ended, stop it, "
        "or take another folder: hydra.run.dir=FOLDER"
    )
