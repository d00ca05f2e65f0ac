"""The LightningModule: task and balance loss of an adapted backbone, optimiser groups, and what a step measures."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

import lime.tuner
from lime.config.schema import BalanceConfig
from lime.config.training import OptimConfig
from lime.data.collate import model_inputs
from lime.distributed import processes
from lime.runs.checkpoints import check_same_tensors
from lime.training.loss import answer_loss_sum, answer_positions, normalise_gradients
from lime.training.metrics import Window
from lime.training.neftune import noisy_embeddings
from lime.training.optimizer import adamw, learning_rate_factor, optimizer_groups
from lime.tuner.layers.base import LimeLayer


@dataclass(frozen=True)
class StepLoss:
    """Losses of a micro-batch, summed over its answer tokens, and its routing statistics where there is any routing."""

    task: Tensor
    total: Tensor
    sums: dict[str, Tensor]
    routing: Any


class AdaptationModule(pl.LightningModule):
    """Trains the adapters of ``model``; everything else stays frozen.

    A step's loss is, over the answer tokens N of all its micro-batches i (each with n_i of them),

        L = (1 / N) sum_i [ sum_tokens -log p  +  n_i (alpha L_imp,i + beta L_KL,i) ],

    so that the task gradient does not depend on how the rows were cut into micro-batches and processes. The balance
    terms are those of each micro-batch's own mean load, and do depend on it (docs/method.md). Each micro-batch draws
    its routing noise and dropout from a generator seeded by (seed, rank, number of the micro-batch), so that a resumed
    run continues exactly and the number of data workers changes nothing.

    Args:
        model: a peft model with adapters.
        optim: optimiser options.
        balance: balance losses; None where the method has no experts.
        seed: seed of the run.
        backbone: name and fingerprint of the frozen backbone, written into checkpoints and compared when resuming.
        neftune_alpha: noise on the embeddings of the text (`lime.training.neftune`); None for none.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        balance: BalanceConfig | None,
        seed: int,
        backbone: dict[str, str],
        neftune_alpha: float | None = None,
    ):
        super().__init__()
        self.model = model
        self.optim = optim
        self.balance = balance
        self.seed = seed
        self.backbone = backbone
        self.neftune_alpha = neftune_alpha
        self.strict_loading = False  # checkpoints hold the adapters, not the frozen base
        self.window = Window()
        self._answer_tokens = 0  # of the accumulation window
        self._balance_from = 0  # optimiser step
        self._val_sums = [0.0, 0]
        self.grad_norm: Tensor | None = None
        self.learning_rates: dict[str, float] = {}
        self.last_loss: Tensor = torch.tensor(float("nan"))

    def on_fit_start(self) -> None:
        self.model.train()

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Leave the rows' texts behind, and find the answers while the labels are still on the CPU."""
        inputs = dict(model_inputs(batch))
        labels = inputs.pop("labels")
        positions, answer_tokens = answer_positions(labels)
        return {
            "inputs": inputs,
            "labels": labels,
            "positions": positions,
            "answer_tokens": answer_tokens,
            "rows": len(labels),
            "tokens": int(inputs["attention_mask"].sum()),
        }

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        ready = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        torch.manual_seed(_mix(self.seed, self.global_rank, ready))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        answer_tokens = batch["answer_tokens"]
        loss = self.loss(batch)
        if loss.routing is not None:
            self.window.add_routing(loss.routing)
        self.last_loss = loss.task.detach() / answer_tokens
        self.window.add(loss.sums, answer_tokens, batch["rows"], batch["tokens"])
        self._answer_tokens += answer_tokens
        # Lightning divides by the number of micro-batches; normalise_gradients divides by the answer tokens instead.
        return loss.total * self.trainer.accumulate_grad_batches

    def loss(self, batch: dict[str, Any]) -> StepLoss:
        """Task loss and, where the method has experts, balance loss of a training micro-batch; keeps nothing."""
        answer_tokens = batch["answer_tokens"]
        noise: Any = nullcontext()
        if self.neftune_alpha is not None:
            noise = noisy_embeddings(self.model, batch["inputs"], self.neftune_alpha)
        if self.balance is None:
            with noise:
                task = self._task_loss(batch)
            return StepLoss(task, task, {"loss/task": task, "loss/total": task}, None)
        with noise, lime.tuner.record(self.model) as recorder:
            task = self._task_loss(batch)
        total, sums = self._with_balance(task, recorder, answer_tokens)
        return StepLoss(task, total, sums, recorder.statistics())

    def _task_loss(self, batch: dict[str, Any]) -> Tensor:
        return answer_loss_sum(self.model, batch["inputs"], batch["labels"], batch["positions"])

    def _with_balance(self, task: Tensor, recorder: Any, answer_tokens: int) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.balance is not None
        step = self.global_step
        acts = step >= self._balance_from and step % self.balance.every_n_steps == 0
        with torch.set_grad_enabled(acts and torch.is_grad_enabled()):  # on the other steps the terms are only shown
            terms = recorder.balance()
        total = task
        if acts:
            weighted = self.balance.alpha * terms.importance + self.balance.beta * terms.kl
            total = task + answer_tokens * weighted
        sums = {
            "loss/task": task,
            "loss/importance": answer_tokens * terms.importance,
            "loss/kl": answer_tokens * terms.kl,
            "loss/total": total,
        }
        return total, sums

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        parameters = self.trainable_parameters()
        tokens = torch.tensor(float(self._answer_tokens), device=self.device)
        normalise_gradients(list(parameters.values()), tokens)
        self._answer_tokens = 0
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        self.grad_norm = torch.nn.utils.get_total_norm(gradients)
        self.learning_rates = {group["name"]: float(group["lr"]) for group in optimizer.param_groups}

    def on_validation_start(self) -> None:
        self.window.pause()

    def on_validation_end(self) -> None:
        self.window.resume()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._val_sums[0] += float(self._task_loss(batch))
        self._val_sums[1] += batch["answer_tokens"]

    def on_validation_epoch_end(self) -> None:
        sums = torch.tensor(self._val_sums, dtype=torch.float64, device=self.device)
        if processes.world_size() > 1:
            torch.distributed.all_reduce(sums)
        self._val_sums = [0.0, 0]
        self.log("val/loss", (sums[0] / sums[1]).float())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        options = self.optim
        described = optimizer_groups(self.model, options)
        # Kept before the optimiser and the scheduler write into these groups.
        self._described = [{key: value for key, value in group.items() if key != "params"} for group in described]
        optimizer = adamw(options)(described, betas=options.betas, eps=options.eps)
        total = int(self.trainer.estimated_stepping_batches)
        if self.balance is not None:
            self._balance_from = round(self.balance.start_ratio * total)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, total, options)
        )
        self._scheduler = scheduler
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Give a resumed run the learning rates that it would have here, had it never stopped.

        A checkpoint holds the rates and settings of the run that wrote it: at the end of a shorter run they are zero.
        """
        scheduler, options = self._scheduler, self.optim
        factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
        for group, described, factor in zip(scheduler.optimizer.param_groups, self._described, factors, strict=True):
            base = described["lr"]
            group.update(described, lr=base * factor, initial_lr=base, betas=tuple(options.betas), eps=options.eps)
        scheduler.base_lrs = [described["lr"] for described in self._described]
        scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def adapter_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds: the trainable parameters, and what the adapters drew at the start and keep.

        That is LoRA-FA's A, a prompt's first embeddings, the places of slices, and routing features.
        """
        tensors = self.state_dict(keep_vars=True)
        kept = set(self.trainable_parameters())
        for name, module in self.named_modules():
            if isinstance(module, LimeLayer):
                for part in module.adapter_layer_names:
                    kept |= {f"{name}.{part}.{key}" for key in getattr(module, part).state_dict()}
        return {name: tensor for name, tensor in tensors.items() if name in kept}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapters alone, and say which backbone they belong to."""
        checkpoint["state_dict"] = {name: checkpoint["state_dict"][name] for name in self.adapter_tensors()}
        checkpoint["backbone"] = self.backbone

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another backbone or other adapters."""
        trained_on = checkpoint.get("backbone")
        if trained_on != self.backbone:
            said = f"{trained_on['name']} ({trained_on['fingerprint'][:12]})" if trained_on else "an unknown backbone"
            raise ValueError(
                f"ckpt_path: the checkpoint belongs to {said}, this run adapts {self.backbone['name']} "
                f"({self.backbone['fingerprint'][:12]}); resume with the model it was trained on"
            )
        check_same_tensors("ckpt_path", checkpoint["state_dict"], self.adapter_tensors())
        for state in checkpoint.get("optimizer_states", ()):
            saved = [group.get("name") for group in state["param_groups"]]
            own = [group["name"] for group in optimizer_groups(self.model, self.optim)]
            if saved != own:
                raise ValueError(
                    f"ckpt_path: the checkpoint has learning rates for {', '.join(map(str, saved))}, this run for "
                    f"{', '.join(own)}; set the rates of optim.TOWER and optim.loraplus_ratio as there"
                )


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several small numbers (a splitmix-like mix)."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = ((state ^ number) * 0xBF58476D1CE4E5B9) % 2**64
        state ^= state >> 31
    return state % 2**63
