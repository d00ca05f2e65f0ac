"""Which device a process computes on, how many processes there are, and the group that they form."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from lime.distributed import processes
from lime.distributed.launch import started_from_outside


def device_of(accelerator: str, devices: int | list[int] = 1) -> torch.device:
    """The device of this process that ``trainer.accelerator`` and, where it is a list, ``trainer.devices`` name.

    Raises:
        ValueError: ``gpu``, ``mps`` or a numbered GPU where there is none.
    """
    there = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(accelerator, True):
        raise ValueError(f"trainer.accelerator: {accelerator} was asked for, but torch sees none; take auto or cpu")
    if isinstance(devices, list):
        if max(devices) >= torch.cuda.device_count():
            raise ValueError(f"trainer.devices: {devices} names GPUs, of which torch sees {torch.cuda.device_count()}")
        return torch.device("cuda", devices[device_of_rank()])
    use_gpu = accelerator in ("auto", "gpu") and torch.cuda.is_available()
    if use_gpu and processes.world_size() > 1:
        return torch.device("cuda", device_of_rank())
    return torch.device("cuda" if use_gpu else "mps" if accelerator == "mps" else "cpu")


def processes_here(devices: int | list[int], accelerator: str) -> int:
    """How many processes ``devices`` means on this machine.

    Raises:
        ValueError: every GPU (-1) where there is none.
    """
    if isinstance(devices, list):
        return len(devices)
    if devices != -1:
        return devices
    count = torch.cuda.device_count() if accelerator != "cpu" else 0
    if count == 0:
        raise ValueError("devices: -1 means every GPU, but torch sees none; name a number of processes, e.g. 2")
    return count


@contextmanager
def process_group(count: int, devices: int | list[int] = 1) -> Iterator[None]:
    """Join the processes of a run that torchrun, SLURM or :func:`lime.distributed.launch.in_processes` started.

    Objects travel by gloo, gradients on GPUs by NCCL. Does nothing for a single process, or in a group that is there.

    Args:
        count: processes in all.
        devices: ``trainer.devices``; a list names the GPUs of this machine's processes.

    Raises:
        ValueError: another number of processes was started.
    """
    from lightning.fabric.plugins.environments import SLURMEnvironment  # seconds: not for a process that is alone

    environment = SLURMEnvironment() if started_from_outside() and "RANK" not in os.environ else None
    started = environment.world_size() if environment else int(os.environ.get("WORLD_SIZE", "1"))
    if torch.distributed.is_initialized() or (started == 1 and count == 1):
        yield
        return
    if started != count:
        raise ValueError(
            f"trainer.devices x trainer.num_nodes: {count} processes were configured, but {started} were started; "
            "set both to what torchrun (--nproc-per-node, --nnodes) or SLURM (--ntasks-per-node, --nodes) was given"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(device_of("gpu", devices) if isinstance(devices, list) else device_of_rank())
    where: dict[str, Any] = {}
    if environment is not None:
        address = f"tcp://{environment.main_address}:{environment.main_port}"
        where = {"init_method": address, "rank": environment.global_rank(), "world_size": started}
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, timeout=timedelta(hours=2), **where)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def device_of_rank() -> int:
    """Number of this process's GPU on its machine."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))


def resolved_precision(precision: str, on_gpu: bool) -> str:
    """Lightning's precision for ``trainer.precision``: ``auto`` is bf16-mixed on a GPU and 32-true on the CPU."""
    if precision in ("bf16-true", "16-true"):
        # The backbone is loaded so. Lightning's own would cast the adapters, and buffers that the loader keeps wide.
        return "32-true"
    if precision != "auto":
        return precision
    return "bf16-mixed" if on_gpu else "32-true"
