"""LiME as a tuner of the `peft` library.

Settings and presets are plain Python. Everything else is resolved on first use. LiME is registered with `peft` as soon
as both are imported (`lime.registration`); `register()` does it at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lime.tuner.presets import PRESETS, preset_settings
from lime.tuner.settings import LimeSettings

if TYPE_CHECKING:
    from lime.method.balance import BalanceTerms
    from lime.tuner.api import apply, has_routing, load, record
    from lime.tuner.calibration import calibrate
    from lime.tuner.config import LimeConfig
    from lime.tuner.model import LimeModel, register
    from lime.tuner.reporting import ApplyReport, ReportRow, parameter_groups, report
    from lime.tuner.routing.recorder import LayerStatistics, Recorder, RoutingStatistics

_LAZY = {
    "BalanceTerms": "lime.method.balance",
    "apply": "lime.tuner.api",
    "calibrate": "lime.tuner.calibration",
    "has_routing": "lime.tuner.api",
    "load": "lime.tuner.api",
    "record": "lime.tuner.api",
    "LimeConfig": "lime.tuner.config",
    "LimeModel": "lime.tuner.model",
    "register": "lime.tuner.model",
    "LayerStatistics": "lime.tuner.routing.recorder",
    "Recorder": "lime.tuner.routing.recorder",
    "RoutingStatistics": "lime.tuner.routing.recorder",
    "ApplyReport": "lime.tuner.reporting",
    "ReportRow": "lime.tuner.reporting",
    "parameter_groups": "lime.tuner.reporting",
    "report": "lime.tuner.reporting",
}

__all__ = [
    "PRESETS",
    "ApplyReport",
    "BalanceTerms",
    "LayerStatistics",
    "LimeConfig",
    "LimeModel",
    "LimeSettings",
    "Recorder",
    "ReportRow",
    "RoutingStatistics",
    "apply",
    "calibrate",
    "has_routing",
    "load",
    "parameter_groups",
    "preset_settings",
    "record",
    "register",
    "report",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module("lime.tuner.model")  # registers LiME with peft
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
