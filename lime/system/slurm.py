"""What a run needs to know of SLURM: whether it is a task of a job, and how the job goes back in its queue."""

from __future__ import annotations

import logging
import os
import re
import subprocess

log = logging.getLogger(__name__)


def under_slurm() -> bool:
    """Whether this process is a SLURM task (interactive shells do not count)."""
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def first_task() -> bool:
    """Whether this process speaks for its job: one of several tasks does."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def requeue() -> None:
    """Put this process's job, or its element of a job array, back in the queue; a failure is logged."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ.get("SLURM_JOB_ID", "")
    if not re.fullmatch(r"[0-9]+(_[0-9]+)?", job):
        log.error("SLURM_JOB_ID: expected a number, got %r: the job was not requeued; start it again by hand", job)
        return
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        log.error("scontrol cannot be run (%s): job %s was not requeued; start it again by hand", error, job)
        return
    if done.returncode:
        log.error("scontrol requeue %s failed: %s", job, done.stderr.strip())
    else:
        log.warning("job %s is back in the queue", job)
