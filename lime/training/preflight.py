"""Before the first real step: does the heaviest batch fit, and how long will an epoch take?

The trial runs forward and backward on the heaviest batches the data can give and, on the CPU, on a batch of every
shape, without an optimiser step. Random states, gradients and the training mode are put back, so that the training
that follows is the same to the last bit.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import nn

from lime.atomic import write_json
from lime.config.schema import TrainConfig
from lime.data.datamodule import MMTDataModule
from lime.data.rows import Row
from lime.data.sampler import LengthBucketSampler, read_ahead
from lime.data.tasks import MODALITIES
from lime.training import processes
from lime.training.memory import MB, Peak, available_mb, resident_mb
from lime.training.module import AdaptationModule
from lime.training.setup import resolved_precision

log = logging.getLogger(__name__)

ORDINARY = 48  # shapes of batches tried after the heaviest, on the CPU
ORDINARY_SECONDS = 20.0  # after which no more of them are tried
HEAP = 1.25  # on the CPU: the heap after hundreds of batches of changing shapes over that after one of each; measured
ADAM_BYTES = 8  # two float32 moments a trainable parameter


@dataclass(frozen=True)
class Trial:
    """The heaviest batch of one modality: rows, padded tokens, and seconds and peak MB of forward and backward."""

    modality: str
    rows: int
    tokens: int
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
        peak_mb: predicted peak of training: of the process on the CPU, of torch's allocator on a GPU.
        available_mb: what the device leaves to this process beyond what it holds now; None if unknown.
        needed_mb: how much of that training takes.
        trials: the heaviest batches.
        steps_per_epoch: optimiser steps of one process.
        epoch_seconds: time of an epoch's forward and backward passes.
        epochs_seconds: the same for the whole run.
        sample: a row of the heaviest modality, with the tokens of its prompt and answer and those of its answer.
    """

    device: str
    parameters: int
    trainable: int
    weights_mb: float
    optimizer_mb: float
    media_mb: float
    peak_mb: float
    available_mb: float | None
    needed_mb: float
    trials: list[Trial]
    steps_per_epoch: int
    epoch_seconds: float
    epochs_seconds: float
    sample: dict[str, Any]

    @property
    def fits(self) -> bool:
        """Whether training needs no more than is there. True where the system does not say what is there."""
        return self.available_mb is None or self.needed_mb <= self.available_mb

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "fits": self.fits}

    def lines(self) -> list[str]:
        """The verdict in words."""
        left = "unknown" if self.available_mb is None else f"{self.available_mb:,.0f} MB"
        return [
            f"{self.parameters:,} parameters ({self.weights_mb:,.1f} MB), {self.trainable:,} trainable, "
            f"{self.optimizer_mb:,.1f} MB for AdamW",
            *(
                f"heaviest {one.modality} batch: {one.rows} rows of {one.tokens} tokens, {one.seconds:.2f} s, "
                f"peak {one.peak_mb:,.0f} MB"
                for one in self.trials
            ),
            f"row {self.sample['row']}, for one, takes {self.sample['tokens']} tokens, "
            f"{self.sample['answer_tokens']} of them for its answer",
            f"predicted peak {self.peak_mb:,.0f} MB on the {self.device}; {self.needed_mb:,.0f} MB more than now, "
            f"available {left}: {'it fits' if self.fits else 'it does NOT fit'}",
            f"an epoch of {self.steps_per_epoch:,} steps takes about {duration(self.epoch_seconds)}, "
            f"training {duration(self.epochs_seconds)}",
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
) -> Preflight:
    """Tries the heaviest batch of each modality that the training rows have, and predicts peak memory and time.

    Args:
        module: the model with its adapters, on `device`.
        data: set up for training.
        device: where it runs.
        precision: Lightning's precision.
        epochs, max_steps, accumulate: as in the trainer.

    Raises:
        ValueError: a GPU runs out of memory; the message says what to lower.
    """
    with _untouched(module, device):
        before = resident_mb()
        trials, pace = [], {}
        for kind in MODALITIES:
            rows = _of_kind(data, kind)
            if not rows:
                continue
            heaviest = [row for _, row in rows[: data.batch_size]]
            trials.append(_trial(module, data, heaviest, kind, device, precision, repeats=1))
            middle = max(0, len(rows) // 2 - data.batch_size // 2)
            usual = [row for _, row in rows[middle : middle + data.batch_size]]
            timed = _trial(module, data, usual, kind, device, precision, repeats=2)
            pace[kind] = timed.seconds / (timed.rows * timed.tokens)
        ordinary = _ordinary(module, data, device, precision) if device.type == "cpu" else 0.0
    parameters = list(module.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    optimizer = ADAM_BYTES * trainable / MB
    media = _media_growth(data) if device.type == "cpu" else 0.0
    peak = max(ordinary, *(trial.peak_mb for trial in trials))
    if device.type == "cpu":
        held, peak = before, before + HEAP * (peak - before)
    else:
        held = torch.cuda.memory_allocated(device) / MB
    peak += optimizer + media
    steps, seconds = _epoch(data, pace)
    steps = -(-steps // accumulate)
    share = epochs if max_steps is None else min(epochs, max_steps / steps)
    return Preflight(
        device=device.type,
        parameters=sum(p.numel() for p in parameters),
        trainable=trainable,
        weights_mb=sum(p.numel() * p.element_size() for p in parameters) / MB,
        optimizer_mb=optimizer,
        media_mb=media,
        peak_mb=peak,
        available_mb=available_mb(device),
        needed_mb=max(0.0, peak - held),
        trials=trials,
        steps_per_epoch=steps,
        epoch_seconds=seconds,
        epochs_seconds=share * seconds,
        sample=_sample(data, trials),
    )


def preflight_of_run(
    config: TrainConfig, model: nn.Module, data: MMTDataModule, device: torch.device, folder: Path | None = None
) -> Preflight | None:
    """The preflight of a run as it is configured, its verdict logged and, with a folder, kept as ``preflight.json``.

    None, with the reason logged, where the strategy cuts the model into parts that exist only while it trains.
    """
    if config.trainer.strategy in ("fsdp", "deepspeed"):
        log.info("preflight: left out, as trainer.strategy=%s shards the model", config.trainer.strategy)
        return None
    module = AdaptationModule(
        model, config.optim, config.lime.balance if config.lime.enabled else None, config.seed, backbone={}
    )
    found = preflight(
        module,
        data,
        device,
        precision=resolved_precision(config.trainer.precision, device.type == "cuda"),
        epochs=config.trainer.max_epochs,
        max_steps=config.trainer.max_steps,
        accumulate=config.trainer.accumulate_grad_batches,
    )
    if processes.is_main():
        log_verdict(found)
        if folder is not None:
            write_json(folder / "preflight.json", found.to_dict())
    return found


def log_verdict(found: Preflight) -> None:
    """Log the verdict; a warning with what to lower where it does not fit."""
    for line in found.lines():
        log.info("preflight: %s", line)
    if not found.fits:
        log.warning("preflight: %s", ADVICE)


ADVICE = (
    "lower trainer.batch_size (and raise trainer.accumulate_grad_batches), lower data.max_length, data.cache_mb or the "
    "image and video budgets of the model, or set trainer.gradient_checkpointing=true"
)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _of_kind(data: MMTDataModule, kind: str) -> list[tuple[int, Row]]:
    """(tokens, row) of a modality's training rows, the longest first."""
    rows = [(n, row) for n, row in zip(data.train_lengths, data.train_rows, strict=True) if row.source_type == kind]
    return sorted(rows, key=lambda pair: (-pair[0], pair[1].id))


def _trial(
    module: AdaptationModule,
    data: MMTDataModule,
    rows: Sequence[Row],
    kind: str,
    device: torch.device,
    precision: str,
    repeats: int,
) -> Trial:
    """Forward and backward on these rows; the time is that of the last of `repeats`."""
    with Peak(device) as peak:
        batch = module.on_before_batch_transfer(data.collator.training_batch(rows), 0)
        batch = move_data_to_device(batch, device)
        for _ in range(repeats):
            seconds = _forward_backward(module, batch, device, precision)
    tokens = int(batch["inputs"]["attention_mask"].shape[1])
    return Trial(kind, len(rows), tokens, seconds, peak.mb)


def _ordinary(module: AdaptationModule, data: MMTDataModule, device: torch.device, precision: str) -> float:
    """Peak MB over the first batch of every shape in an epoch, made ahead as in training.

    On the CPU, kernels and their buffers are kept for every shape met, and the heap keeps what batches of changing
    shapes and the thread that makes them leave free in between. Training meets the kernels made here again.
    """
    made = (data.collator.training_batch(rows) for rows in _of_every_shape(data))
    stream = read_ahead(made, data.config.prefetch)
    ends = time.perf_counter() + ORDINARY_SECONDS
    with Peak(device) as peak:
        for batch in stream:
            prepared = move_data_to_device(module.on_before_batch_transfer(batch, 0), device)
            _forward_backward(module, prepared, device, precision)
            if time.perf_counter() > ends:
                break
    stream.close()
    return peak.mb


def _of_every_shape(data: MMTDataModule) -> Iterator[list[Row]]:
    """The first batch of every shape in a run's first epoch: of rows, padded tokens, images and clips."""
    seen: set[tuple[int, int, int, int]] = set()
    for batch in _sampler(data).batches(0):
        rows = [data.train_rows[i] for i in batch]
        kinds = [row.source_type for row in rows]
        shape = (len(rows), max(data.train_lengths[i] for i in batch), kinds.count("image"), kinds.count("video"))
        if shape not in seen:
            seen.add(shape)
            yield rows
        if len(seen) == ORDINARY:
            return


def _sampler(data: MMTDataModule) -> LengthBucketSampler:
    """The order of a run's first epoch in this process."""
    rank, replicas = 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, replicas = torch.distributed.get_rank(), torch.distributed.get_world_size()
    kinds = [row.source_type for row in data.train_rows] if data.alike else None
    return LengthBucketSampler(
        data.train_lengths, data.batch_size, data.seed, rank=rank, replicas=replicas, kinds=kinds
    )


def _forward_backward(module: AdaptationModule, batch: dict[str, Any], device: torch.device, precision: str) -> float:
    started = time.perf_counter()
    try:
        with _autocast(device, precision):
            loss = module.loss(batch).total
        loss.backward()
        _clear_gradients(module)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except torch.OutOfMemoryError as error:
        rows, tokens = batch["inputs"]["attention_mask"].shape
        raise ValueError(
            f"the heaviest batch ({rows} rows of {tokens} tokens) does not fit on the GPU: "
            f"{str(error).splitlines()[0]}; {ADVICE}"
        ) from error
    return time.perf_counter() - started


def _autocast(device: torch.device, precision: str) -> Any:
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype=dtype) if dtype is not None else nullcontext()


def _clear_gradients(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.grad = None


@contextmanager
def _untouched(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Training mode inside; afterwards modes, gradients and every random state are what they were."""
    modes = {child: child.training for child in module.modules()}
    gradients = {parameter: parameter.grad for parameter in module.parameters()}
    own, global_numpy, default = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    on_gpu = torch.cuda.get_rng_state_all() if device.type == "cuda" else None
    _clear_gradients(module)
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


def _epoch(data: MMTDataModule, pace: dict[str, float]) -> tuple[int, float]:
    """Batches of an epoch of one process, and their seconds: each row costs its batch's padded tokens."""
    batches = _sampler(data).batches(0)
    seconds = sum(
        max(data.train_lengths[i] for i in batch) * sum(pace[data.train_rows[i].source_type] for i in batch)
        for batch in batches
    )
    return len(batches), seconds


def _sample(data: MMTDataModule, trials: Sequence[Trial]) -> dict[str, Any]:
    """The first row of the heaviest modality, tokenised."""
    kind = max(trials, key=lambda trial: trial.peak_mb).modality
    row = next(row for row in data.train_rows if row.source_type == kind)
    tokens = data.collator.lengths([row])[0]
    answer = len(data.collator.conversation.answers([row])[0])
    return {"row": row.id, "tokens": tokens, "answer_tokens": answer}
