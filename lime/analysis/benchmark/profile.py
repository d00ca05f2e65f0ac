"""Where the time of train.py goes: the real job, run in this process with a stopwatch at its seams."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lime.analysis.benchmark.options import option
from lime.analysis.benchmark.record import Column, record
from lime.config.schema import TrainConfig
from lime.data.datamodule import MMTDataModule
from lime.data.sampler import ResumableLoader
from lime.jobs import train as job
from lime.jobs.compose import composed
from lime.training.module import AdaptationModule
from lime.tuner.routing.recorder import Recorder
from lime.tuner.towers import find_towers

ROOT = Path(__file__).resolve().parents[3]

TRAINING = "training: "
WAITING = TRAINING + "waiting for data"
OPTIMISER = ("optimizer_step", "configure_gradient_clipping", "on_before_optimizer_step")


@dataclass(frozen=True)
class Options:
    """Which job to run."""

    overrides: tuple[str, ...] = option((), "overrides of train.py; the main job without any")


COLUMNS = (
    Column("section", "section"),
    Column("seconds", "s", ",.1f"),
    Column("share", "of the run", ".1%"),
    Column("training_share", "of training", ".1%"),
    Column("calls", "calls", ","),
)
NOTES = (
    "Each section without those inside it. `backward` holds the backward passes of the language model and the "
    "adapters, `language model` their forward passes. Nothing was kept from earlier runs but the generated data.",
)


class Stopwatch:
    """Seconds of nested sections, each without the sections inside it."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._open: list[str] = []
        self._since = time.perf_counter()

    def enter(self, section: str) -> None:
        self._charge()
        self._open.append(section)
        self.calls[section] += 1

    def leave(self) -> None:
        self._charge()
        self._open.pop()

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


def run(options: Options) -> dict[str, Any]:
    """Run the job and return the record."""
    overrides = ["cache_dir=null", *options.overrides]
    config = composed(overrides, ROOT / "conf", "train", TrainConfig)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder, _instrumented(watch), watch.section("the rest"):
        job.train(config, Path(folder), overrides)
    total = sum(watch.seconds.values())
    training = sum(seconds for name, seconds in watch.seconds.items() if name.startswith(TRAINING))
    rows = [
        {
            "section": name,
            "seconds": seconds,
            "share": seconds / total,
            "training_share": seconds / training if name.startswith(TRAINING) else None,
            "calls": watch.calls[name],
        }
        for name, seconds in sorted(watch.seconds.items(), key=lambda item: -item[1])
    ]
    rows.append({"section": "all", "seconds": total, "share": 1.0})
    return record("profile", options, COLUMNS, rows, notes=NOTES)


@contextlib.contextmanager
def _instrumented(watch: Stopwatch) -> Iterator[None]:
    """The stopwatch at the seams of the job, while inside."""
    seams: list[tuple[Any, str, str]] = [
        (job, "load_backbone", "load the backbone"),
        (job, "open_data", "open the data"),
        (job, "TestRows", "open the data"),
        (MMTDataModule, "setup", "open the data"),
        (job, "answer_frozen", "answers of the frozen backbone"),
        (job, "answer_adapted", "answers of the adapted model"),
        (job, "report", "scores and report"),
        (pl.Trainer, "fit", TRAINING + "loop, metrics, checkpoints"),
        (AdaptationModule, "training_step", TRAINING + "embedding, head and loss"),
        (AdaptationModule, "backward", TRAINING + "backward"),
        *((AdaptationModule, name, TRAINING + "optimiser") for name in OPTIMISER),
        (Recorder, "balance", TRAINING + "balance terms and routing statistics"),
        (Recorder, "statistics", TRAINING + "balance terms and routing statistics"),
    ]
    handles: list[Any] = []
    with contextlib.ExitStack() as stack:
        for owner, name, section in seams:
            stack.enter_context(_replaced(owner, name, functools.partial(_timed, watch, section)))
        stack.enter_context(_replaced(ResumableLoader, "__iter__", functools.partial(_timed_iteration, watch)))
        for name, wrap in (("on_fit_start", _hooked), ("on_fit_end", _unhooked)):
            stack.enter_context(_replaced(AdaptationModule, name, functools.partial(wrap, watch, handles)))
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    inherited, before = name not in vars(owner), getattr(owner, name)
    setattr(owner, name, wrap(before))
    try:
        yield
    finally:
        delattr(owner, name) if inherited else setattr(owner, name, before)


def _timed(watch: Stopwatch, section: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function, updated=())
    def timed(*args: Any, **kwargs: Any) -> Any:
        with watch.section(section):
            return function(*args, **kwargs)

    return timed


def _timed_iteration(watch: Stopwatch, iterate: Callable[[Any], Iterator[Any]]) -> Callable[[Any], Iterator[Any]]:
    """Time spent waiting for each batch, by whoever asks for it."""

    def timed(loader: Any) -> Iterator[Any]:
        stream = iterate(loader)
        while True:
            with watch.section(WAITING):
                batch = next(stream, None)
            if batch is None:
                return
            yield batch

    return timed


def _hooked(watch: Stopwatch, handles: list[Any], on_fit_start: Callable[[Any], None]) -> Callable[[Any], None]:
    """Times the towers of the model that is about to be trained."""

    def timed(module: AdaptationModule) -> None:
        on_fit_start(module)
        for tower in find_towers(module.model):
            inner, section = module.model.get_submodule(tower.name), TRAINING + tower.kind.replace("_", " ")
            handles.append(inner.register_forward_pre_hook(lambda *_, section=section: watch.enter(section)))
            handles.append(inner.register_forward_hook(lambda *_: watch.leave(), always_call=True))

    return timed


def _unhooked(watch: Stopwatch, handles: list[Any], on_fit_end: Callable[[Any], None]) -> Callable[[Any], None]:
    def ended(module: AdaptationModule) -> None:
        on_fit_end(module)
        while handles:
            handles.pop().remove()

    return ended
