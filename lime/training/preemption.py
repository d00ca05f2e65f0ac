"""When SLURM is about to take the machine away: save at the end of the optimiser step, put the job back in its queue.

    #SBATCH --requeue --signal=SIGUSR1@120

tells SLURM to send the signal two minutes before. Lightning's own handler saves wherever the signal finds it, in the
middle of an accumulation window too, which no run can resume exactly; here the step is finished first.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import SLURMEnvironment

from lime.training import processes

log = logging.getLogger(__name__)

SIGNAL = signal.SIGUSR1


class PreemptionCallback(Callback):
    """Save and requeue on SIGUSR1, then end the run; the requeued job resumes by itself (``ckpt_path=auto``).

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._asked = False
        self._before: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before = signal.signal(SIGNAL, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate() or not any(processes.gather(self._asked)):
            return
        path = self._folder / "checkpoints" / f"step-{trainer.global_step}.ckpt"
        trainer.save_checkpoint(path)
        log.warning("SLURM takes the machine away: saved %s", path)
        if trainer.is_global_zero:
            requeue()
        raise SystemExit(0)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._before is not None:
            signal.signal(SIGNAL, self._before)
            self._before = None


def under_slurm() -> bool:
    """Whether this process is a SLURM task (interactive shells do not count)."""
    return bool(SLURMEnvironment.detect())


def requeue() -> None:
    """Put this process's job, or its element of a job array, back in the queue; a failure is logged."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    if not re.fullmatch(r"[0-9_-]+", job):
        raise ValueError(f"SLURM_JOB_ID: expected a number, got {job!r}")
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        log.error("scontrol is not on the PATH: job %s was saved but not requeued; start it again by hand", job)
        return
    if done.returncode:
        log.error("scontrol requeue %s failed: %s", job, done.stderr.strip())
    else:
        log.warning("job %s is back in the queue", job)
