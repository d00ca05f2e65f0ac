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


def device_of(accelerator: str) -> torch.device:
    """The device that ``trainer.accelerator`` names.

    Raises:
        ValueError: ``gpu`` where there is none.
    """
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("trainer.accelerator: gpu was asked for, but torch sees none; take auto or cpu")
    use_gpu = accelerator != "cpu" and torch.cuda.is_available()
    if use_gpu and processes.world_size() > 1:
        return torch.device("cuda", device_of_rank())
    return torch.device("cuda" if use_gpu else "cpu")


def processes_here(devices: int, accelerator: str) -> int:
    """How many processes ``devices`` means on this machine.

    Raises:
        ValueError: every GPU (-1) where there is none.
    """
    if devices != -1:
        return devices
    count = torch.cuda.device_count() if accelerator != "cpu" else 0
    if count == 0:
        raise ValueError("devices: -1 means every GPU, but torch sees none; name a number of processes, e.g. 2")
    return count


@contextmanager
def process_group(count: int) -> Iterator[None]:
    """Join the processes of a run that torchrun, SLURM or :func:`lime.distributed.launch.in_processes` started.

    Objects travel by gloo, gradients on GPUs by NCCL. Does nothing for a single process, or in a group that is there.

    Args:
        count: processes in all.

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
        torch.cuda.set_device(device_of_rank())
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
    if precision != "auto":
        return precision
    return "bf16-mixed" if on_gpu else "32-true"
