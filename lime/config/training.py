"""Options of training: optimiser, trainer, loggers and callbacks. Imports no model library."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

from lime.system.checks import too_small

TOWERS = ("language_model", "vision_tower", "projector")
"""Towers that may have learning rates of their own."""


@dataclass
class TowerRates:
    """Learning rates of one tower, where they differ from those of all; null for those of all.

    Attributes:
        moe_lr: learning rate of its modulators and gamma.
        peft_lr: learning rate of its PEFT parameters.
    """

    moe_lr: float | None = None
    peft_lr: float | None = None


@dataclass
class OptimConfig:
    """AdamW with one group for modulators and one for the update (method: modulators do not decay).

    Attributes:
        moe_lr: learning rate of the modulators and gamma.
        moe_weight_decay: weight decay of the modulators and gamma.
        peft_lr: learning rate of the PEFT parameters.
        peft_weight_decay: weight decay of the PEFT parameters.
        language_model: rates of the language model.
        vision_tower: rates of the vision tower.
        projector: rates of the projector between them, also of one within the vision tower (Qwen2-VL's merger).
        loraplus_ratio: learning rate of B as a multiple of that of the other PEFT parameters (LoRA+, arXiv 2402.12354;
            there 16 is a good start), of the types that train both A and B; null for none.
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
    language_model: TowerRates = field(default_factory=TowerRates)
    vision_tower: TowerRates = field(default_factory=TowerRates)
    projector: TowerRates = field(default_factory=TowerRates)
    loraplus_ratio: float | None = None
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
            f"optim.{tower}.{name}: expected a number of at least 0, got {rate}"
            for tower in TOWERS
            for name, rate in vars(getattr(self, tower)).items()
            if rate is not None and rate < 0
        ]
        if self.loraplus_ratio is not None and self.loraplus_ratio <= 0:
            found.append(f"optim.loraplus_ratio: expected a number above 0, got {self.loraplus_ratio}")
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
        accelerator: device kind; ``auto`` takes a GPU of CUDA where there is one, ``mps`` is Apple's.
        devices: processes on each machine, with one GPU each where GPUs are used; -1 for every GPU there is; a list
            names the GPUs by their numbers, ``[0,2]``.
        num_nodes: machines; each runs the same command under torchrun or SLURM.
        strategy: how processes share the work. ``auto``: one process, or ddp where there are several. ``ddp``: each
            holds the whole model. ``fsdp``: the frozen base is sharded over them, the adapters are whole in each.
            ``deepspeed``: DeepSpeed's stage 2.
        precision: Lightning's precision; ``auto`` is bf16-mixed on a GPU and 32-true (no autocast) on the CPU. The
            backbone's dtype is model.dtype; bf16-true and 16-true are no autocast over a backbone of that dtype. The
            adapters' parameters, gradients and moments are float32 in each: a step of AdamW is smaller than bfloat16
            resolves.
        neftune_alpha: noise on the embeddings of the text in training, of at most this over the root of a row's text
            tokens times the embedding's width (NEFTune, arXiv 2310.05914; 5 to 15 there); null for none.
        gradient_checkpointing: recompute activations in the backward pass (less memory, more time).
        deterministic: deterministic kernels on a GPU, where torch has them: a warning names what has none. Those of a
            CPU are, with the same number of threads.
        num_threads: CPU threads of one process; null for all cores of the machine that this process may use.
        preflight: try batches of every phase before the first, and say whether the run fits and how long it takes.
        log_every_n_steps: optimiser steps between two rows of metrics.csv.
        validate_every_n_epochs: epochs between two validations on rows held out from training; null for none. Where
            max_steps ends training, there is one at its end too.
        val_check_interval: validations within an epoch: a share of its micro-batches (0.25: four of them), or a number
            of micro-batches, which then goes on over the ends of epochs unless validate_every_n_epochs is set; a
            multiple of accumulate_grad_batches. There is one at the end of training too. Null for none within.
        extra: any other argument of Lightning's Trainer, ``trainer.extra.limit_train_batches=0.5``; a value may be a
            ``_target_`` node, as of a profiler or plugin. What other options set is refused.
    """

    max_epochs: int = 1
    max_steps: int | None = None
    batch_size: int = 8
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = 1.0
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: int | list[int] = 1
    num_nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp", "deepspeed"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true"] = "auto"
    neftune_alpha: float | None = None
    gradient_checkpointing: bool = False
    deterministic: bool = True
    num_threads: int | None = None
    preflight: bool = True
    log_every_n_steps: int = 10
    validate_every_n_epochs: int | None = None
    val_check_interval: int | float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def processes(self) -> int:
        """Processes on each machine; -1 for as many as there are GPUs."""
        return len(self.devices) if isinstance(self.devices, list) else self.devices

    @property
    def validates(self) -> bool:
        """Whether there are validations."""
        return self.validate_every_n_epochs is not None or self.val_check_interval is not None

    def errors(self) -> list[str]:
        counts = ("max_epochs", "max_steps", "batch_size", "accumulate_grad_batches", "num_nodes", "num_threads",
                  "log_every_n_steps", "validate_every_n_epochs")  # fmt: skip
        found = too_small(self, "trainer", dict.fromkeys(counts, 1))
        if self.gradient_clip_val is not None and self.gradient_clip_val <= 0:
            found.append(
                f"trainer.gradient_clip_val: expected a norm above 0 (null for no clipping), "
                f"got {self.gradient_clip_val}"
            )
        if self.neftune_alpha is not None and self.neftune_alpha <= 0:
            found.append(f"trainer.neftune_alpha: expected a number above 0, or null, got {self.neftune_alpha}")
        if self.strategy in ("fsdp", "deepspeed") and self.processes * self.num_nodes == 1:
            found.append(
                f"trainer.strategy: {self.strategy} divides the model among processes, but there is one; "
                "raise trainer.devices or trainer.num_nodes, or take auto"
            )
        if self.accelerator == "cpu" and self.precision == "16-mixed":
            found.append("trainer.precision: 16-mixed needs a GPU; take bf16-mixed or 32-true on the CPU")
        return found + self._device_errors() + self._interval_errors()

    def _device_errors(self) -> list[str]:
        devices, without = self.devices, self.accelerator in ("cpu", "mps")
        if isinstance(devices, list):
            if without:
                return [f"trainer.devices: a list names GPUs; trainer.accelerator={self.accelerator} takes a number"]
            if not devices or min(devices) < 0 or len(set(devices)) < len(devices):
                return [f"trainer.devices: expected different numbers of GPUs, from 0, got {devices}"]
        elif devices != -1 and devices < 1:
            return [f"trainer.devices: expected at least 1, or -1 for every GPU, got {devices}"]
        elif devices == -1 and without:
            kind = f"trainer.accelerator={self.accelerator}"
            return [f"trainer.devices: -1 means every GPU; with {kind} name a number of processes"]
        elif self.accelerator == "mps" and devices != 1:
            return [f"trainer.devices: mps is one device, got {devices}"]
        return []

    def _interval_errors(self) -> list[str]:
        interval = self.val_check_interval
        if isinstance(interval, int) and (interval < 1 or interval % max(1, self.accumulate_grad_batches)):
            return [
                "trainer.val_check_interval: expected a number of micro-batches that is a multiple of "
                f"trainer.accumulate_grad_batches ({self.accumulate_grad_batches}), or a share below 1, got {interval}"
            ]
        if isinstance(interval, float) and not 0 < interval <= 1:
            return [f"trainer.val_check_interval: expected a share of an epoch, above 0 and up to 1, got {interval}"]
        return []


@dataclass
class CallbacksConfig:
    """What happens beside the training loop.

    Attributes:
        progress: show a progress bar with loss and time left.
        checkpoint: write checkpoints to resume from (adapter, optimiser, schedule, sampler; not the frozen base).
        checkpoint_every_n_steps: optimiser steps between two checkpoints; null for one at the end of each epoch.
        keep_checkpoints: how many of the newest checkpoints stay on disk.
        keep_best: how many checkpoints with the lowest validation loss stay on disk, ``checkpoints/best-step-N.ckpt``.
        weights: what is saved as the adapter and evaluated: the ``last`` weights, or the ``best`` by validation loss.
        early_stopping: validations in a row without a lower loss after which training ends; null for none.
        min_delta: what a validation loss must fall by to count as lower, for early_stopping.
        extra: callbacks of your own, a list of ``_target_`` nodes of subclasses of Lightning's Callback, as in
            ``callbacks.extra=[{_target_:my_module.MyCallback,some_argument:3}]``.
    """

    progress: bool = True
    checkpoint: bool = True
    checkpoint_every_n_steps: int | None = None
    keep_checkpoints: int = 1
    keep_best: int = 0
    weights: Literal["last", "best"] = "last"
    early_stopping: int | None = None
    min_delta: float = 0.0
    extra: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best(self) -> int:
        """How many of the best checkpoints are kept; the evaluation of the best weights needs one."""
        return max(self.keep_best, int(self.weights == "best"))

    def errors(self) -> list[str]:
        found = target_errors("callbacks.extra", self.extra)
        least = {"keep_best": 0, "early_stopping": 1, "checkpoint_every_n_steps": 1, "keep_checkpoints": 1}
        found += too_small(self, "callbacks", least)
        if self.min_delta < 0:
            found.append(f"callbacks.min_delta: expected a number of at least 0, got {self.min_delta}")
        if self.min_delta and self.early_stopping is None:
            found.append("callbacks.min_delta: has no effect without callbacks.early_stopping")
        if self.best and not self.checkpoint:
            key = "weights=best" if self.weights == "best" else "keep_best"
            found.append(f"callbacks.{key}: needs checkpoints; leave callbacks.checkpoint=true")
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
        return too_small(self, "logger.wandb", {"samples": 0})


@dataclass
class LoggerConfig:
    """Where metrics go besides metrics.csv, which every run writes.

    Attributes:
        wandb: settings of Weights & Biases; null for none.
        tensorboard: event files in the run's folder ``tensorboard``.
        extra: loggers of your own, a list of ``_target_`` nodes of Lightning's loggers or of classes with a method
            ``log_metrics(metrics, step)``.
    """

    wandb: WandbConfig | None = None
    tensorboard: bool = False
    extra: list[dict[str, Any]] = field(default_factory=list)

    def errors(self) -> list[str]:
        found = target_errors("logger.extra", self.extra)
        if self.tensorboard and find_spec("tensorboard") is None:
            found.append(
                "logger.tensorboard: needs tensorboard, which is not installed; `pip install 'lime-moe[tensorboard]'`, "
                "or take logger=csv"
            )
        return found


def target_errors(key: str, nodes: list[dict[str, Any]]) -> list[str]:
    """Entries of a list of ``_target_`` nodes that name no class."""
    return [
        f"{key}[{number}]: expected _target_, the class as module.Class, among its keys ({', '.join(node) or 'none'})"
        for number, node in enumerate(nodes)
        if not isinstance(node.get("_target_"), str) or "." not in node["_target_"]
    ]
