"""The preflight changes nothing about the training that follows, and what it predicts comes true."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import lime
from lime.embedded.benchmark import ensure
from lime.jobs.setup import open_data
from lime.jobs.train import train
from lime.models.loading import load_backbone
from lime.system.memory import Peak
from lime.training.preflight.phases import Phase, Work
from lime.training.preflight.plan import preflight_of_run
from lime.training.preflight.trials import LEAST_SECONDS, Trials, duration
from lime.training.preflight.verdict import Preflight
from tests.training.parts import config, metrics

ROOT = Path(__file__).parents[2]
FAMILIES = ["llava_onevision", "qwen2_vl"]


def tried(family: str, **changes: object) -> tuple[Preflight, torch.nn.Module]:
    settings = config(family, **changes)
    backbone = load_backbone(settings.model)
    data = open_data(settings, backbone, settings.trainer.batch_size)
    data.setup("fit")
    torch.manual_seed(0)
    model, _ = lime.apply(backbone.model, settings.settings())
    model.eval()
    found = preflight_of_run(settings, model, data, torch.device("cpu"))
    assert found is not None
    return found, model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_curve_is_the_same_with_and_without(tmp_path, family):
    """Dropout, routing noise and balance losses on; the answers too."""
    options = {"peft__dropout": 0.1}
    train(config(family, **options), tmp_path / "without")
    train(config(family, **options, trainer__preflight=True), tmp_path / "with")
    assert metrics(tmp_path / "with") == metrics(tmp_path / "without")
    answers = [(tmp_path / name / "predictions.jsonl").read_text() for name in ("with", "without")]
    assert answers[0] == answers[1]
    assert not (tmp_path / "without" / "preflight.json").exists()
    found = json.loads((tmp_path / "with" / "preflight.json").read_text())
    assert found["fits"] is True
    assert found["steps_per_epoch"] == 6


def test_random_states_gradients_and_mode_are_put_back():
    torch.manual_seed(1), random.seed(2), np.random.seed(3)  # noqa: NPY002
    found, model = tried("llava_onevision", peft__dropout=0.1)
    torch.manual_seed(0)  # as `tried` does before it adapts
    expected, _ = tried("llava_onevision", peft__dropout=0.1)
    after = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(1), random.seed(2), np.random.seed(3)  # noqa: NPY002
    tried("llava_onevision", peft__dropout=0.1)
    again = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    assert torch.equal(after[0], again[0])
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert found.sample == expected.sample


def test_it_tries_the_longest_rows_of_every_modality_and_counts(caplog):
    caplog.set_level("INFO")
    found, model = tried("qwen2_vl", trainer__max_epochs=3, trainer__accumulate_grad_batches=2)
    assert [trial.modality for trial in found.trials] == ["text", "image", "video"]
    assert all(trial.rows == 4 for trial in found.trials)
    assert found.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.steps_per_epoch == 3
    assert found.epochs_seconds == pytest.approx(3 * found.epoch_seconds)
    assert found.peak_mb > max(trial.peak_mb for trial in found.trials)
    assert "it fits" in caplog.text
    assert tried("qwen2_vl", trainer__max_steps=3, trainer__max_epochs=9)[0].epochs_seconds > 0


def test_every_phase_is_foretold_before_the_first_and_once(tmp_path, caplog):
    caplog.set_level("INFO")
    settings = config(trainer__preflight=True, trainer__max_epochs=1)
    train(settings, tmp_path / "run")
    said = [record.getMessage() for record in caplog.records]
    verdict = next(i for i, text in enumerate(said) if "predicted peak" in text)
    assert verdict < next(i for i, text in enumerate(said) if text.startswith("scored"))
    found = json.loads((tmp_path / "run" / "preflight.json").read_text())
    assert [phase["name"] for phase in found["phases"]] == ["frozen answers", "training", "evaluation"]
    assert all(phase["seconds"] > 0 and phase["peak_mb"] > 0 for phase in found["phases"])
    assert found["peak_mb"] == max(phase["peak_mb"] for phase in found["phases"])
    assert found["run_seconds"] == pytest.approx(sum(phase["seconds"] for phase in found["phases"]))
    caplog.clear()
    assert preflight_of_run(settings, torch.nn.Linear(1, 1), None, torch.device("cpu"), tmp_path / "run") is None
    assert "as before" in caplog.text


def test_answers_that_are_known_are_no_phase(tmp_path):
    options = {"trainer__preflight": True, "trainer__max_epochs": 1, "cache_dir": str(tmp_path / "cache")}
    for name, expected in (
        ("first", ["frozen answers", "training", "evaluation"]),
        ("second", ["training", "evaluation"]),
    ):
        train(config(**options), tmp_path / name)
        found = json.loads((tmp_path / name / "preflight.json").read_text())
        assert [phase["name"] for phase in found["phases"]] == expected


class Clock:
    """Time that passes only by the work of a pretended phase."""

    def __init__(self, monkeypatch, seconds_per_token):
        self.now, self.pace = 0.0, seconds_per_token
        monkeypatch.setattr("lime.training.preflight.trials.time.perf_counter", lambda: self.now)

    def run(self, work):
        self.now += 0.01 + self.pace * work.cost

    def phase(self, name, batches, rows=32, tokens=100):
        kinds = {kind: Work(tuple(range(rows)), tokens * (i + 1)) for i, kind in enumerate(("text", "image", "video"))}
        costs = {kind: batches * work.cost for kind, work in kinds.items()}
        return Phase(name, self.run, costs, kinds, kinds, trains=name == "training")


@pytest.mark.parametrize(("pace", "batches"), [(1e-4, 2000), (1e-3, 300), (1e-2, 40), (1e-1, 4), (1e-2, 2)])
def test_trials_keep_to_their_share_of_the_run(monkeypatch, caplog, pace, batches):
    """From a long run to one of two batches, where a single row is more than the share."""
    caplog.set_level("INFO")
    clock = Clock(monkeypatch, pace)
    phases = [clock.phase("frozen answers", batches), clock.phase("training", batches)]
    trials = Trials(phases, torch.device("cpu"))
    for part in (trials.probe, trials.heaviest, trials.usual):
        part()
    run = sum(pace * cost for phase in phases for cost in phase.costs.values())
    one_row = pace * 100
    assert trials.spent() <= max(0.05 * run, LEAST_SECONDS) * 1.1 + one_row
    if batches >= 40:
        assert len(trials.shown) == 6
        assert trials.total() == pytest.approx(run, rel=0.1)
    else:
        assert any(trial.tried < trial.rows for trial in trials.shown) or "left out" in caplog.text


def test_what_the_first_call_allocates_is_not_counted_for_every_row(monkeypatch):
    """Buffers of 32 MB that stay, and 1 MB a row: a batch of 32 rows takes 64 MB, not 32 times what one took."""

    class Memory:
        kept = 0.0

        def __init__(self, device):
            self.before, self.rows = Memory.kept, 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.mb, Memory.kept = 32.0 + ran[-1], 32.0

    ran = []
    monkeypatch.setattr("lime.training.preflight.trials.Peak", Memory)
    works = {"text": Work(tuple(range(32)), 10)}
    phase = Phase("training", lambda work: ran.append(len(work.rows)), {"text": 3200.0}, works, works, trains=True)
    trials = Trials([phase], torch.device("cpu"))
    trials.probe()
    assert phase.peak_mb > 1000  # known no better yet
    trials.heaviest()
    assert phase.peak_mb == 64.0


def test_a_limit_of_the_process_counts():
    """`ulimit -v` and `ulimit -d`: what they leave, not what the machine has."""
    code = (
        "import resource, sys, torch; from lime.system.memory import available_mb, _process_mb; "
        "assert _process_mb() == []; "
        "lines = dict(l.split(':') for l in open('/proc/self/status')); "
        "used = int(lines[sys.argv[2]].split()[0]) * 1024; "
        "resource.setrlimit(getattr(resource, sys.argv[1]), (used + 300_000_000, -1)); "
        "print(available_mb(torch.device('cpu')))"
    )
    for limit, field in (("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")):
        done = subprocess.run([sys.executable, "-c", code, limit, field], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert 250 < float(done.stdout) <= 300


def test_what_memory_cannot_hold_is_told_in_a_sentence(monkeypatch):
    def run(work):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: 9 bytes")

    work = {"text": Work((1, 2), 10)}
    trials = Trials([Phase("evaluation", run, {"text": 100.0}, work, work)], torch.device("cpu"))
    with pytest.raises(
        ValueError, match=r"evaluation: the heaviest batch .*10 tokens\) does not fit in memory: .*lower"
    ):
        trials.heaviest()


def test_what_does_not_fit_is_said(caplog, monkeypatch):
    monkeypatch.setattr("lime.training.preflight.plan.available_mb", lambda device: 0.0)
    monkeypatch.setattr("lime.training.preflight.plan.resident_mb", lambda: 1.0)
    found, _ = tried("llava_onevision")
    assert not found.fits
    assert "trainer.batch_size" in caplog.text


def test_a_sharded_model_is_left_out(caplog):
    caplog.set_level("INFO")
    settings = config(trainer__strategy="fsdp", trainer__devices=2)
    assert preflight_of_run(settings, torch.nn.Linear(1, 1), None, torch.device("cpu")) is None
    assert "shards the model" in caplog.text


def test_a_peak_is_seen_though_it_is_freed_again():
    with Peak(torch.device("cpu")) as peak:
        for _ in range(30):
            torch.ones(2**25).sum()  # 134 MB
    assert 120 < peak.mb - peak.before < 400


def test_durations():
    assert [duration(s) for s in (5.2, 119, 600, 3 * 3600)] == ["5 s", "119 s", "10 min", "3.0 h"]


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    """24 training rows of each task of the embedded benchmark."""
    return ensure(tmp_path_factory.mktemp("preflight") / "mini", train_per_task=24, test_per_task=2, workers=1)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny_llava_onevision", "tiny_qwen2vl"])
def test_the_predicted_peak_of_a_short_run_is_near_the_measured_one(mini, tmp_path, model):
    """The prediction of one process against a run of another, which has no preflight of its own.

    A run of some seconds leaves the trials two, in which few of the shapes of its batches are tried.
    """
    options = [
        f"model={model}", f"data.root={mini}", "data.mini.train_per_task=24", "data.mini.test_per_task=2",
        "data.mini.workers=1", "evaluation.mode=none", "trainer.accelerator=cpu", "trainer.max_epochs=1",
        "callbacks.progress=false",
    ]  # fmt: skip

    def run(*command: object) -> None:
        done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    run("scripts/preflight.py", "--json", tmp_path / "preflight.json", *options)
    run("train.py", *options, "trainer.preflight=false", f"hydra.run.dir={tmp_path}/run")
    predicted = json.loads((tmp_path / "preflight.json").read_text())["peak_mb"]
    measured = max(float(row["peak_memory_mb"]) for row in _rows(tmp_path / "run" / "metrics.csv"))
    print(f"{model}: predicted {predicted:.0f} MB, measured {measured:.0f} MB ({predicted / measured - 1:+.1%})")
    assert 0.8 < predicted / measured < 1.2


def _rows(path: Path) -> list[dict[str, str]]:
    import csv

    with path.open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["peak_memory_mb"]]
