"""Options of training: optimiser, trainer, loggers and callbacks. Imports no model library."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class OptimConfig:
    """AdamW with one group for modulators and one for the update (method: modulators do not decay).

    Attributes:
        moe_lr: learning rate of the modulators and gamma.
        moe_weight_decay: weight decay of the modulators and gamma.
        peft_lr: learning rate of the PEFT parameters.
        peft_weight_decay: weight decay of the PEFT parameters.
        betas: decay rates of AdamW's two moments.
        eps: AdamW's epsilon.
        eight_bit: AdamW with its moments in 8 bits, by bitsandbytes.
        schedule: what the learning rates do after the warm-up, over the rest of the run.
        warmup_ratio: share of all optimiser steps in which the rates rise linearly from 0.
        min_lr_ratio: where linear and cosine end, as a share of the peak.
    """

    moe_lr: float = 1e-3
    moe_weight_decay: float = 0.0
    peft_lr: float = 4e-4
    peft_weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    eight_bit: bool = False
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = 0.03
    min_lr_ratio: float = 0.0

    def errors(self) -> list[str]:
        found = [
            f"optim.{name}: expected a number of at least 0, got {getattr(self, name)}"
            for name in ("moe_lr", "moe_weight_decay", "peft_lr", "peft_weight_decay")
            if getattr(self, name) < 0
        ]
        found += [
            f"optim.{name}: expected a share from 0 to 1, got {getattr(self, name)}"
            for name in ("warmup_ratio", "min_lr_ratio")
            if not 0 <= getattr(self, name) <= 1
        ]
        if not all(0 <= beta < 1 for beta in self.betas):
            found.append(f"optim.betas: expected two numbers in [0, 1), got {list(self.betas)}")
        if self.eps <= 0:
            found.append(f"optim.eps: expected a number above 0, got {self.eps}")
        if self.schedule == "constant" and self.min_lr_ratio != 0:
            found.append("optim.min_lr_ratio: has no effect with optim.schedule=constant; leave it at 0")
        return found


@dataclass
class TrainerConfig:
    """How long, on what and in which portions to train.

    Attributes:
        max_epochs: passes over the training rows.
        max_steps: optimiser steps after which training ends even within an epoch; null for no limit.
        batch_size: rows of one micro-batch on one device.
        accumulate_grad_batches: micro-batches of one optimiser step. The task loss of a step is the mean over all its
            answer tokens, the same for 1 x 8 and 4 x 2 rows; the balance losses are larger for smaller micro-batches
            (docs/method.md).
        gradient_clip_val: largest norm of the gradient; null for no clipping.
        accelerator: device kind; ``auto`` takes a GPU where there is one.
        devices: processes on each machine, with one GPU each where GPUs are used; -1 for every GPU there is.
        num_nodes: machines; each runs the same command under torchrun or SLURM.
        strategy: how processes share the work. ``auto``: one process, or ddp where there are several. ``ddp``: each
            holds the whole model. ``fsdp``: the frozen base is sharded over them, the adapters are whole in each.
            ``deepspeed``: DeepSpeed's stage 2.
        precision: Lightning's precision; ``auto`` is bf16-mixed on a GPU and 32-true (no autocast) on the CPU. The
            adapters' parameters are float32 in each; the backbone's dtype is model.dtype.
        gradient_checkpointing: recompute activations in the backward pass (less memory, more time).
        deterministic: only deterministic kernels on a GPU; those of a CPU are, with the same number of threads.
        num_threads: CPU threads of one process; null for all cores of the machine that this process may use.
        preflight: try batches of every phase before the first, and say whether the run fits and how long it takes.
        log_every_n_steps: optimiser steps between two rows of metrics.csv.
        validate_every_n_epochs: epochs between two validations on rows held out from training; null for none. Where
            max_steps ends training, there is one at its end too.
    """

    max_epochs: int = 1
    max_steps: int | None = None
    batch_size: int = 8
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = 1.0
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp", "deepspeed"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    gradient_checkpointing: bool = False
    deterministic: bool = True
    num_threads: int | None = None
    preflight: bool = True
    log_every_n_steps: int = 10
    validate_every_n_epochs: int | None = None

    def errors(self) -> list[str]:
        positive = ("max_epochs", "batch_size", "accumulate_grad_batches", "num_nodes", "log_every_n_steps")
        optional = ("max_steps", "num_threads", "validate_every_n_epochs")
        names = [*positive, *(name for name in optional if getattr(self, name) is not None)]
        found = [
            f"trainer.{name}: expected at least 1, got {getattr(self, name)}"
            for name in names
            if getattr(self, name) < 1
        ]
        if self.gradient_clip_val is not None and self.gradient_clip_val <= 0:
            found.append(
                f"trainer.gradient_clip_val: expected a norm above 0 (null for no clipping), "
                f"got {self.gradient_clip_val}"
            )
        if self.devices != -1 and self.devices < 1:
            found.append(f"trainer.devices: expected at least 1, or -1 for every GPU, got {self.devices}")
        if self.accelerator == "cpu" and self.devices == -1:
            found.append("trainer.devices: -1 means every GPU; with trainer.accelerator=cpu name a number of processes")
        if self.strategy in ("fsdp", "deepspeed") and self.devices * self.num_nodes == 1:
            found.append(
                f"trainer.strategy: {self.strategy} divides the model among processes, but there is one; "
                "raise trainer.devices or trainer.num_nodes, or take auto"
            )
        if self.accelerator == "cpu" and self.precision == "16-mixed":
            found.append("trainer.precision: 16-mixed needs a GPU; take bf16-mixed or 32-true on the CPU")
        return found


@dataclass
class CallbacksConfig:
    """What happens beside the training loop.

    Attributes:
        progress: show a progress bar with loss and time left.
        checkpoint: write checkpoints to resume from (adapter, optimiser, schedule, sampler; not the frozen base).
        checkpoint_every_n_steps: optimiser steps between two checkpoints; null for one at the end of each epoch.
        keep_checkpoints: how many of the newest checkpoints stay on disk.
    """

    progress: bool = True
    checkpoint: bool = True
    checkpoint_every_n_steps: int | None = None
    keep_checkpoints: int = 1

    def errors(self) -> list[str]:
        found = []
        if self.checkpoint_every_n_steps is not None and self.checkpoint_every_n_steps < 1:
            found.append(
                f"callbacks.checkpoint_every_n_steps: expected at least 1, got {self.checkpoint_every_n_steps}"
            )
        if self.keep_checkpoints < 1:
            found.append(f"callbacks.keep_checkpoints: expected at least 1, got {self.keep_checkpoints}")
        if not self.checkpoint and self.checkpoint_every_n_steps is not None:
            found.append("callbacks.checkpoint_every_n_steps: has no effect with callbacks.checkpoint=false")
        return found


@dataclass
class WandbConfig:
    """Weights & Biases.

    Attributes:
        project: project of the run.
        entity: team or user; null for the default of the login.
        group: name that groups runs; null for none.
        tags: labels of the run.
        mode: ``auto`` follows WANDB_MODE, else is online where somebody is logged in and offline elsewhere.
        samples: rows of the table of predictions, with their images.
    """

    project: str = "lime"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    samples: int = 47

    def errors(self) -> list[str]:
        return [] if self.samples >= 0 else [f"logger.wandb.samples: expected at least 0, got {self.samples}"]


@dataclass
class LoggerConfig:
    """Where metrics go besides metrics.csv, which every run writes.

    Attributes:
        wandb: settings of Weights & Biases; null for none.
    """

    wandb: WandbConfig | None = None
