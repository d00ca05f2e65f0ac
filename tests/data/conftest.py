"""Shared parts of the data tests: one data root, one processor per family."""

from __future__ import annotations

from pathlib import Path

import pytest

from lime.data.collate import Collator
from lime.processors.families import load_processor
from tests.data import tiny

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "real_mmt"


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    return tiny.write_root(tmp_path_factory.mktemp("mmt"), tiny.splits(train=24, test=4))


@pytest.fixture(scope="session")
def real_root() -> Path:
    if not REAL.is_dir():
        pytest.skip("the real sample rows (../shared/real_mmt) are not here")
    return REAL


@pytest.fixture(params=tiny.FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def processor(family):
    return load_processor(tiny.checkpoint(family), family)


@pytest.fixture
def collator(processor, family, root) -> Collator:
    return Collator(processor, family, root)
