"""What a preflight foretells of a run, as a record and in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lime.training.preflight.trials import Trial, duration


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
        available_mb: what the device leaves to this process beyond what it holds now.
        needed_mb: how much of that the run takes.
        trials: the heaviest batches.
        steps_per_epoch: optimiser steps of one process.
        epoch_seconds: time of an epoch's forward and backward passes.
        epochs_seconds: the same for all epochs.
        run_seconds: of all phases.
        own_seconds: what the preflight itself took.
        sample: a row of the modality with most tokens: those of its prompt and answer, and those of its answer.
    """

    device: str
    parameters: int
    trainable: int
    weights_mb: float
    optimizer_mb: float
    media_mb: float
    phases: list[PhaseVerdict]
    peak_mb: float
    available_mb: float
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
        """Whether the run needs no more than is there."""
        return self.needed_mb <= self.available_mb

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "fits": self.fits}

    def lines(self) -> list[str]:
        """The verdict in words."""
        times = ", ".join(f"{phase.name} {duration(phase.seconds)}" for phase in self.phases)
        device = {"cpu": "CPU", "cuda": "GPU"}.get(self.device, self.device)
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
            f"predicted peak {self.peak_mb:,.0f} MB on the {device} ({memory}); {self.needed_mb:,.0f} MB more "
            f"than now, available {self.available_mb:,.0f} MB: {'it fits' if self.fits else 'it does NOT fit'}",
            f"the run takes about {duration(self.run_seconds)}: {times}; an epoch has {self.steps_per_epoch:,} steps",
        ]
