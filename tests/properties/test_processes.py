"""A step's gradient depends neither on how its rows are cut into micro-batches nor on the number of processes.

Of each type, for four rows whose answers have 1, 2, 6 and 3 tokens:
    task: one batch of 4 = two micro-batches of 2 = two processes with a batch of 2 each;
    with balance losses, which are taken per micro-batch: two micro-batches = two processes.
"""

from __future__ import annotations

import functools
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from torch import Tensor

from lime.config.schema import BalanceConfig
from lime.config.training import TrainerConfig
from lime.distributed.strategies import strategy_of
from tests.conformance.test_battery import disturb, fresh
from tests.conformance.types import TYPES
from tests.properties.steps import Batch, difference, gradients, training_batch
from tests.tuner import small_models as small

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")

CASES = [(name, mode) for name, type_ in TYPES.items() for mode in type_.modes]
IN_PROCESSES = [case for case in CASES if case[1] == "default" or case[0] in ("lime lora", "lime prompt_tuning")]
"""What processes exchange knows nothing of the routing, whose modes the micro-batches go through."""
FAMILY = {name: small.FAMILIES[i % 2] for i, name in enumerate(TYPES)}
IMAGES = {"llava_onevision": (0,), "qwen2_vl": (1, 3)}
"""Rows with an image: in one half alone, where the other process has no gradient for the vision tower; in both."""
ANSWERS = [1, 2, 6, 3]
BALANCE = BalanceConfig(alpha=0.7, beta=0.3, every_n_steps=2)
"""The first of two steps has the balance losses, the second the task alone."""


@functools.cache
def batch(family: str, first: int, end: int) -> Batch:
    lengths = [5, 8, 11, 4]
    rows = [small.row(family, n, n, with_image=i in IMAGES[family]) for i, n in enumerate(lengths)]
    return training_batch(family, rows[first:end], ANSWERS[first:end])


def options_of(name: str, mode: str) -> dict[str, Any]:
    """Routing without noise; both towers in the default mode, and to save time the language model alone in others."""
    options = {**TYPES[name].options, **TYPES[name].modes[mode]}
    if TYPES[name].routed:
        options["jitter_noise"] = 0.0
    if mode != "default" and "scope" in options:
        options["scope"] = "language_model"
    return options


def adapted(name: str, mode: str) -> Any:
    """A model whose update is not zero."""
    model, _ = fresh(name, FAMILY[name], **options_of(name, mode))
    disturb(model)
    return model


def balance_of(name: str) -> BalanceConfig | None:
    return BALANCE if TYPES[name].routed else None


def _one_of_two(rank: int, folder: str) -> None:
    """A process: its half of every case's rows, through Lightning's distributed strategy."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    if "lo" in (name for _, name in socket.if_nameindex()):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(minutes=20)
    )
    found = {}
    for name, mode in IN_PROCESSES:
        strategy = strategy_of(TrainerConfig(devices=2), options_of(name, mode).get("scope", "language_model"))
        found[name, mode] = gradients(
            adapted(name, mode),
            [batch(FAMILY[name], 2 * rank, 2 * rank + 2)],
            steps=2,
            balance=balance_of(name),
            devices=2,
            strategy=strategy,
            plugins=[TorchElasticEnvironment()],
        )
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], list[dict[str, Tensor]]]]:
    """Gradients in each of two processes, by case."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(_one_of_two, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize(("name", "mode"), CASES, ids=[f"{name}, {mode}" for name, mode in CASES])
def test_same_gradient(name: str, mode: str, processes: Any) -> None:
    family, model = FAMILY[name], adapted(name, mode)
    counts = [int((batch(family, i, i + 2)["labels"] != -100).sum()) for i in (0, 2)]
    assert counts == [3, 9]
    (whole,) = gradients(model, [batch(family, 0, 4)], steps=1, balance=None, devices=1)
    halves = [batch(family, 0, 2), batch(family, 2, 4)]
    balanced, cut = gradients(model, halves, steps=2, balance=balance_of(name), devices=1)
    assert not difference(cut, whole), "micro-batches"
    if TYPES[name].routed:
        assert difference(balanced, cut), "the balance losses have an effect"
    for found in processes if (name, mode) in IN_PROCESSES else ():
        assert not difference(found[name, mode][1], whole), "processes"
        assert not difference(found[name, mode][0], balanced), "processes, with balance losses"
