"""Every test runs offline, on one thread, with nobody logged in anywhere."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="lime-tests-home-")  # the key that signs adapters
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

LONGEST = (
    "training/test_real_checkpoints.py", "end_to_end/test_experiments.py", "end_to_end/test_random_signals.py",
    "end_to_end/test_cluster.py", "end_to_end/test_signals.py", "end_to_end/test_kill.py",
    "training/test_distributed.py", "models/test_real_backbone.py", "training/test_preflight.py",
    "config/test_command_line.py", "experiments/test_sweeps.py", "experiments/test_optuna_search.py",
    "config/test_own_types.py", "end_to_end/test_data_page.py", "end_to_end/test_own_data.py", "docs/test_running.py",
    "test_recipes.py", "evaluation/test_intervals.py", "config/test_compose.py", "method/test_triton.py",
    "integrations/test_wandb_pages.py", "conformance/test_battery.py",
)  # fmt: skip
"""Files that take longest, by what they take."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several processes, none is left alone with a long file in the end."""
    tests = Path(__file__).parent
    place = {tests / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
