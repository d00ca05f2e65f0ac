"""The embedded benchmark: procedural rows for all 47 tasks, written in the published layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lime.embedded.benchmark.builder import ensure, generate

__all__ = ["ensure", "generate"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from lime.embedded.benchmark import builder

        return getattr(builder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
