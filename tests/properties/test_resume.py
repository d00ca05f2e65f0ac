"""A resumed run ends where the uninterrupted one does, bit for bit, with every type.

Where it stands in its data is the data module's affair: see tests/training/test_runs.py.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import lime
from lime.config.schema import BalanceConfig
from lime.config.training import CallbacksConfig
from lime.method.deltas import table
from lime.training.callbacks import checkpoint_callback
from lime.training.module import AdaptationModule
from tests.conformance.test_battery import frozen
from tests.conformance.types import TYPES
from tests.properties.steps import QUIET, module_of, training_batch
from tests.tuner import small_models as small

FAMILY = "llava_onevision"


def fresh(name: str, draw: int) -> Any:
    """A new adapter with routing noise and, where the type has it, dropout."""
    options = dict(TYPES[name].options)
    if "scope" in options:
        options["scope"] = "language_model"
    if "dropout" in table.TYPES[options["peft"]].options:
        options["dropout"] = 0.1
    torch.manual_seed(draw)
    model, _ = lime.apply(copy.deepcopy(frozen(FAMILY)), **options)  # type: ignore[arg-type]
    lime.tuner.calibrate(model, [small.batch(FAMILY, [small.row(FAMILY, 9, draw)])])
    return model


def run(name: str, model: Any, folder: Path, resume: Path | None = None) -> dict[str, Tensor]:
    """The adapter after two epochs of two optimiser steps, with a checkpoint after each epoch."""
    batches = [training_batch(FAMILY, [small.row(FAMILY, n, n), small.row(FAMILY, n + 3, n)], [2, 3]) for n in (4, 7)]
    module = module_of(AdaptationModule, model, 1e-2, BalanceConfig() if TYPES[name].routed else None)
    checkpoints = checkpoint_callback(folder, CallbacksConfig(keep_checkpoints=10))
    options = {**QUIET, "enable_checkpointing": True}
    trainer = pl.Trainer(max_epochs=2, callbacks=[checkpoints], default_root_dir=folder, **options)
    trainer.fit(module, DataLoader(batches, batch_size=None), ckpt_path=resume)  # type: ignore[arg-type]
    assert trainer.global_step == 4
    return {key: tensor.detach().clone() for key, tensor in module.adapter_tensors().items()}


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("name", TYPES)
def test_resumed_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    """Also where the resumed process drew other initial values: the checkpoint holds whatever an adapter keeps."""
    expected = run(name, fresh(name, 1), tmp_path / "whole")
    middle = tmp_path / "whole" / "checkpoints" / "step-2.ckpt"
    found = run(name, fresh(name, 2), tmp_path / "resumed", middle)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    saved = torch.load(middle, weights_only=True)["state_dict"]
    assert any(not torch.equal(saved[key], tensor) for key, tensor in expected.items()), "the second epoch trains"
