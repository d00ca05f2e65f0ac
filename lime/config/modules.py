"""Modules of the user that register PEFT types of their own."""

from __future__ import annotations

from importlib import import_module

from lime.config.check import ConfigError


def import_types(module: str, key: str = "peft.module") -> None:
    """Import a module that registers PEFT types (`lime.method.deltas.table.register`).

    Raises:
        ConfigError: it cannot be imported, whatever it raises.
    """
    try:
        import_module(module)
    except Exception as error:
        raise ConfigError(
            [
                f"{key}: {module}: cannot be imported ({type(error).__name__}: {error}); expected a module on Python's "
                "path that registers a PEFT type (docs/method.md)"
            ]
        ) from error
