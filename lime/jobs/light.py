"""Importing the model libraries without what one process that answers never uses, which is half of their import."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any
from unittest.mock import patch


@contextmanager
def light_imports() -> Iterator[None]:
    """Inside, torch, transformers and peft come without torch's compiler, tensors of several processes and SciPy.

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

        with ExitStack() as stack:
            stack.enter_context(patch.object(torch.distributed, "is_available", _no))
            stack.enter_context(patch.object(transformers.utils, "is_scipy_available", _no))
            for name in _MARKS:
                stack.enter_context(patch.object(torch.compiler, name, _as_it_is))
            stack.enter_context(_no_compiler(torch))
            yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _no_compiler(torch: Any) -> Iterator[None]:
    """Modules that mark functions for `torch._dynamo` when they are imported do not import it; for all else it is."""
    marks: Any = ModuleType("torch._dynamo")
    vars(marks).update(dict.fromkeys(_MARKS, _as_it_is))
    marks.__getattr__ = lambda name: getattr(import_module("torch._dynamo"), name)
    if "torch._dynamo" not in sys.modules:
        torch._dynamo = marks
    try:
        yield
    finally:
        if vars(torch).get("_dynamo") is marks:
            del torch._dynamo  # from now on imported where it is asked for


def _no() -> bool:
    return False


def _as_it_is(function: Any = None, *_: Any, **__: Any) -> Any:
    return function if function is not None else _as_it_is


_MARKS = ("disable", "allow_in_graph", "assume_constant_result")
"""What marks a function for the compiler, and leaves it as it is without one."""
