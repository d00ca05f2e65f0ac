"""Start the processes of a distributed run on this machine, and bring the result or the error back."""

from __future__ import annotations

import logging
import os
import pickle
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import multiprocessing

from lime.system import interrupts
from lime.system.atomic import write_bytes, write_text
from lime.system.limits import explained
from lime.system.printing import plain_logging
from lime.system.slurm import under_slurm

T = TypeVar("T")

log = logging.getLogger(__name__)

OWN = "LIME_PROCESSES"
"""Set in the environment of processes that :func:`in_processes` started."""
SECONDS_TO_END = 60.0
"""How long the processes may take to end after the first of them was stopped by a signal."""
_STOPPED = {128 + number for number in interrupts.NUMBERS}


def started_from_outside() -> bool:
    """Whether torchrun or SLURM started this process as one of several (or a parent of ours did)."""
    return "LOCAL_RANK" in os.environ or (under_slurm() and int(os.environ["SLURM_NTASKS"]) > 1)


def in_processes(count: int, function: Callable[..., T], *arguments: Any) -> T:
    """``function(*arguments)`` in ``count`` new processes of this machine; returns what the first one returned.

    Each finds its place in the environment (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) and makes the
    process group itself. The first process logs as this one does, the others only warnings. When one fails, the others
    are ended. When this process dies, however it dies, they end too. A signal is passed on to them, and they end by it.

    Raises:
        Interrupted: this process was told to stop.
        ValueError, OSError: what a process raised, with its message.
        RuntimeError: a process failed otherwise, or was killed; the message holds its traceback.
    """
    with tempfile.TemporaryDirectory(prefix="lime-processes-") as scratch:
        place = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            OWN: "1",
        }
        logs = [Path(h.baseFilename) for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]
        common = (place, scratch, os.getpid(), logging.getLogger().level, logs, list(sys.argv))
        context = multiprocessing.get_context("spawn")
        workers = [
            context.Process(target=_work, args=(number, *common, function, arguments), daemon=False)
            for number in range(count)
        ]
        for worker in workers:
            worker.start()
        with interrupts.passed_on(lambda number: _pass_on(number, workers)):
            try:
                _wait(workers, Path(scratch))
            finally:
                _end(workers)
        return pickle.loads((Path(scratch) / "result").read_bytes())  # written by our own process


def _pass_on(number: int, workers: Sequence[Any]) -> None:
    for worker in workers:
        if worker.is_alive():
            os.kill(worker.pid, number)


def _end(workers: Sequence[Any]) -> None:
    """End what still runs."""
    for worker in workers:
        if worker.is_alive():
            worker.terminate()
    for worker in workers:
        worker.join(10)
        if worker.is_alive():
            worker.kill()


def _wait(workers: Sequence[Any], scratch: Path) -> None:
    patience = SECONDS_TO_END
    while True:
        codes = [worker.exitcode for worker in workers]
        if all(code == 0 for code in codes):
            return
        failed = [number for number, code in enumerate(codes) if code not in (None, 0)]
        if failed and (interrupts.received() is None or None not in codes or patience < 0):
            break
        patience -= 0.05 if failed else 0.0  # told to stop, each still has its files to write
        time.sleep(0.05)
    interrupts.check()
    stopped = [code - 128 for code in codes if code in _STOPPED]
    if stopped:  # a signal that reached the processes alone
        raise interrupts.Interrupted(stopped[0])
    errors = sorted(scratch.glob("error-*"), key=lambda path: path.stat().st_mtime_ns)
    for path in errors:
        kind, message = path.read_text(encoding="utf-8").split("\n", 1)
        if kind == "user":
            raise ValueError(message)
    if errors:
        told = errors[0].read_text(encoding="utf-8").partition("\n")[2]
        raise RuntimeError(f"process {errors[0].name.removeprefix('error-')} failed:\n{told}")
    raise RuntimeError(
        f"process {failed[0]} ended with code {codes[failed[0]]} without a word"
        f"{' (killed: out of memory?)' if codes[failed[0]] == -9 else ''}"
    )


def _work(
    number: int,
    place: dict[str, str],
    scratch: str,
    parent: int,
    level: int,
    logs: list[Path],
    argv: list[str],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(place, RANK=str(number), LOCAL_RANK=str(number), NODE_RANK="0")
    sys.argv = argv
    _log(number, level, logs)
    interrupts.take()
    threading.Thread(target=interrupts.end_with, args=(parent,), daemon=True).start()
    folder = Path(scratch)
    try:
        result = function(*arguments)
        if number == 0:
            write_bytes(folder / "result", pickle.dumps(result))
    except interrupts.Interrupted as stop:
        interrupts.end_children()
        os._exit(128 + stop.signal)
    except SystemExit as stop:
        if stop.code:
            _tell(folder, number, "other", f"ended with code {stop.code}")
        os._exit(1 if stop.code else 0)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # the end of a process: its parent tells
        said = explained(error)
        _tell(folder, number, "other" if said is None else "user", said or traceback.format_exc())
        os._exit(1 if said is None else 2)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _tell(folder: Path, number: int, kind: str, message: str) -> None:
    write_text(folder / f"error-{number}", f"{kind}\n{message}")


def _log(number: int, level: int, logs: Sequence[Path]) -> None:
    plain_logging()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if number == 0:
        handlers += [logging.FileHandler(path, mode="a", encoding="utf-8") for path in logs]
    form = "[%(asctime)s] %(message)s" if number == 0 else f"[%(asctime)s] [process {number}] %(message)s"
    logging.basicConfig(
        level=level if number == 0 else logging.WARNING, format=form, datefmt="%H:%M:%S", handlers=handlers, force=True
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
