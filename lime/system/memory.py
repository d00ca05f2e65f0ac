"""Memory of a process and of its machine: what is used, what it peaked at, what is left."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from pathlib import Path

import psutil
import torch

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

MB = 1e6


def resident_mb() -> float:
    """Resident set of this process in MB."""
    return psutil.Process().memory_info().rss / MB


def peak_memory_mb() -> float:
    """Peak in MB since :func:`forget_peak`: of the GPU where one is used, else of this process's resident set."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / MB
    return peak_resident_mb()


def forget_peak() -> None:
    """Begin a new peak at what is in use now. The resident set's stays that of the whole process outside Linux."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_resident_mb() -> float:
    """Peak of the resident set in MB: since :func:`forget_peak`, or since this process started."""
    with contextlib.suppress(OSError):  # psutil does not tell it on Linux
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / MB
    if resource is None:
        return psutil.Process().memory_info().peak_wset / MB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MB if sys.platform == "darwin" else peak * 1024 / MB


def available_mb(device: torch.device) -> float:
    """MB that this process may still take: of the GPU, else of the machine, its control group or the limits of the
    process itself (`ulimit -v`, `ulimit -d`)."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + cached) / MB
    return min([psutil.virtual_memory().available / MB, *_group_mb(), *_process_mb()])


def _group_mb() -> list[float]:
    """What the control group (a container, a SLURM job) leaves, where it has a limit."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError):
            total, now = Path(limit).read_text().strip(), Path(used).read_text().strip()
            if total.isdigit() and int(total) < 2**60:
                return [(int(total) - int(now)) / MB]
    return []


def _process_mb() -> list[float]:
    """What the limits of this process's address space and of its data leave, where there are any."""
    if resource is None:
        return []
    used = psutil.Process().memory_info()
    pairs = [(used.vms, resource.RLIMIT_AS), (getattr(used, "data", 0), resource.RLIMIT_DATA)]
    limits = [(now, resource.getrlimit(which)[0]) for now, which in pairs]
    return [max(0.0, (limit - now) / MB) for now, limit in limits if limit != resource.RLIM_INFINITY]


class Peak:
    """Peak memory while a block runs: of the GPU's allocator, else of the resident set, read every millisecond.

    Attributes:
        mb: the peak in MB.
        before: what was in use when the block began, in MB.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.mb = self.before = 0.0

    def __enter__(self) -> Peak:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device) / MB
            return self
        self.before = self.mb = resident_mb()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.mb = torch.cuda.max_memory_allocated(self.device) / MB
            return
        self._ends.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ends.is_set():
            self.mb = max(self.mb, resident_mb())
            time.sleep(0.001)
