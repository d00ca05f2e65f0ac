"""Peaks of memory begin where they are told to."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from lime.system.memory import forget_peak, peak_resident_mb, resident_mb


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the peak is that of the whole process")
def test_a_forgotten_peak_is_not_counted() -> None:
    forget_peak()
    before = peak_resident_mb()
    assert before == pytest.approx(resident_mb(), abs=32)
    large = np.ones(200_000_000, dtype=np.uint8)
    assert peak_resident_mb() > before + 180
    del large
    assert peak_resident_mb() > before + 180
    forget_peak()
    assert peak_resident_mb() < before + 50
