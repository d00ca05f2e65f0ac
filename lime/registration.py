"""LiME made known to the `peft` library as soon as that is imported, without importing it."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_TUNER = "lime.tuner.model"  # registers itself


def register_with_peft() -> None:
    """Register now where `peft` is imported already, else after its import. Once in a process."""
    if not _register() and not any(isinstance(finder, _AfterPeft) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterPeft())


def _register() -> bool:
    """Whether LiME is registered. It is not before `peft` is there, nor while a module of the tuner, which its
    registration needs, is half imported."""
    if _TUNER in sys.modules:
        return True
    peft = sys.modules.get("peft")
    if peft is None or _is_half(peft):
        return False
    if any(_is_half(module) for name, module in list(sys.modules.items()) if name.startswith("lime.tuner.")):
        return False
    importlib.import_module(_TUNER)
    return True


def _is_half(module: ModuleType) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


class _AfterPeft(importlib.abc.MetaPathFinder):
    """Finds no module itself: has LiME registered once `peft` is whole."""

    def __init__(self) -> None:
        self.searching = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self.searching:
            return None
        self.searching = True
        try:
            if fullname != "peft":
                if not fullname.startswith("lime.") and _register() and self in sys.meta_path:
                    sys.meta_path.remove(self)
                return None
            spec = importlib.util.find_spec(fullname)
        finally:
            self.searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)
        return spec


class _ThenRegister(importlib.abc.Loader):
    """Loads as another loader does, then registers."""

    def __init__(self, loader: importlib.abc.Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        module.__loader__ = spec.loader = self.loader
        self.loader.exec_module(module)
        spec._initializing = False  # type: ignore[attr-defined]  # it is whole, and the tuner's modules import it
        _register()
