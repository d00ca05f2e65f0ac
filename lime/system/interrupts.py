"""Signals that end a run (TERM, HUP, QUIT, USR1, Ctrl-C) as one exception, raised where nothing is lost.

A signal raises :class:`Interrupted` where the program stands; within :func:`deferred` it waits until somebody asks
(:func:`received`), e.g. at the end of an optimiser step. Sent again after a second, it always ends at once. Job queues
send it to every process of a run, so the helpers of a run (:func:`worker_process`) ignore it: they end with their
parent.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

NUMBERS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1") if hasattr(signal, name)
)
SECONDS_UNTIL_AGAIN = 1.0
"""A queue and a parent process may both send a signal: within this time it is the same one."""
SECONDS_AFTER_ERROR = 1.0  # by which a worker process may die of a signal before this one hears of it
_OF_A_PROCESS = ("DataLoader worker", "process pool was terminated", "Connection closed by peer", "Broken pipe")


class Interrupted(SystemExit):
    """The run was told to stop; exit code 128 + number of the signal, as shells have it."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.signal = signal.Signals(number)
        self.told = False  # whether somebody has said so

    def __str__(self) -> str:
        return f"stopped by {self.signal.name}" + (" (Ctrl-C)" if self.signal == signal.SIGINT else "")


@dataclass
class _Signals:
    received: signal.Signals | None = None
    at: float = 0.0
    deferring: int = 0
    taken: dict[int, Any] = field(default_factory=dict)
    observers: list[Callable[[int], None]] = field(default_factory=list)


_state = _Signals()


def received() -> signal.Signals | None:
    """The signal that this process was told to stop by, if any."""
    return _state.received


def check() -> None:
    """Raise :class:`Interrupted` where a signal came."""
    if _state.received is not None:
        raise Interrupted(_state.received)


@contextmanager
def taken() -> Iterator[None]:
    """Signals raise :class:`Interrupted` inside. Those that somebody else handles or ignores (nohup, a launcher of
    jobs) stay theirs. Processes that this one started and that still run when a signal ends the block are ended."""
    before, hook, stopped = dict(_state.taken), sys.unraisablehook, False

    def unless_stopped(lost: sys.UnraisableHookArgs) -> None:
        if not stopped and _state.received is None and not isinstance(lost.exc_value, Interrupted):
            hook(lost)

    take()
    sys.unraisablehook = unless_stopped
    try:
        yield
    finally:
        if _state.received is None:
            sys.unraisablehook = hook
        else:  # finalisers of what the signal left half-made, e.g. a loader without its workers, run after this block
            stopped = True
        for number in _state.taken.keys() - before.keys():
            signal.signal(number, _state.taken.pop(number))
        if _state.received is not None:
            end_children()
        if not _state.taken:
            _state.received = None


def take() -> None:
    """Take the signals over until the process ends."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in NUMBERS:
        handler = signal.getsignal(number)
        if number not in _state.taken and handler in (signal.SIG_DFL, signal.default_int_handler):
            _state.taken[number] = handler
            signal.signal(number, _take)


@contextmanager
def deferred() -> Iterator[None]:
    """A signal waits inside: whoever opened this asks :func:`received`. Takes back signals that a library took."""
    for number in _state.taken:
        signal.signal(number, _take)
    _state.deferring += 1
    try:
        yield
    finally:
        _state.deferring -= 1


@contextmanager
def passed_on(observer: Callable[[int], None]) -> Iterator[None]:
    """``observer(number)`` hears of the signal, and of each repetition, inside; the signal itself waits."""
    _state.observers.append(observer)
    try:
        with deferred():
            yield
    finally:
        _state.observers.remove(observer)


def _take(number: int, frame: FrameType | None) -> None:
    again = _state.received is not None
    if again and time.monotonic() - _state.at < SECONDS_UNTIL_AGAIN:
        return
    if not again:
        _state.received, _state.at = signal.Signals(number), time.monotonic()
    for observer in _state.observers:
        observer(number)
    if again or not _state.deferring:
        raise Interrupted(_state.received or number)


@contextmanager
def blamed() -> Iterator[None]:
    """An error that a signal brought about (a worker process that died of it, a closed connection) is the signal's."""
    try:
        yield
    except Exception as error:  # libraries tell a process that died by many types: RuntimeError, OSError, their own
        if _state.received is None and _state.taken and any(part in str(error) for part in _OF_A_PROCESS):
            time.sleep(SECONDS_AFTER_ERROR)  # the signal, if there was one, raises in here
        if _state.received is None:
            raise
        raise Interrupted(_state.received) from error


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Helper processes that leave signals to this one; they are ended at once when the block ends by an error.

    Spawned, not forked: the caller may hold threads. Starting costs under a second.
    """
    # The process in which Python tracks semaphores would die of a hangup, with tracebacks: it inherits what is blocked.
    if hasattr(signal, "pthread_sigmask"):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
        try:
            resource_tracker.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=worker_process) as pool:
        try:
            yield pool
        except BaseException:
            end_children()  # the pool would finish what it began
            raise


def worker_process(*_: object) -> None:
    """What a helper process does first: leave signals to its parent, and end when that has died."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=end_with, args=(parent.pid if parent else os.getppid(),), daemon=True).start()


def end_with(parent: int | None) -> None:
    """End this process when its parent has died."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _silent(_: threading.ExceptHookArgs) -> None:
    return


def end_children() -> None:
    """End the processes that this one started with multiprocessing; threads that served them need not complain."""
    threading.excepthook = _silent
    children = multiprocessing.active_children()
    for child in children:
        child.kill()
    for child in children:
        child.join(1.0)
