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
from dataclasses import asdict
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
from lime.training.preflight.phases import Phase, answering_phase, training_phase
from lime.training.preflight.trials import ADVICE, Trial, Trials
from lime.training.preflight.verdict import PhaseVerdict, Preflight
from lime.tuner.reporting import count

log = logging.getLogger(__name__)


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
    """Tries batches of each phase of a run, and predicts its peak memory and time. The verdict is logged and, with a
    folder, kept as ``preflight.json``.

    None, with the reason logged, where the strategy cuts the model into parts that exist only while it trains, and
    where the folder has the verdict of an earlier start of the same run.

    Args:
        model: with its adapters, on ``device``.
        data: set up for training.
        tests: the test rows that are answered (``lime.inference.rows.TestRows``), where the run answers any.
        answers_frozen: whether the frozen backbone answers them first.

    Raises:
        ValueError: a batch does not fit; the message says what to lower.
    """
    if config.trainer.strategy in ("fsdp", "deepspeed"):
        log.info("preflight: left out, as trainer.strategy=%s shards the model", config.trainer.strategy)
        return None
    of = config_hash(asdict(config))
    if processes.from_main(folder is not None and _known(folder / "preflight.json", of)):
        log.info("preflight: as before, see preflight.json")
        return None
    balance = config.lime.balance if config.lime.enabled else None
    module = AdaptationModule(model, config.optim, balance, config.seed, {}, config.trainer.neftune_alpha)
    verdict = _tried(config, module, data, device, tests, answers_frozen)
    if processes.is_main():
        for line in verdict.lines():
            log.info("preflight: %s", line)
        if not verdict.fits:
            log.warning("preflight: %s", ADVICE)
        if folder is not None:
            write_json(folder / "preflight.json", {**verdict.to_dict(), "config_hash": of})
    return verdict


def _tried(
    config: TrainConfig,
    module: AdaptationModule,
    data: MMTDataModule,
    device: torch.device,
    tests: Any,
    answers_frozen: bool,
) -> Preflight:
    options, on_cpu = config.trainer, device.type == "cpu"
    precision = resolved_precision(options.precision, not on_cpu)
    steps = -(-sum(1 for _ in data.sampler().batches(0)) // options.accumulate_grad_batches)
    epochs = options.max_epochs if options.max_steps is None else min(options.max_epochs, options.max_steps / steps)
    training = training_phase(module, data, device, precision, epochs)
    phases = [training]
    if tests is not None:
        asked = (module.model, data, tests.rows, tests.allowed, config.evaluation)
        frozen = [answering_phase("frozen answers", *asked, "likelihood")] if answers_frozen else []
        phases = [*frozen, training, answering_phase("evaluation", *asked, config.evaluation.mode)]
    trials = Trials(phases, device)
    with _untouched(module, device):
        before = resident_mb()
        trials.probe()
        level = resident_mb()
        trials.heaviest()
        trials.usual()
        if on_cpu:
            trials.shapes(module, data, precision, training, math.ceil(epochs))
    parameters = list(module.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    optimizer = 8 * trainable / MB  # AdamW's two float32 moments a parameter
    media = _media_growth(data) if on_cpu else 0.0
    verdicts = _verdicts(phases, level, device, optimizer + media)
    peak = max(one.peak_mb for one in verdicts)
    held = before if on_cpu else torch.cuda.memory_allocated(device) / MB
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
        epoch_seconds=training.seconds() / epochs,
        epochs_seconds=training.seconds(),
        run_seconds=trials.total(),
        own_seconds=trials.spent(),
        sample=_sample(data, trials.shown),
    )


def _verdicts(phases: Sequence[Phase], level: float, device: torch.device, held: float) -> list[PhaseVerdict]:
    """Peaks in the order of the phases. On the CPU each grows on what the ones before left in the heap."""
    verdicts = []
    for phase in phases:
        if device.type == "cpu":
            level += phase.grown_mb
            peak = level
        else:
            peak = phase.peak_mb
        verdicts.append(PhaseVerdict(phase.name, phase.seconds(), peak + held + phase.kept_mb))
    return verdicts


def _known(path: Path, of: str) -> bool:
    """Whether a verdict of the same configuration is there."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["config_hash"] == of)
    except (OSError, ValueError, KeyError, TypeError):
        return False


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
    """The first row of the modality whose batches have most tokens, tokenised."""
    kinds = [
        trial.modality
        for trial in sorted(trials, key=lambda trial: -trial.rows * trial.tokens)
        if trial.phase == "training"
    ]
    row = next((row for row in data.train_rows if kinds and row.source_type == kinds[0]), data.train_rows[0])
    tokens = data.collator.lengths([row])[0]
    answer = len(data.collator.conversation.answers([row])[0])
    return {"row": row.id, "tokens": tokens, "answer_tokens": answer}
