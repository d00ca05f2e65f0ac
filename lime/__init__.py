"""LiME: a lightweight mixture of experts over one shared PEFT update (arXiv 2604.02338).

    import lime
    model, report = lime.apply(model, num_experts=4, r=2)

Names are resolved on first use, so that importing a configuration module does not import torch. Once this package is
imported, the `peft` library knows LiME's adapters, whichever of the two is imported first.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lime.registration import register_with_peft

if TYPE_CHECKING:
    from lime import quickstart as quickstart
    from lime import tuner as tuner
    from lime.jobs.asking import open_run
    from lime.jobs.compose import compose
    from lime.tuner import ApplyReport, LimeConfig, LimeSettings, apply, load, parameter_groups, record

__all__ = [
    "ApplyReport", "LimeConfig", "LimeSettings", "apply", "compose", "load", "open_run", "parameter_groups", "record",
]  # fmt: skip

_MODULES = ("quickstart", "tuner")
_OF_JOBS = {"open_run": "lime.jobs.asking", "compose": "lime.jobs.compose"}

register_with_peft()


def __getattr__(name: str) -> Any:
    if name in _OF_JOBS:
        return getattr(import_module(_OF_JOBS[name]), name)
    if name in __all__:
        return getattr(import_module("lime.tuner"), name)
    if name in _MODULES:
        return import_module(f"lime.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *_MODULES])
