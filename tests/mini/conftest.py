"""One small instance of the embedded benchmark for the whole session."""

from __future__ import annotations

from pathlib import Path

import pytest

from lime.embedded.benchmark import generate

TRAIN, TEST = 7, 6


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mini") / "data"
    generate(path, seed=3, train_per_task=TRAIN, test_per_task=TEST, workers=1)
    return path
