"""Trials of batches, within a share of the run's time.

The heaviest batches are tried for memory, usual ones for time and, on the CPU, batches of many shapes. Trials end when
they have taken `SHARE` of what the run will take by what is known so far; what would take longer is tried with fewer
rows and scaled, or left out with a word.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning.fabric.utilities import move_data_to_device

from lime.data.datamodule import MMTDataModule
from lime.data.rows import Row
from lime.data.sampler import read_ahead
from lime.system.memory import Peak, resident_mb
from lime.training.module import AdaptationModule
from lime.training.preflight.phases import Phase, Work, forward_backward, timed

log = logging.getLogger(__name__)

SHARE = 0.045  # of the run's predicted time, for all trials together: with what else the preflight does, 5%
LEAST_SECONDS = 2.0  # that trials may always take
SAID_SECONDS = 3.0  # what takes longer is said before
HEAP = 1.25  # on the CPU: what a phase of answers leaves in the heap over what its trials do; measured
SHAPES_POWER = 0.75  # on the CPU: what n shapes of training batches leave grows as n to this power; measured
FIRST_SHAPES_POWER = 0.37  # the same, judged by fewer than the next number: the first leave more than later ones
FEWEST_SHAPES = 4


ADVICE = (
    "lower trainer.batch_size (and raise trainer.accumulate_grad_batches), evaluation.batch_size, data.max_length, "
    "data.cache_mb or the image and video budgets of the model, or set trainer.gradient_checkpointing=true"
)


@dataclass(frozen=True)
class Trial:
    """The heaviest batch of one kind: phase, kind, rows that were tried of rows in all, padded tokens, seconds of
    those tried, and the peak MB of all."""

    phase: str
    modality: str
    rows: int
    tried: int
    tokens: int
    seconds: float
    peak_mb: float


class Trials:
    """Runs trials within their share of the run's time, and keeps what they show."""

    def __init__(self, phases: Sequence[Phase], device: torch.device):
        self.phases, self.device = phases, device
        self.started = time.perf_counter()
        self.high = resident_mb()  # what the trials have made the process take
        self.shown: list[Trial] = []

    def total(self) -> float:
        """Seconds of the run by what is known."""
        paces = [pace for phase in self.phases for pace in phase.pace.values()]
        return sum(phase.seconds(sum(paces) / len(paces) if paces else 0.0) for phase in self.phases)

    def spent(self) -> float:
        return time.perf_counter() - self.started

    def left(self) -> float:
        return max(LEAST_SECONDS, SHARE * self.total()) - self.spent()

    def seconds(self, phase: Phase, kind: str, work: Work) -> float:
        """What a trial will take."""
        paces = phase.pace or {kind: pace for other in self.phases for kind, pace in other.pace.items()}
        mean = sum(paces.values()) / len(paces) if paces else 0.0
        return work.cost * phase.pace.get(kind, mean)

    def run(self, phase: Phase, kind: str, work: Work, rows: int) -> Trial:
        """One batch, by its first rows; its peak is that of all."""
        part = work.cut(rows)
        try:
            with Peak(self.device) as peak:
                seconds = timed(phase, part)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
            raise ValueError(
                f"{phase.name}: the heaviest batch ({len(part.rows)} rows of {work.tokens} tokens) does not fit "
                f"{'on the GPU' if self.device.type == 'cuda' else 'in memory'}: {str(error).splitlines()[0]}; {ADVICE}"
            ) from error
        phase.pace[kind] = seconds / part.cost
        whole = peak.before + (peak.mb - peak.before) * len(work.rows) / len(part.rows)
        phase.peak_mb = max(phase.peak_mb, whole)
        grown = max(0.0, whole - self.high)
        phase.grown_mb, self.high = phase.grown_mb + grown, self.high + grown
        return Trial(phase.name, kind, len(work.rows), len(part.rows), work.tokens, seconds, whole)

    def probe(self) -> None:
        """One row of each phase, of its lightest kind, as far as the time allows: what the rest will take."""
        log.info("preflight: trying batches of %s", ", ".join(phase.name for phase in self.phases))
        lightest = [(phase, *min(phase.usual.items(), key=lambda one: one[1].tokens)) for phase in self.phases]
        for phase, kind, work in sorted(lightest, key=lambda one: one[2].tokens):
            known = any(phase.pace for phase in self.phases)
            if not known or self.seconds(phase, kind, work.cut(1)) < 0.5 * self.left():
                self.run(phase, kind, work, 1)
        for phase in self.phases:
            phase.grown_mb, self.high = 0.0, resident_mb()

    def heaviest(self) -> None:
        """The heaviest batch of each kind, with all rows where the time is there for all of them."""
        todo = [(phase, kind, work) for phase in self.phases for kind, work in phase.heaviest.items()]
        expected = sum(self.seconds(*one) for one in todo)
        fraction = min(1.0, 0.7 * self.left() / expected) if expected > 0 else 1.0
        for phase, kind, work in todo:
            rows = min(len(work.rows), max(1, int(fraction * len(work.rows))))
            expects = self.seconds(phase, kind, work.cut(rows))
            what = f"the heaviest {kind} batch of {phase.name}"
            if expects > self.left() + SAID_SECONDS:
                log.info("preflight: %s is left out: it would take %s, and the run takes %s",
                         what, duration(expects), duration(self.total()))  # fmt: skip
                continue
            if expects > SAID_SECONDS:
                log.info("preflight: %s, %d of %d rows of %d tokens, takes about %s",
                         what, rows, len(work.rows), work.tokens, duration(expects))  # fmt: skip
            if all(one.phase != phase.name for one in self.shown):
                phase.peak_mb = 0.0  # the probe's, which counted the buffers of the first call for every row
            self.shown.append(self.run(phase, kind, work, rows))

    def usual(self) -> None:
        """A batch of middle cost of each kind: once to make its kernels, and once for the time. On the CPU the heaviest
        batches, and those of training's shapes, have shown it."""
        for phase in self.phases:
            for kind, work in phase.usual.items():
                for _ in range(2):
                    if self.device.type != "cpu" and self.seconds(phase, kind, work) < 0.5 * self.left():
                        self.run(phase, kind, work, len(work.rows))
            if self.device.type == "cpu" and not phase.trains:
                phase.grown_mb *= HEAP

    def shapes(
        self, module: AdaptationModule, data: MMTDataModule, precision: str, training: Phase, epochs: int
    ) -> None:
        """Batches of the run's shapes, made ahead as in training, until the time is over; on the CPU.

        There kernels and their buffers are kept for every shape met, and the heap keeps what batches of changing shapes
        and the thread that makes them leave free in between: the more shapes, the more. Training meets the kernels made
        here again.
        """
        batches = _of_every_shape(data, epochs)
        # In a short run the heaviest batches may have taken all the time: two are tried where they are quick.
        usual = sum(self.seconds(training, kind, work) for kind, work in training.usual.items()) / len(training.usual)
        least = 2 if usual <= LEAST_SECONDS else 0
        if self.left() <= 0 and not least:
            return
        stream = read_ahead((data.collator.training_batch(rows) for rows in batches), data.config.prefetch)
        before, tried, cost, started = resident_mb(), 0, 0.0, time.perf_counter()
        with Peak(self.device) as peak:
            for batch in stream:
                prepared = module.on_before_batch_transfer(batch, 0)
                forward_backward(module, move_data_to_device(prepared, self.device), self.device, precision)
                tried, cost = tried + 1, cost + prepared["inputs"]["attention_mask"].numel()
                seconds = time.perf_counter() - started
                if tried >= FEWEST_SHAPES:
                    training.pace = dict.fromkeys(training.costs, seconds / cost)
                if tried >= least and self.left() <= seconds / tried:
                    break
        stream.close()
        power = SHAPES_POWER if tried >= FEWEST_SHAPES else FIRST_SHAPES_POWER
        training.grown_mb += (len(batches) / tried) ** power * max(0.0, peak.mb - before)
        training.peak_mb = max(training.peak_mb, peak.mb)


def _of_every_shape(data: MMTDataModule, epochs: int) -> list[list[Row]]:
    """The first batch of every shape of the run, in its order: of rows, padded tokens, images and clips."""
    first_of_shape: dict[tuple[int, int, int, int], list[Row]] = {}
    order = data.sampler()
    for batch in (batch for epoch in range(min(epochs, 3)) for batch in order.batches(epoch)):
        rows = [data.train_rows[i] for i in batch]
        kinds = [row.source_type for row in rows]
        shape = (len(rows), max(data.train_lengths[i] for i in batch), kinds.count("image"), kinds.count("video"))
        first_of_shape.setdefault(shape, rows)
    return list(first_of_shape.values())


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
