"""Importing the model libraries without what one process that answers never uses, which is half of their import."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch


@contextmanager
def light_imports() -> Iterator[None]:
    """Inside, torch, transformers and peft come without tensors of several processes and SciPy.

    transformers finds what it finds on a machine without them, and keeps that for this process: for a command that
    loads a model in one process and asks it, no more. Where the libraries were imported before, nothing is changed.
    Objects made inside are not searched for garbage, then or later.
    """
    if "transformers" in sys.modules:
        yield
        return
    gc.disable()
    try:
        import torch
        import transformers.utils

        with (
            patch.object(torch.distributed, "is_available", _no),
            patch.object(transformers.utils, "is_scipy_available", _no),
        ):
            yield
    finally:
        gc.freeze()
        gc.enable()


def _no() -> bool:
    return False
