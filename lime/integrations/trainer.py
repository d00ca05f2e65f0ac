"""LiME with the `Trainer` of transformers: `LimeTrainingArguments` and `LimeTrainer`.

    args = LimeTrainingArguments(output_dir="out", moe_lr=1e-3, peft_lr=4e-4)
    LimeTrainer(model=model, args=args, train_dataset=rows, data_collator=collate).train()

`model` is whatever `lime.apply` returned: LiME over any PEFT type, or a PEFT type alone (no balance losses then).
"""

from __future__ import annotations

import dataclasses
import logging
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.trainer_optimizer import is_optimizer_factory

import lime.tuner
from lime.config.training import OptimConfig
from lime.training.optimizer import optimizer_groups

log = logging.getLogger(__name__)


@dataclass
class LimeTrainingArguments(TrainingArguments):
    """Arguments of transformers' `Trainer` and those of LiME.

    Attributes:
        moe_lr: learning rate of modulators, gammas and learned routers.
        peft_lr: learning rate of the PEFT parameters (and of `modules_to_save`).
        moe_weight_decay: weight decay of the modulators' group. That of the PEFT group is `weight_decay`.
        loraplus_ratio: learning rate of B as a multiple of `peft_lr` (LoRA+); nothing for none.
        importance_coef: alpha of `L = L_task + alpha L_imp + beta L_KL` (Eq. 5).
        kl_coef: beta of the same.
        balance_every_n_steps: apply both on one optimiser step in this many.

    `weight_decay` is 0.01 and `warmup_steps` 0.03 (a share of all steps) unless given. `learning_rate` has no effect
    and is refused.

    Raises:
        ValueError: an argument out of range, or `learning_rate`.
    """

    moe_lr: float = field(default=1e-3, metadata={"help": "Learning rate of modulators, gammas, learned routers."})
    peft_lr: float = field(default=4e-4, metadata={"help": "Learning rate of the PEFT parameters."})
    moe_weight_decay: float = field(default=0.0, metadata={"help": "Weight decay of the modulators' group."})
    loraplus_ratio: float | None = field(default=None, metadata={"help": "LoRA+: rate of B by that of A."})
    importance_coef: float = field(default=0.1, metadata={"help": "Coefficient of the importance loss."})
    kl_coef: float = field(default=0.01, metadata={"help": "Coefficient of the KL loss."})
    balance_every_n_steps: int = field(default=1, metadata={"help": "Balance losses on one step in this many."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of the PEFT parameters."})
    warmup_steps: float = field(default=0.03, metadata={"help": "Warm-up: a share of all steps below 1, else steps."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.dataloader_pin_memory &= torch.accelerator.is_available()  # else torch warns, within the bar
        wrong = [
            f"{name}: expected at least 0, got {getattr(self, name)}"
            for name in ("moe_lr", "peft_lr", "moe_weight_decay", "importance_coef", "kl_coef")
            if getattr(self, name) < 0
        ]
        if self.loraplus_ratio is not None and self.loraplus_ratio <= 0:
            wrong.append(f"loraplus_ratio: expected a number above 0, got {self.loraplus_ratio}")
        if self.balance_every_n_steps < 1:
            wrong.append(f"balance_every_n_steps: expected at least 1, got {self.balance_every_n_steps}")
        default = next(f.default for f in dataclasses.fields(TrainingArguments) if f.name == "learning_rate")
        if self.learning_rate != default:
            wrong.append("learning_rate: has no effect, the two groups have moe_lr and peft_lr; set those")
        if wrong:
            raise ValueError("invalid LimeTrainingArguments:\n" + "\n".join(f"  {line}" for line in wrong))


_BALANCE = ("importance_coef", "kl_coef", "balance_every_n_steps", "moe_lr", "moe_weight_decay")


class LimeTrainer(Trainer):
    """The `Trainer` of transformers with LiME's optimiser groups, balance losses and expert statistics.

    An optimiser step over micro-batches i with n_i label tokens each, N in all, minimises

        L = (1 / N) sum_i [ sum_tokens -log p  +  n_i (alpha L_imp,i + beta L_KL,i) ],

    so the task term does not depend on how the rows were cut into micro-batches or processes. The balance terms do:
    they are those of each micro-batch's mean load, which is less even than the step's (docs/method.md has the size); in
    any number of like micro-batches they are those of one. (Models that do not normalise their own loss over the
    accumulated batch, as Qwen2-VL, get it from here.) Where labels cannot be counted, each micro-batch counts the same.

    Every training log has, besides the Trainer's, `loss/task`, `loss/importance`, `loss/kl`, `routing/entropy` (nats),
    `routing/experts_active` (per token), `routing/usage_<i>` (share of tokens to whose modulation expert i contributes,
    mean over layers), `lr/modulators` and `lr/peft`. `last_routing` holds the statistics by layer of the last log.
    `eval_loss` is the mean over label tokens.

    Raises:
        TypeError: `args` are not `LimeTrainingArguments`.
        ValueError: reentrant activation checkpointing, several GPUs in one process (`nn.DataParallel`), or an
            optimiser that makes its own parameter groups.
    """

    args: LimeTrainingArguments
    last_routing: lime.tuner.RoutingStatistics | None = None

    def __init__(self, model: Any = None, args: LimeTrainingArguments | None = None, **kwargs: Any):
        if not isinstance(args, LimeTrainingArguments):
            raise TypeError(f"args: expected LimeTrainingArguments, got {type(args).__name__}")
        super().__init__(model=model, args=args, **kwargs)
        self._sums: dict[str, Tensor] = {}
        self._routing: lime.tuner.RoutingStatistics | None = None
        self._window_start: int | None = None
        self._rates: dict[str, float] = {}
        self._evaluated: list[Tensor] = []
        if self.compute_loss_func is None and not self.model_accepts_loss_kwargs and self._loss_shifts_labels:
            self.compute_loss_func = causal_loss
        if lime.tuner.has_routing(self._model()):
            self._check_routing()
        else:
            default = {f.name: f.default for f in dataclasses.fields(LimeTrainingArguments)}
            idle = [name for name in _BALANCE if getattr(args, name) != default[name]]
            if idle:
                log.warning("the model has no LiME layers, so these have no effect: %s", ", ".join(idle))

    def _model(self) -> nn.Module:
        assert isinstance(self.model, nn.Module)
        return self.model

    def _check_routing(self) -> None:
        options: Any = self.args.activation_checkpointing_kwargs or {}
        if self.args.activation_checkpointing and options.get("use_reentrant"):
            raise ValueError(
                "activation_checkpointing_kwargs: LiME needs non-reentrant checkpointing; the reentrant kind gives "
                'wrong gradients and no error; set {"use_reentrant": False}'
            )
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs in one process (nn.DataParallel): routing is recorded by process; start one "
                "process per GPU with torchrun or accelerate launch, or show one GPU only (CUDA_VISIBLE_DEVICES)"
            )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimiser that `args.optim` names, with the groups `modulators` and `peft`."""
        if self.optimizer is None:
            model = self._model() if model is None else model
            if self.optimizer_cls_and_kwargs is not None:
                cls, options = self.optimizer_cls_and_kwargs
            else:
                cls, options = self.get_optimizer_cls_and_kwargs(self.args, model)  # type: ignore[arg-type]
            if is_optimizer_factory(cls) or {"params", "model", "optimizer_dict"} & options.keys():
                raise ValueError(
                    f"optim: {self.args.optim} makes its own parameter groups; take another, e.g. adamw_torch"
                )
            self.optimizer = cls(self._groups(model), **options)
        return super().create_optimizer(model)

    def _groups(self, model: nn.Module) -> list[dict[str, Any]]:
        args = self.args
        return optimizer_groups(
            model,
            OptimConfig(
                moe_lr=args.moe_lr,
                moe_weight_decay=args.moe_weight_decay,
                peft_lr=args.peft_lr,
                peft_weight_decay=args.weight_decay,
                loraplus_ratio=args.loraplus_ratio,
            ),
        )

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's loss plus this micro-batch's share of the balance losses."""
        if not model.training:
            return self._evaluation_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._window_start is None:
            self._window_start = self.state.global_step
        share, scale = self._share(inputs, num_items_in_batch)
        # a share of 1 is of a step's mean over its micro-batches
        weight = 1 / self.current_gradient_accumulation_steps if isinstance(share, int) else 1.0
        routed = lime.tuner.has_routing(self._model())
        with lime.tuner.record(self._model()) if routed else nullcontext() as recorder:
            task, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = task
        self._add({"loss/task": task}, weight)
        if recorder is not None:
            terms, statistics = recorder.balance(), recorder.statistics()
            if self.state.global_step % self.args.balance_every_n_steps == 0:
                loss = task + share * scale * terms.total(self.args.importance_coef, self.args.kl_coef)
            self._add({"loss/importance": terms.importance, "loss/kl": terms.kl}, share * scale * weight)
            self._routing = statistics if self._routing is None else self._routing + statistics
        return (loss, outputs) if return_outputs else loss

    def _share(self, inputs: dict[str, Any], num_items: Any) -> tuple[Any, int]:
        """Share of this micro-batch in its process's optimiser step, and the factor by which the Trainer multiplies
        a loss whose gradients are averaged over processes.

        A share of 1 is one that the Trainer divides by the number of micro-batches afterwards.
        """
        if not self._is_scaled(num_items):
            return 1, 1
        if num_items is None:
            return 1 / self.current_gradient_accumulation_steps, 1
        return self._label_tokens(inputs) / num_items, self._process_scale()

    def _label_tokens(self, inputs: dict[str, Any]) -> Tensor:
        """Number of labels of a batch that its loss is over, scalar."""
        if "shift_labels" in inputs:
            labels = inputs["shift_labels"]
        else:
            labels = inputs["labels"][..., 1:] if self._loss_shifts_labels else inputs["labels"]
        return labels.ne(-100).sum()

    def _process_scale(self) -> int:
        """What the Trainer multiplies a loss by that it divides by the labels of all processes."""
        return self.accelerator.num_processes // self.get_tp_size() if self.args.average_tokens_across_devices else 1

    def _is_scaled(self, num_items: Any) -> bool:
        """Whether the Trainer takes a loss as normalised over the whole accumulated batch."""
        if self.loss_is_scaled_for_ga is not None:
            return bool(self.loss_is_scaled_for_ga)
        return (self.model_accepts_loss_kwargs and num_items is not None) or self.compute_loss_func is not None

    def _evaluation_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool, num_items: Any) -> Any:
        """The Trainer's loss of a batch, whose sum over label tokens is kept."""
        counted = isinstance(inputs.get("labels"), Tensor) or "shift_labels" in inputs
        count = self._label_tokens(inputs) if counted else None  # the Trainer may take the labels out
        loss, outputs = super().compute_loss(model, inputs, True, num_items)
        if count is not None:
            total = loss.detach().float() * (count if num_items is None else num_items / self._process_scale())
            self._evaluated.append(torch.stack([torch.where(count > 0, total, 0.0), count]))  # no label: no mean
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """The Trainer's, with `eval_loss` the mean over all label tokens, as `val/loss` of `train.py`.

        The Trainer's own averages the means of batches by rows: a row with a short answer counts as much as one with a
        long one, and the batch size changes the number. (Over several processes, a row that a process is given again
        so that all have as many counts again. Where labels cannot be counted, the Trainer's number stays.)
        """
        self._evaluated = []
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
        )
        if self._evaluated:
            sums = torch.stack(self._evaluated).cpu().double().sum(0)  # not every device has float64
            if self.accelerator.num_processes > 1:
                sums = self.accelerator.reduce(sums.to(self.accelerator.device), reduction="sum")
            total, tokens = sums.tolist()
            assert output.metrics is not None
            output.metrics[f"{metric_key_prefix}_loss"] = total / tokens if tokens else float("nan")
        return output

    def _add(self, values: dict[str, Tensor], weight: Any) -> None:
        for name, value in values.items():
            value = value.detach().float() * weight
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        if self.optimizer is not None:
            self._rates = {f"lr/{g['name']}": float(g["lr"]) for g in self.optimizer.param_groups if "name" in g}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add losses, expert statistics and learning rates to the logs of training."""
        if "loss" in logs and self._sums:
            logs = {**logs, **self._window()}
        super().log(logs, start_time)

    def _window(self) -> dict[str, float]:
        """Means since the last log, over all processes, and a fresh start."""
        steps = max(1, self.state.global_step - (self._window_start or 0))
        values = {name: total / steps for name, total in self._sums.items()}
        if self._routing:
            values |= _routing_means(self._routing)
        together = self.accelerator.reduce(torch.stack([value.float() for value in values.values()]), reduction="mean")
        self.last_routing, self._routing, self._sums = self._routing, None, {}
        self._window_start = self.state.global_step
        return dict(zip(values, together.tolist(), strict=True)) | self._rates


def causal_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """`sum_tokens -log p / num_items_in_batch` of a causal language model; scalar.

    Args:
        outputs: with `logits` (B, T, V); leading positions that have no label (virtual tokens) are left out.
        labels: (B, T), -100 where there is none.
    """
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    logits = logits[:, -labels.shape[1] :]
    return ForCausalLMLoss(logits, labels, logits.shape[-1], num_items_in_batch=num_items_in_batch)


def _routing_means(statistics: lime.tuner.RoutingStatistics) -> dict[str, Tensor]:
    means = {
        "routing/entropy": statistics.mean(lambda layer: layer.entropy),
        "routing/experts_active": statistics.mean(lambda layer: layer.experts_per_token),
    }
    widths = {layer.usage.shape[0] for layer in statistics.values()}
    if len(widths) == 1:
        usage = torch.stack([layer.usage for layer in statistics.values()]).mean(0)
        means |= {f"routing/usage_{i}": share for i, share in enumerate(usage.unbind())}
    return means
