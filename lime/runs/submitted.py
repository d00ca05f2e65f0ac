"""Runs of a sweep that submitit starts as processes on this machine (``launcher=parallel``): told to stop with it.

Each run is a task below a controller process. submitit lets tasks ignore SIGTERM, its controllers die of most other
signals or kill their tasks, and all of them outlive the sweep's own process. Here the sweep's process passes its signal
on, once, and waits until every run has saved what it has; tasks whose controller has died stop too.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from lime.system import interrupts

log = logging.getLogger(__name__)

SWEEP = "LIME_SWEEP"
"""Process number of the sweep that a process belongs to, in the environment of its tasks and controllers."""
SECONDS_TO_END = 60.0
_CONTROLLER, _TASK = "submitit.local._local", "submitit.core._submit"


@contextmanager
def as_task() -> Iterator[None]:
    """In a task of submitit on this machine, signals stop the run as they do outside of one; elsewhere nothing."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "local" or _TASK not in psutil.Process().cmdline():
        yield
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit would ignore it
    with interrupts.taken():
        threading.Thread(target=_stop_with, args=(int(os.environ["SUBMITIT_LOCAL_JOB_ID"]),), daemon=True).start()
        yield


def _stop_with(controller: int) -> None:
    shell = bool(os.environ.get("SUBMITIT_LOCAL_WITH_SHELL"))
    parent = os.getppid() if shell else controller
    while os.getppid() == parent:
        time.sleep(0.5)
    if interrupts.received() is None:
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def ended_with_the_sweep() -> Iterator[None]:
    """A signal that stops the sweep inside stops the runs that were started for it too."""
    os.environ[SWEEP] = str(os.getpid())
    try:
        yield
    except interrupts.Interrupted as stop:
        _end(stop)
        raise


def _end(stop: interrupts.Interrupted) -> None:
    controllers, tasks = [], []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(SWEEP) != str(os.getpid()):
                continue
            command = process.cmdline()
            controllers += [process] if _CONTROLLER in command else []
            tasks += [process] if _TASK in command else []
    for process in controllers:  # first: they would kill the tasks after a second
        _send(process, signal.SIGKILL)
    for process in tasks:
        _send(process, stop.signal)
    if tasks:
        log.warning("%s: waiting for the runs that are under way; the same command goes on where they stood", stop)
    _, alive = psutil.wait_procs(tasks, timeout=SECONDS_TO_END)
    for process in alive:
        _send(process, signal.SIGKILL)


def _send(process: psutil.Process, number: int) -> None:
    with suppress(psutil.Error):
        process.send_signal(number)
