"""Before a run's first phase: does every phase fit, and how long will it take?

Batches of each phase are tried (`lime.training.preflight.trials`) without an optimiser step. Random states, gradients
and modes are put back, so that the run that follows is the same to the last bit.
"""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lime.config.identity import config_hash
from lime.config.schema import TrainConfig
from lime.data.datamodule import MMTDataModule
from lime.distributed import processes
from lime.distributed.devices import resolved_precision
from lime.system.atomic import write_json
from lime.system.memory import MB, available_mb, resident_mb
from lime.training.module import AdaptationModule
from lime.training.preflight.phases import Phase, answering_phase, sampler, training_phase
from lime.training.preflight.trials import ADVICE, Trial, Trials, duration
from lime.tuner.reporting import count

log = logging.getLogger(__name__)

ADAM_BYTES = 8  # two float32 moments a trainable parameter


@dataclass(frozen=True)
class PhaseVerdict:
    """Predicted seconds and peak MB of one phase."""

    name: str
    seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Preflight:
    """What a run will need.

    Attributes:
        device: cpu or cuda.
        parameters, trainable: of the adapted model.
        weights_mb, optimizer_mb: of all parameters, and of AdamW's moments.
        media_mb: what the resized media kept in memory will still grow by.
        phases: each phase of the run, in order.
        peak_mb: the largest of their peaks: of the process on the CPU, of torch's allocator on a GPU.
        available_mb: what the device leaves to this process beyond what it holds now; None if unknown.
        needed_mb: how much of that the run takes.
        trials: the heaviest batches.
        steps_per_epoch: optimiser steps of one process.
        epoch_seconds: time of an epoch's forward and backward passes.
        epochs_seconds: the same for all epochs.
        run_seconds: of all phases.
        own_seconds: what the preflight itself took.
        sample: a row of the heaviest modality, with the tokens of its prompt and answer and those of its answer.
    """

    device: str
    parameters: int
    trainable: int
    weights_mb: float
    optimizer_mb: float
    media_mb: float
    phases: list[PhaseVerdict]
    peak_mb: float
    available_mb: float | None
    needed_mb: float
    trials: list[Trial]
    steps_per_epoch: int
    epoch_seconds: float
    epochs_seconds: float
    run_seconds: float
    own_seconds: float
    sample: dict[str, Any]

    @property
    def fits(self) -> bool:
        """Whether the run needs no more than is there. True where the system does not say what is there."""
        return self.available_mb is None or self.needed_mb <= self.available_mb

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "fits": self.fits}

    def lines(self) -> list[str]:
        """The verdict in words."""
        left = "unknown" if self.available_mb is None else f"{self.available_mb:,.0f} MB"
        times = ", ".join(f"{phase.name} {duration(phase.seconds)}" for phase in self.phases)
        memory = ", ".join(f"{phase.name} {phase.peak_mb:,.0f} MB" for phase in self.phases)
        return [
            f"{self.parameters:,} parameters ({self.weights_mb:,.1f} MB), {self.trainable:,} trainable, "
            f"{self.optimizer_mb:,.1f} MB for AdamW",
            *(
                f"heaviest {one.modality} batch of {one.phase}: {one.rows} rows of {one.tokens} tokens, peak "
                f"{one.peak_mb:,.0f} MB" + (f" (by {one.tried} of the rows)" if one.tried < one.rows else "")
                for one in self.trials
            ),
            f"row {self.sample['row']}, for one, takes {self.sample['tokens']} tokens, "
            f"{self.sample['answer_tokens']} of them for its answer",
            f"predicted peak {self.peak_mb:,.0f} MB on the {self.device} ({memory}); {self.needed_mb:,.0f} MB more "
            f"than now, available {left}: {'it fits' if self.fits else 'it does NOT fit'}",
            f"the run takes about {duration(self.run_seconds)}: {times}; an epoch has {self.steps_per_epoch:,} steps",
        ]


def preflight(
    module: AdaptationModule,
    data: MMTDataModule,
    device: torch.device,
    *,
    precision: str = "32-true",
    epochs: int = 1,
    max_steps: int | None = None,
    accumulate: int = 1,
    others: Sequence[tuple[Phase, bool]] = (),
) -> Preflight:
    """Tries batches of each phase, and predicts peak memory and time.

    Args:
        module: the model with its adapters, on `device`.
        data: set up for training.
        device: where it runs.
        precision: Lightning's precision.
        epochs, max_steps, accumulate: as in the trainer.
        others: phases of answers, and whether each comes before training.

    Raises:
        ValueError: a batch does not fit; the message says what to lower.
    """
    steps = -(-sum(1 for _ in sampler(data).batches(0)) // accumulate)
    share = epochs if max_steps is None else min(epochs, max_steps / steps)
    training = training_phase(module, data, device, precision, share)
    phases = [*(phase for phase, first in others if first), training, *(phase for phase, first in others if not first)]
    trials = Trials(phases, device)
    with _untouched(module, device):
        before = resident_mb()
        trials.probe()
        level = resident_mb()
        trials.heaviest()
        trials.usual()
        if device.type == "cpu":
            trials.ordinary(module, data, precision, training, math.ceil(share))
    parameters = list(module.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    optimizer = ADAM_BYTES * trainable / MB
    media = _media_growth(data) if device.type == "cpu" else 0.0
    held = before if device.type == "cpu" else torch.cuda.memory_allocated(device) / MB
    verdicts = _verdicts(phases, level, device, optimizer + media)
    peak = max(one.peak_mb for one in verdicts)
    return Preflight(
        device=device.type,
        parameters=sum(count(p) for p in parameters),
        trainable=trainable,
        weights_mb=sum(p.numel() * p.element_size() for p in parameters) / MB,
        optimizer_mb=optimizer,
        media_mb=media,
        phases=verdicts,
        peak_mb=peak,
        available_mb=available_mb(device),
        needed_mb=max(0.0, peak - held),
        trials=trials.shown,
        steps_per_epoch=steps,
        epoch_seconds=training.seconds() / share,
        epochs_seconds=training.seconds(),
        run_seconds=trials.total(),
        own_seconds=trials.spent(),
        sample=_sample(data, trials.shown),
    )


def _verdicts(phases: Sequence[Phase], level: float, device: torch.device, held: float) -> list[PhaseVerdict]:
    """Peaks in the order of the phases. On the CPU each grows on what the ones before left in the heap."""
    found = []
    for phase in phases:
        if device.type == "cpu":
            level += phase.grown_mb
            peak = level
        else:
            peak = phase.peak_mb
        found.append(PhaseVerdict(phase.name, phase.seconds(), peak + held + phase.kept_mb))
    return found


def preflight_of_run(
    config: TrainConfig,
    model: nn.Module,
    data: MMTDataModule,
    device: torch.device,
    folder: Path | None = None,
    tests: Any = None,
    *,
    answers_frozen: bool = False,
) -> Preflight | None:
    """The preflight of a run as it is configured, its verdict logged and, with a folder, kept as ``preflight.json``.

    None, with the reason logged, where the strategy cuts the model into parts that exist only while it trains, and
    where the folder has the verdict of an earlier start of the same run.

    Args:
        tests: the test rows that are answered (``lime.inference.evaluation.TestRows``), where the run answers any.
        answers_frozen: whether the frozen backbone answers them first.
    """
    if config.trainer.strategy in ("fsdp", "deepspeed"):
        log.info("preflight: left out, as trainer.strategy=%s shards the model", config.trainer.strategy)
        return None
    of = config_hash(asdict(config))
    if processes.from_main(folder is not None and _known(folder / "preflight.json", of)):
        log.info("preflight: as before, see preflight.json")
        return None
    balance = config.lime.balance if config.lime.enabled else None
    module = AdaptationModule(model, config.optim, balance, config.seed, backbone={})
    others = []
    if tests is not None:
        asked = (model, data, tests.rows, tests.allowed, config.evaluation)
        if answers_frozen:
            others.append((answering_phase("frozen answers", *asked, "likelihood"), True))
        others.append((answering_phase("evaluation", *asked, config.evaluation.mode), False))
    found = preflight(
        module,
        data,
        device,
        precision=resolved_precision(config.trainer.precision, device.type == "cuda"),
        epochs=config.trainer.max_epochs,
        max_steps=config.trainer.max_steps,
        accumulate=config.trainer.accumulate_grad_batches,
        others=others,
    )
    if processes.is_main():
        log_verdict(found)
        if folder is not None:
            write_json(folder / "preflight.json", {**found.to_dict(), "config_hash": of})
    return found


def _known(path: Path, of: str) -> bool:
    """Whether a verdict of the same configuration is there."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["config_hash"] == of)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def log_verdict(found: Preflight) -> None:
    """Log the verdict; a warning with what to lower where it does not fit."""
    for line in found.lines():
        log.info("preflight: %s", line)
    if not found.fits:
        log.warning("preflight: %s", ADVICE)


@contextmanager
def _untouched(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Training mode inside; afterwards modes, gradients and every random state are what they were."""
    modes = {child: child.training for child in module.modules()}
    gradients = {parameter: parameter.grad for parameter in module.parameters()}
    own, global_numpy, default = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    on_gpu = torch.cuda.get_rng_state_all() if device.type == "cuda" else None
    for parameter in gradients:
        parameter.grad = None
    module.train()
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        random.setstate(own)
        np.random.set_state(global_numpy)  # noqa: NPY002
        torch.set_rng_state(default)
        if on_gpu is not None:
            torch.cuda.set_rng_state_all(on_gpu)
            torch.cuda.empty_cache()


def _media_growth(data: MMTDataModule) -> float:
    """MB by which the media kept in memory will grow while training reads every row (in this process)."""
    if data.config.num_workers:
        return 0.0  # kept by the workers
    return data.collator.media_growth(data.train_rows) / MB


def _sample(data: MMTDataModule, trials: Sequence[Trial]) -> dict[str, Any]:
    """The first row of the heaviest modality, tokenised."""
    kinds = [trial.modality for trial in sorted(trials, key=lambda trial: -trial.peak_mb) if trial.phase == "training"]
    row = next((row for row in data.train_rows if kinds and row.source_type == kinds[0]), data.train_rows[0])
    tokens = data.collator.lengths([row])[0]
    answer = len(data.collator.conversation.answers([row])[0])
    return {"row": row.id, "tokens": tokens, "answer_tokens": answer}
